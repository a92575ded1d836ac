"""From messages to prompts, for models with and without instruction tuning."""

from pathlib import Path

import pytest

import emu
from emu.serve.backend import EncodedImage
from emu.serve.errors import ApiError
from emu.serve.requests import Turn, to_prompt
from schemas.dialogue import IMAGE_SYSTEM_MESSAGE
from tests.generate.tiny import write_tiny_model

IMAGE = EncodedImage(b"...", "messages.0.content.0")


def joined(turns: list[Turn], instruct: bool = True) -> str:
    return "".join(p if isinstance(p, str) else "<B>" for p in to_prompt(turns, instruct))


def test_instruction_models_get_the_published_format() -> None:
    question = Turn("user", (IMAGE, "what is it?"))
    assert joined([question]) == f"{IMAGE_SYSTEM_MESSAGE} [USER]: <B>what is it? [ASSISTANT]:"
    assert joined([Turn("user", ("hello",))]) == " [USER]: hello [ASSISTANT]:"
    system = Turn("system", ("Be short.",))
    assert joined([system, question]) == "Be short. [USER]: <B>what is it? [ASSISTANT]:"


def test_earlier_turns_are_closed_and_the_last_is_open() -> None:
    turns = [
        Turn("user", ("one",)),
        Turn("assistant", ("1",)),
        Turn("user", ("two",)),
    ]
    assert joined(turns) == " [USER]: one [ASSISTANT]: 1</s> [USER]: two [ASSISTANT]:"
    begun = [*turns, Turn("assistant", ("the answer is",))]
    assert joined(begun).endswith("</s> [USER]: two [ASSISTANT]: the answer is")


def test_other_models_continue_the_texts() -> None:
    turns = [Turn("system", ("a",)), Turn("user", (IMAGE, "b"))]
    assert joined(turns, instruct=False) == "a <B>b"


def test_a_conversation_without_a_user_is_refused() -> None:
    with pytest.raises(ApiError, match="no message of the user"):
        to_prompt([Turn("system", ("a",))], instruct=True)


def test_control_tokens_of_the_format_become_their_ids(tmp_path: Path) -> None:
    engine = emu.load(write_tiny_model(tmp_path / "instruct", instruct=True))
    turns = [Turn("user", ("it",)), Turn("assistant", ("is",)), Turn("user", ("it",))]
    ids = engine.encode([str(p) for p in to_prompt(turns, instruct=True)]).ids
    special = engine.config.special
    assert ids[:2] == (special.bos, special.user) and ids.count(special.assistant) == 2
    assert ids.count(special.eos) == 1 and ids[ids.index(special.eos) + 1] == special.user
    assert len(engine.generate_text([[str(p) for p in to_prompt(turns, instruct=True)]])) == 1
