"""The project's own fetcher meets in the drawn world exactly the troubles that its truth foretells."""

from collections import defaultdict
from pathlib import Path

from pipelines.download.fetch import FetchConfig, Fetcher
from pipelines.download.reasons import REASONS
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.link_kinds import LINK_KINDS
from pipelines.miniworld.mmc4 import read_truth, write_mmc4
from pipelines.miniworld.server import ImageServer

REASON_OF_KIND = {
    "not_found": "not_found",
    "forbidden": "forbidden",
    "empty": "body_empty",
    "noai": "robots_refused",
    "loopback": "address_refused",
    "redirect_loopback": "address_refused",
    "local_file": "scheme_refused",
}
"""Kinds that are refused before a body is there; html, truncated and huge are found in the body."""


def test_the_fetcher_finds_what_the_truth_foretells(tmp_path: Path):
    write_mmc4(MiniworldConfig(num_documents=60, bad_share=0.5), tmp_path / "w")
    rows = list(read_truth(tmp_path / "w"))
    images = ImageServer(tmp_path / "w" / "images", retry_after_s=0)
    with images, Fetcher(FetchConfig(allow_host=(images.allow_host,))) as fetcher:
        fetched = fetcher.fetch_many([row["raw_url"] for row in rows])
    reasons: dict[str, set[str | None]] = defaultdict(set)
    for row, result in zip(rows, fetched, strict=True):
        reasons[row["link_kind"]].add(result.reason)
        if row["arrives"]:
            assert result.body == (tmp_path / "w" / row["file"]).read_bytes()
        if row["link_kind"] in ("throttled", "flaky"):
            assert result.attempts == 2
    assert reasons == {kind: {REASON_OF_KIND.get(kind)} for kind in LINK_KINDS}
    assert set(REASON_OF_KIND.values()) <= set(REASONS)
