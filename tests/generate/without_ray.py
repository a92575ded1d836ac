"""`python -m tests.generate.without_ray`: emu imports, trains, generates and evaluates where Ray cannot be imported.

Prints one JSON line with what it did; run as a process of its own, since other tests import Ray.
"""

import importlib
import json
import pkgutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class NoRay(MetaPathFinder):
    """Makes every import of Ray fail as if it were not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def modules() -> Iterator[str]:
    """The names of all modules of emu."""
    import emu

    yield "emu"
    for found in pkgutil.walk_packages(emu.__path__, "emu."):
        yield found.name


def imported() -> tuple[int, list[str]]:
    """How many modules of emu import, and which ask for Ray."""
    number, refused = 0, []
    for name in modules():
        try:
            importlib.import_module(name)
            number += 1
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "ray":
                raise
            refused.append(name)
    return number, sorted(refused)


def run(folder: Path) -> dict[str, object]:
    """Trains a step on a small dataset, answers with the model that it wrote, scores the answers."""
    from PIL import Image

    import emu
    from emu.eval.metrics.captions import already_tokens, score_captions
    from emu.eval.metrics.vqa import VqaAccuracy
    from emu.generate.prompts import TextOptions
    from emu.train.loop import train
    from tests.train.plans import mini_plan

    summary = train(mini_plan(folder, steps=1))
    engine = emu.load(summary.model)
    photo = Image.radial_gradient("L").convert("RGB")
    answers = engine.generate_text([[photo, "describe"], "a red"], TextOptions(max_new_tokens=4))
    ranks = engine.rank([photo, "it is"], ["red", "a blue square"])
    ids = engine.encode([photo, "a red"])
    scores = score_captions({1: "a red dog"}, {1: ["a red cat", "the dog"]}, already_tokens)
    return {
        "steps": summary.steps,
        "text_loss": summary.text_loss,
        "answers": answers,
        "ranks": ranks,
        "regressed": list(engine.regress_image(["a red"]).shape),
        "positions": len(ids.ids),
        "metrics": [score.name for score in scores] + [type(VqaAccuracy("official")).__name__],
    }


def main() -> None:
    """Prints what was done, in a process where nothing has imported Ray."""
    assert not [name for name in sys.modules if name.partition(".")[0] == "ray"]
    sys.meta_path.insert(0, NoRay())
    number, refused = imported()
    with tempfile.TemporaryDirectory() as folder:
        done = run(Path(folder))
    print(json.dumps({"imported": number, "refused": refused} | done))


if __name__ == "__main__":
    main()
