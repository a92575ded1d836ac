"""What every job does alike: answers at once, reads a file of options, shows it, is a subcommand of `emu`."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from emu import __version__
from jobs import COMMANDS
from jobs.__main__ import main as emu
from jobs.cli import parse
from jobs.cluster import cluster_address
from jobs.train_emu import TrainEmu, recipe_defaults
from tests.exit_codes import exit_code

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "transformers", "timm", "diffusers", "ray", "scipy", "aiohttp")
LIGHT_JOBS = sorted(command.module for command in COMMANDS.values() if command.module != "demo")
REQUIRED = {
    "build_mmc4": ["--documents", "a*.jsonl", "b.jsonl", "--out", "out", "--max-images", "None"],
    "build_yt_storyboard": ["--videos", "a.jsonl", "b.json", "--out", "o", "--level", "1"],
    "build_miniworld": ["--out", "world", "--num-documents", "7"],
    "inspect_shards": ["mmc4", "--lint"],
    "precompute_features": ["--data", "mmc4", "--patches", "int8"],
    "train_emu": ["--data", "d", "--out", "o", "--train.corpus-batch-size", "mmc4", "3"],
    "train_decoder": ["--model", "m", "--data", "d", "--train.learning-rate", "1e-4"],
    "convert_checkpoint": ["--weights", "w", "--out", "o", "--no-fill-unused"],
    "serve": [
        "--model",
        "m",
        "--num-cpus",
        "0.5",
        "--num-gpus",
        "0.5",
        "--fetch.allow-host",
        "a.example=127.0.0.1:80",
    ],
}


@pytest.mark.parametrize("job", LIGHT_JOBS)
def test_help_and_wrong_options_need_no_heavy_library(job: str) -> None:
    code = (
        f"import sys; from jobs.{job} import main\n"
        "for words in (['--help'], ['--no-such-option', '1']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "[]" and "usage: " in done.stdout


@pytest.mark.parametrize(
    ("job", "words"),
    [*REQUIRED.items(), ("train_emu", ["--data", "d", "--out", "o", "--recipe", "emu_14b"])],
)
def test_the_options_that_a_job_prints_are_a_file_that_it_reads(
    job: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"jobs.{job}").main
    assert main([*words, "--print-config"]) == 0
    printed = capsys.readouterr().out
    for name, text in (("o.yaml", printed), ("o.json", json.dumps(yaml.safe_load(printed)))):
        file = tmp_path / name
        file.write_text(text)
        assert main(["--config", str(file), "--print-config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)


def test_the_command_line_takes_precedence_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(
        "recipe: emu_14b\ndata: d\nout: o\ntrain.optim.eps: 1e-7\n"
        "train:\n  steps: 20\n  freeze-vision: true\n  corpus_batch_size: {laion: 2}\n"
    )
    words = ["--config", str(file), "--train.steps", "30", "--out", "other"]
    options, _ = parse(TrainEmu, words, recipe_defaults)
    assert (options.data, options.out, options.train.steps) == (("d",), "other", 30)
    assert options.train.freeze_vision and options.train.optim.eps == 1e-7
    assert options.train.precision == "bfloat16", "the other values are those of the file's recipe"
    assert dict(options.train.corpus_batch_size) == {"laion": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {stepz: 3}", "unknown option 'train.stepz'; did you mean 'train.steps'?"),
        ("dat: d", "unknown option 'dat'; did you mean 'data'?"),
        ("train: 3", "train is 3, give a mapping of its options"),
        ("steps: yes", "steps is True, give no truth value"),
        ("use_features: maybe", "use_features is 'maybe', give true or false"),
        ("data: a\ndata: b", "the key 'data' is given twice"),
        ("data: [", "is neither YAML nor JSON"),
        ("- data", "holds list, give a mapping of options"),
    ],
)
def test_a_wrong_file_is_named_with_its_fault(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text)
    main = importlib.import_module("jobs.train_emu").main
    assert exit_code(main, ["--data", "d", "--out", tmp_path / "o", "--config", file]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(file) in error and message in error
    assert not (tmp_path / "o").exists()


def test_an_absent_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("jobs.train_emu").main
    assert exit_code(main, ["--config", tmp_path / "absent.yaml"]) == 2
    assert "absent.yaml" in capsys.readouterr().err


def test_emu_lists_its_commands_and_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert emu(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert emu(["--version"]) == 0
    assert capsys.readouterr().out == f"emu {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "no command 'trian'; did you mean 'emu train'?"),
        (["build"], "needs one more word: emu build laion, emu build mmc4"),
        (["build", "coyo"], "needs one more word"),
        ([], "no command given"),
    ],
)
def test_a_wrong_command_is_answered_with_the_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert emu(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_subcommand_is_the_job_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "jobs" / f"{COMMANDS[name].module}.py"
    assert "def main(arguments: Sequence[str] | None = None) -> int:" in file.read_text()
    if name != "demo":
        assert exit_code(emu, [*name.split(), "--help"]) == 0
        assert "usage: " in capsys.readouterr().out


def test_torch_waits_without_spinning_and_the_person_may_say_otherwise() -> None:
    code = (
        "import inspect, os, sys, jobs.cli\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Options: pass\n"
        "def work(options):\n"
        "    assert 'torch' not in sys.modules\n"
        "    return os.environ['OMP_WAIT_POLICY']\n"
        "jobs.cli.run_job(Options, work, [], program='x')\n"
    )
    for given, wanted in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {"PYTHONPATH": str(ROOT), **given}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert done.stdout.strip() == wanted, done.stderr


def test_the_address_of_a_dashboard_is_explained() -> None:
    assert cluster_address({}) is None
    assert cluster_address({"RAY_ADDRESS": "10.0.0.1:6379"}) == "10.0.0.1:6379"
    for address in ("http://127.0.0.1:8265", "HTTPS://ray.example"):
        with pytest.raises(
            ValueError, match=r"(?i)RAY_ADDRESS is http.*dashboard.*HOST:6379"
        ) as raised:
            cluster_address({"RAY_ADDRESS": address})
        assert address in str(raised.value)


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        ("build_mmc4", ["--max-images", "many"], "--max-images: 'many' is not a whole number or"),
        ("build_mmc4", ["--side", "2.5"], "--side: '2.5' is not a whole number"),
        ("train_decoder", ["--learning-rate", "1e"], "--learning-rate: '1e' is not a number or"),
    ],
)
def test_what_is_no_number_is_refused_in_words(
    job: str,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main = importlib.import_module(f"jobs.{job}").main
    assert exit_code(main, [*REQUIRED[job], *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "FieldInfo" not in error


@pytest.mark.parametrize("job", ["train_emu", "train_decoder"])
def test_processes_beside_workers_are_refused(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "d", "--num-processes", "2", "--num-workers", "3"]
    words += ["--model", "m"] if job == "train_decoder" else ["--out", "o"]
    assert exit_code(importlib.import_module(f"jobs.{job}").main, words) == 2
    error = capsys.readouterr().err
    assert "num_processes is 2 and num_workers 3" in error and "--num-workers 0" in error
