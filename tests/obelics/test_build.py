"""OBELICS documents keep the order of the page; images that do not arrive leave no other trace than the ledger."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.build_obelics import main
from jobs.inspect_shards import main as inspect
from pipelines.miniworld.link_kinds import link_url
from pipelines.miniworld.server import ImageServer
from schemas.manifest import manifest_from_json
from tests.instruct.dialogues import reasons
from tests.mmc4.pages import samples, shown, write_images


def page(*places: str, **more: Any) -> dict[str, Any]:
    """A row; `[red.png]` is an image, everything else a text."""
    is_image = [place.startswith("[") for place in places]
    pairs = list(zip(places, is_image, strict=True))
    return {
        "images": [place[1:-1] if image else None for place, image in pairs],
        "texts": [None if image else place for place, image in pairs],
        "metadata": "[null]",
        **more,
    }


def build(folder: Path, rows: list[dict[str, Any]], *options: object) -> int:
    if not (folder / "media").exists():
        write_images(folder / "media")
    pq.write_table(pa.Table.from_pylist(rows), folder / "d.parquet")
    words = ("--documents", folder / "d.parquet", "--out", folder / "out", "--runner", "local")
    return main([str(word) for word in (*words, "--media", folder / "media", *options)])


def test_images_stay_at_their_places(tmp_path: Path) -> None:
    rows = [
        page("[red.png]", "a", "b", "[blue.png]", "[green.png]", "c"),
        page("a", "[gone.png]", "[grey.png]", "b", "[red.png]"),
        page(" ", "[red.png]", "x"),
    ]
    assert build(tmp_path, rows) == 0
    found = samples(tmp_path / "out")
    assert [shown(sample) for sample in found] == [
        ["[red]", "a", "b", "[blue]", "[green]", "c"],
        ["a", "[grey]", "b", "[red]"],
        [" ", "[red]", "x"],
    ]
    assert found[1].meta == {
        "source": "d.parquet",
        "record": 2,
        "columns": {"metadata": "[null]"},
        "image_slot": [1, 2],
        "image_url": ["grey.png", "red.png"],
    }
    manifest = manifest_from_json((tmp_path / "out/manifest.json").read_text())
    assert (manifest.links.total, manifest.links.dropped) == (7, {"media_missing": 1})
    assert inspect([str(tmp_path / "out"), "--lint"]) == 0


def test_rows_that_are_no_pages_have_their_reason(tmp_path: Path) -> None:
    rows = [
        {"images": None, "texts": ["a"]},
        {"images": ["red.png"], "texts": None},
        {"images": ["red.png"], "texts": [None, "a"]},
        {"images": ["red.png", None], "texts": ["b", "a"]},
        {"images": ["red.png", None], "texts": [None, None]},
        page("a", "b"),
        page("[red.png]", " "),
        page("a", "[gone.png]", "[../media/red.png]"),
        page("a", "[red.png]"),
    ]
    assert build(tmp_path, rows) == 0
    found = [reason for _, (reason, _) in sorted(reasons(tmp_path / "out").items())]
    assert found == [
        *("no_lists", "no_lists", "lists_differ", "place_unclear", "place_unclear"),
        *("no_image_listed", "no_text_listed", "no_image_arrived", None),
    ]
    assert reasons(tmp_path / "out")[4][1] == "place 0 has both"


def test_links_are_fetched_up_to_a_bound(tmp_path: Path) -> None:
    with ImageServer(write_images(tmp_path / "media")) as server:
        urls = [link_url("image", f"{colour}.png") for colour in ("red", "green", "blue")]
        rows = [page("a", *(f"[{url}]" for url in urls))]
        fetch = ("--fetch.allow-host", server.allow_host)
        assert build(tmp_path, rows, "--max-images", 2, *fetch) == 0
    assert shown(samples(tmp_path / "out")[0]) == ["a", "[red]", "[green]"]
    manifest = manifest_from_json((tmp_path / "out/manifest.json").read_text())
    assert manifest.links.dropped == {"over_max_images": 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [["x"]], "texts": [["a"]]},
            "no column 'images'; there are: image, texts; the nearest is 'image'",
        ),
        ({"images": ["x"], "texts": [["a"]]}, "column 'images' is string, expected lists of texts"),
        ({"images": [[1]], "texts": [["a"]]}, "expected lists of texts"),
    ],
)
def test_wrong_columns_are_an_error_of_the_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    words = ["--documents", str(tmp_path / "d.parquet"), "--out", str(tmp_path / "out")]
    assert main([*words, "--runner", "local"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/manifest.json").exists()
