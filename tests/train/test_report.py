"""The report of runs, its command, the progress line, and the trackers."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from emu.data.mixture import Corpus
from emu.train.loop import TrainPlan, train
from emu.train.report import differences, figures, logged_run, write_report
from emu.train.run_folder import read_metrics
from jobs import report_runs
from jobs.training import progress_text
from tests.data.small_dataset import pair, write_dataset
from tests.train.plans import mini_plan


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainPlan, TrainPlan]:
    """Two runs on a mixture with held-out samples, which differ in steps and in a learning rate."""
    root = tmp_path_factory.mktemp("runs")
    plan = mini_plan(root, steps=4, held_out=0.3, validate_every=2, peak_tflops=1.0)
    pairs = write_dataset(root / "pairs", [pair(n) for n in range(30)], 7)
    plan = replace(plan, data=(Corpus(str(plan.data)), Corpus(str(pairs))))
    rates = replace(plan.train.optim, language_lr=5e-3)
    other = replace(
        plan, out=str(root / "<other>"), train=replace(plan.train, steps=6, optim=rates)
    )
    for one in (plan, other):
        train(one)
    return plan, other


def test_runs_stand_beside_each_other(runs: tuple[TrainPlan, TrainPlan]):
    plan, other = runs
    page = write_report(Path(plan.out), [Path(other.out)]).read_text()
    both = [logged_run(Path(one.out)) for one in runs]
    shown = dict(figures(both))
    assert shown["steps"] == ["4", "6"] and shown["bad_samples"] == ["0", "0"]
    for run, value in zip(both, shown["validation_text_loss/pairs"], strict=True):
        assert value == f"{run.rows[-1]['validation_text_loss/pairs']:.4g}"
    assert dict(differences(both)) == {
        "train.steps": ["4", "6"],
        "train.optim.language_lr": ["0.001", "0.005"],
    }
    assert "&lt;other&gt;" in page and "<other>" not in page, "names are escaped"
    assert not re.search(r"(src|href)=|<script|url\(", page), "the page needs nothing else"
    charts = re.findall(r'aria-label="([^"]*)"', page)
    assert {"text loss", "validation text loss, pairs", "visual loss, mmc4"} <= set(charts)
    assert page.count("<polyline") == 2 * len(charts)


def test_a_report_alone_and_by_command(
    runs: tuple[TrainPlan, TrainPlan], capsys: pytest.CaptureFixture[str]
):
    plan, other = runs
    assert report_runs.main([plan.out, "--compare", other.out]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (Path(plan.out) / "report.html").read_text()
    assert "Options that differ" in page
    alone = write_report(Path(plan.out)).read_text()
    assert "Options that differ" not in alone and alone == write_report(Path(plan.out)).read_text()
    assert report_runs.main([str(Path(plan.out) / "model")]) == 2
    assert "no metrics.jsonl with a line; give the --out of a training" in capsys.readouterr().err
    assert report_runs.main([plan.out, "--compare", *[other.out] * 6]) == 2
    assert "7 runs in one report, the limit is 6" in capsys.readouterr().err


@pytest.fixture
def pages() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    chromium = Path("/usr/bin/chromium")
    if not chromium.is_file():
        pytest.skip("no chromium on this machine")
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1280])
def test_the_page_fits_a_window(runs: tuple[TrainPlan, TrainPlan], pages: object, width: int):
    path = write_report(Path(runs[0].out), [Path(runs[1].out)])
    page = pages.new_page(viewport={"width": width, "height": 900})  # type: ignore[attr-defined]
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".charts svg").count() > 8


def test_the_progress_line_says_what_is_asked_for(runs: tuple[TrainPlan, TrainPlan]):
    text = progress_text(read_metrics(Path(runs[0].out)))
    parts = [r"text \d", r"visual \d", r"mmc4 [\d.]+/", r"pairs [\d.]+/", r"samples/s", r"images/s"]
    for part in (*parts, "positions/s", r"MFU \d+%", r"data wait \d+%"):
        assert re.search(part, text), (part, text)
    bad = [{**read_metrics(Path(runs[0].out))[-1], "bad_samples": 3, "skipped_steps": 1}]
    assert progress_text(bad).endswith("3 bad, 1 skipped")
