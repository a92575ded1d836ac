"""The command shows any dataset: counts, samples, a page, and what is known of one key."""

import re
from pathlib import Path

import pytest

from jobs.inspect_shards import main
from pipelines.miniworld.server import ImageServer
from tests.exit_codes import exit_code
from tests.instruct.dialogues import build as build_dialogues
from tests.instruct.dialogues import talk
from tests.mmc4.pages import build, page, write_images, write_pages
from tests.publish.test_report import Page


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    pages = [page(["a", "b"], ["red", "not_found/blue"], [[0.5, 0.1], [0.1, 0.5]])] * 3
    documents = write_pages(tmp_path / "d.jsonl", [*pages, "[]"])
    with ImageServer(write_images(tmp_path / "images")) as server:
        build(documents, tmp_path / "out", server, samples_per_shard=2)
    return tmp_path / "out"


def test_counts_and_samples_are_printed(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dataset)]) == 0
    printed = capsys.readouterr().out
    for text in ("3 with 3 images", "not_found", "d-0000001", "d-0000003", "png, 48 x 40"):
        assert text in printed, text
    assert main([str(dataset), "--num-samples", "1"]) == 0
    assert capsys.readouterr().out.count("sample     ") == 1


def test_everything_that_is_known_of_a_key_is_printed(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(dataset), "--key", "d-0000002"]) == 0
    printed = capsys.readouterr().out
    for text in (
        *("shard      mmc4-000000", "d.jsonl, record 2", "kept (publish)"),
        *("link 1", "dropped by fetch: not_found"),
        *(
            "d-0000002.0.png",
            "bytes at",
            "score      mean_similarity 0.5",
            '"matched_text_index":[0]',
        ),
        *("  image    png, 48 x 40", "  text     'a'"),
    ):
        assert text in printed, (text, printed)
    assert main([str(dataset), "--key", "d-0000004"]) == 0
    printed = capsys.readouterr().out
    assert "dropped by parse: not_an_object (" in printed
    assert "The record is JSON, but not an object." in printed and "member" not in printed
    assert main([str(dataset), "--key", "nobody"]) == 2
    assert "no record 'nobody'" in capsys.readouterr().err


def test_the_page_shows_dialogues_as_dialogues(tmp_path: Path) -> None:
    records = [
        talk("u:<image>\nWhat is <b>it</b>?", "a:Red & good.", "u:Sure?", "a:Yes.", image="red.png")
    ] * 30
    build_dialogues(tmp_path, records)
    html = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(html), "--num-cards", "25"]) == 0
    text = html.read_text()
    assert text.count("<article") == 25
    card = text.split("<article")[1]
    turns = re.findall(r'class="turn (\w+) (?:frames)?"', card)
    assert turns == ["system", "user", "user", "assistant", "user", "assistant"]
    assert "What is &lt;b&gt;it&lt;/b&gt;?" in card and "Red &amp; good." in card
    Page(text)


def test_the_page_of_a_build_is_the_same(dataset: Path, tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    assert main([str(dataset), "--html", str(html), "--num-cards", "12"]) == 0
    shown, built = (
        re.sub(r"<p class=\"quiet\">.*?</p>", "", p.read_text())
        for p in (html, dataset / "report.html")
    )
    assert shown == built


def test_a_page_that_cannot_be_there_is_refused_before_reading(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for html in (tmp_path, tmp_path / "absent/page.html"):
        assert exit_code(main, [dataset, "--html", html]) == 2
        shown = capsys.readouterr()
        assert f"html is '{html}'" in " ".join(shown.err.replace("│", " ").split())
        assert shown.out == ""


@pytest.mark.parametrize("content", [b"x" * 99, b"", None])
@pytest.mark.parametrize("options", [["--lint"], ["--key", "d-0000001"], []])
def test_a_damaged_index_is_an_error_of_one_line(
    dataset: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, options: list[str]
) -> None:
    index = dataset / "index/mmc4-000000.parquet"
    if content is None:
        index.unlink()
    else:
        index.write_bytes(content)
    assert main([str(dataset), *options]) == 1
    shown = capsys.readouterr()
    assert "error: cannot read a sample: " in shown.err and "mmc4-000000" in shown.err
    assert ("index/mmc4-000000.parquet: " in shown.out) == (options == ["--lint"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xff", "can't decode byte"),
        (b"[]", "a list, not an object"),
        (b'{"schema"', "no JSON"),
        (b"[" * 100_000, "recursion"),
        (b'{"schema": ' + b"9" * 5_000 + b"}", "4300 digits"),
    ],
)
def test_an_invalid_manifest_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no complete dataset in") and words in error


def test_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no complete dataset" in capsys.readouterr().err
