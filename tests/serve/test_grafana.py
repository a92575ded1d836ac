"""The board of Grafana asks for figures that the server has."""

import json
import re
from pathlib import Path

from tests.serve.conftest import Caller


def test_every_figure_of_the_board_is_one_of_the_server(repository: Path, caller: Caller):
    body = {"messages": [{"role": "user", "content": "a red circle"}], "max_tokens": 2}
    assert caller.client.post("/v1/chat/completions", json=body).status_code == 200
    families = set(re.findall(r"^# TYPE (\S+) ", caller.client.get("/metrics").text, re.M))
    board = json.loads((repository / "docs/grafana.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"emu_\w+", target["expr"])
    }
    assert len(asked) > 12
    unknown = {name for name in asked if re.sub("_bucket$", "", name) not in families}
    assert not unknown, f"not among {sorted(families)}"
