"""open_clip trains straight from the shards, by its own entry point.

open_clip 3.3 takes the marks that webdataset 0.2.111 puts behind the last member of each tar for members, and
stops with `KeyError: 'fname'`, whoever wrote the tar. `TRAIN` asks webdataset for none, as docs/data.md says.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.build_laion import main
from pipelines.miniworld.laion import LaionSummary
from pipelines.miniworld.server import ImageServer

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TRAIN = """
import sys
from functools import partial
import open_clip, open_clip_train.data
from open_clip_train.main import main

expand = open_clip_train.data.tar_file_expander
open_clip_train.data.tar_file_expander = partial(expand, eof_value=None)

open_clip.add_model_config(sys.argv[1])
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_open_clip_trains_two_steps_from_the_shards(
    laion_world: tuple[Path, LaionSummary], tmp_path: Path
) -> None:
    world, summary = laion_world
    with ImageServer(world / "images", retry_after_s=0) as server:
        words = ["--metadata", f"{world}/metadata/*", "--out", f"{tmp_path}/pairs"]
        hosts = ["--fetch.allow-host", server.allow_host, "--fetch.per-host", "32"]
        cut = ["--samples-per-shard", "30", "--runner", "local"]
        assert main([*words, *hosts, *cut]) == 0
    assert summary.num_pairs_kept >= 16
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    options = {
        "train-data": f"{tmp_path}/pairs/shards/laion-{{000000..000002}}.tar",
        "dataset-type": "webdataset",
        "train-num-samples": "16",
        "batch-size": "8",
        "epochs": "1",
        "workers": "1",
        "model": "tiny",
        "device": "cpu",
        "precision": "fp32",
        "warmup": "1",
        "lr": "1e-3",
        "log-every-n-steps": "1",
        "name": "run",
        "logs": str(tmp_path / "logs"),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    ran = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "tiny.json"), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    log = ran.stdout + ran.stderr
    assert ran.returncode == 0, log[-3000:]
    assert "Handling webdataset error" not in log
    steps = re.findall(r"Train Epoch: 0 \[ *(\d+)/16 .*?Contrastive_loss: (\d+\.\d+)", log)
    assert [int(seen) for seen, _ in steps] == [8, 16], log[-3000:]
    assert (tmp_path / "logs/run/checkpoints/epoch_1.pt").is_file()
