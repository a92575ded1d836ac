"""What `--help` of the jobs around the model says: true, in whole sentences, with examples that would run."""

import re
from collections.abc import Callable

import docstring_parser
import pytest

from emu.config import ObjectiveConfig, SequenceConfig, tiny_config
from emu.decoder_recipe import DecoderTrainConfig, PromptRules
from emu.models.emu import Emu
from emu.recipes import OptimConfig, TrainConfig
from emu.serve.limits import Limits
from jobs import convert_checkpoint, serve, train_decoder, train_emu, train_instruct
from jobs.run_options import RunOptions
from tests.documents import job_called

JOBS: dict[str, Callable[[list[str]], int]] = {
    "train_emu": train_emu.main,
    "train_decoder": train_decoder.main,
    "convert_checkpoint": convert_checkpoint.main,
    "serve": serve.main,
}
CLASSES = (
    train_emu.TrainEmu,
    train_instruct.TrainInstruct,
    train_decoder.TrainDecoder,
    convert_checkpoint.ConvertCheckpoint,
    serve.ServeJob,
    Limits,
    TrainConfig,
    OptimConfig,
    DecoderTrainConfig,
    PromptRules,
    SequenceConfig,
)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*[a-z]")


def help_of(job: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        JOBS[job]([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("job", sorted(JOBS))
def test_the_examples_name_jobs_and_options_that_exist(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {
        name: set(OPTION.findall(help_of(name, capsys).partition("-h, --help")[2])) for name in JOBS
    }
    above = help_of(job, capsys).partition("-h, --help")[0].replace("\\\n", " ")
    lines = [line.split() for line in above.splitlines() if re.match(r" +(emu|ray job) ", line)]
    examples = [call for line in lines if (call := job_called(line))]
    assert any(name == job for name, _ in examples), "an example of the job itself"
    for name, rest in examples:
        unknown = set(OPTION.findall(" ".join(rest))) - known.get(name, set()) - {"--help"}
        assert name in JOBS and not unknown, (name, unknown)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_option_is_explained_in_whole_sentences(kind: type) -> None:
    told = {
        each.arg_name: each.description or ""
        for part in kind.__mro__
        if part is kind or issubclass(part, RunOptions)
        for each in docstring_parser.parse_from_object(part).params
    }
    nested = {"train", "sequence", "objective", "optim", "adapter", "rules", "limits", "fetch"}
    silent = set(kind.__dataclass_fields__) - set(told) - nested
    assert not silent, f"no word on {silent}"
    for name, text in told.items():  # the help keeps the breaks of the source
        for line in text.strip().splitlines():
            assert line.strip().endswith((".", ")")), (name, line)


def test_choices_of_the_objective_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(help_of("train_emu", capsys).replace("│", " ").split())
    for name in ObjectiveConfig.__dataclass_fields__:
        option = name.replace("_", "-")
        assert re.search(rf"--objective\.(no-)?{option}\S* (FLOAT )?[A-Z][^│]*?\.", shown), name


def test_the_size_of_the_tiny_recipe_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    num_weights = sum(weight.numel() for weight in Emu(tiny_config(1000)).parameters())
    told = f"{num_weights / 1e6:.1f} million weights"
    shown = " ".join(help_of("train_emu", capsys).replace("│", " ").split())
    assert told in shown
    assert told in (tiny_config.__doc__ or "")
