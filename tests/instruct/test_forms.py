"""Each form of instruction data becomes the dialogue that it describes."""

from pathlib import Path
from typing import Any

from pipelines.corpora.instruct.rules import Rules
from schemas.dialogue import IMAGE_SYSTEM_MESSAGE
from tests.instruct.dialogues import build, reasons, samples, shown, talk

SEEN = f"system: {IMAGE_SYSTEM_MESSAGE}"

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llava": (
        talk("u:<image>\nWhat is it?", "a:Red.", image="red.png", id="7"),
        [SEEN, "user: [red]", "user: What is it?", "assistant: Red."],
    ),
    "llava, image last": (
        talk("u:What is it?\n<image>", "a:Red.", "u:Sure?", "a:Yes.", image="red.png"),
        [
            *(SEEN, "user: What is it?", "user: [red]", "assistant: Red."),
            *("user: Sure?", "assistant: Yes."),
        ],
    ),
    "llava, no place": (
        talk("u:What is it?", "a:Red.", image="red.png"),
        [SEEN, "user: [red]", "user: What is it?", "assistant: Red."],
    ),
    "llava, several images in the middle of a text": (
        talk(
            "u:From <image> to <image>?", "a:So: <image>", image=["red.png", "blue.png", "grey.png"]
        ),
        [
            *("user: From", "user: [red]", "user: to", "user: [blue]", "user: ?"),
            *("assistant: So:", "assistant: [grey]"),
        ],
    ),
    "llava, the same image twice": (
        talk("u:<image>\nAnd <image>", "a:Same.", images=["red.png", "red.png"]),
        ["user: [red]", "user: And", "user: [red]", "assistant: Same."],
    ),
    "llava, text alone": (talk("u:Hi", "a:Hello", image=""), ["user: Hi", "assistant: Hello"]),
    "alpaca": (
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        ["user: Add.\n1 1", "assistant: 2"],
    ),
    "alpaca without input": (
        {"instruction": "Say 2.", "input": "<noinput>", "output": "2"},
        ["user: Say 2.", "assistant: 2"],
    ),
    "sharegpt": (
        talk("s:Be kind.", "u:Use <video> in HTML", "a:<div><p>Like &lt;video&gt;</p></div>"),
        ["system: Be kind.", "user: Use <video> in HTML", "assistant: Like <video>"],
    ),
    "videochat": (
        {
            "image": "blue.png",
            "QA": [
                {"i": "Be brief.", "q": "Colour?", "a": "Blue."},
                {"i": "Be brief.", "q": "Sure?", "a": "Yes."},
                {"i": "Now rhyme.", "q": "Again?", "a": "New."},
            ],
        },
        [
            *(f"{SEEN} Be brief.", "user: [blue]", "user: Colour?", "assistant: Blue."),
            *("user: Sure?", "assistant: Yes.", "user: Now rhyme.\nAgain?", "assistant: New."),
        ],
    ),
    "videochat, an instruction instead of a question": (
        {"image": "blue.png", "QA": [{"i": "Describe it.", "q": "", "a": "Blue."}]},
        [SEEN, "user: [blue]", "user: Describe it.", "assistant: Blue."],
    ),
}


def test_every_form_becomes_its_dialogue(tmp_path: Path) -> None:
    manifest = build(tmp_path, [record for record, _ in CASES.values()])
    assert manifest.records.kept == len(CASES), reasons(tmp_path / "out")
    for sample, (name, (_, wanted)) in zip(samples(tmp_path / "out"), CASES.items(), strict=True):
        assert shown(sample) == wanted, name
        assert sample.meta["form"] == name.split(",")[0].split(" ")[0]
    first = samples(tmp_path / "out")[0]
    assert first.meta["id"] == "7" and first.meta["image_url"] == ["red.png"]
    assert first.key == "d-0000001"


def test_the_system_message_can_be_left_out(tmp_path: Path) -> None:
    build(tmp_path, [CASES["llava"][0], CASES["sharegpt"][0]], Rules(system_messages=False))
    first, second = samples(tmp_path / "out")
    assert shown(first)[0] == "user: [red]" and shown(second)[0] == "system: Be kind."


REFUSED: dict[str, tuple[Any, str, str]] = {
    "an extra place": (
        talk("u:<image> or <image>?", "a:x", image="red.png"),
        *("placeholder_without_medium", "2 image in the turns, 1 image in the record"),
    ),
    "a place and no image": (
        talk("u:<image>\nWhat?", "a:x"),
        *("placeholder_without_medium", "names no image"),
    ),
    "a place less than images": (
        talk("u:<image>\nWhat?", "a:x", image=["red.png", "blue.png"]),
        *("medium_without_placeholder", "1 image in the turns, 2 image in the record"),
    ),
    "a video in an image's place": (
        talk("u:<video>\nWhat?", "a:x", image="red.png"),
        *("placeholder_without_medium", "1 video in the turns"),
    ),
    "an image in a removed turn": (
        talk("a:<image>", "u:What?", "a:x", image="red.png"),
        *("medium_in_removed_turn", "1 assistant_first"),
    ),
    "no answer": (talk("u:What?", "a: "), "no_answer", "2 empty"),
    "no turn": (talk(), "no_turns", ""),
    "a system in the middle": (talk("u:a", "s:b", "a:c"), "system_in_middle", ""),
    "somebody": ({"conversations": [{"from": "tool", "value": "x"}]}, "unknown_role", "'tool'"),
    "no form": ({"prompt": 1, "a\n": 2}, "unknown_form", r"'a\n', 'prompt'"),
    "nothing": ({}, "unknown_form", "no field"),
    "turns of text": ({"conversations": ["hi"]}, "wrong_type", "conversations[0] is 'hi'"),
    "turns at the wrong depth": ({"conversations": [[]]}, "wrong_type", "a list of 0"),
    "records at the wrong depth": ([talk("u:a", "a:b")], "not_an_object", "a list of 1"),
    "an image that is a number": (talk("u:a", "a:b", image=5), "wrong_type", "image[0] is 5"),
    "no value": ({"conversations": [{"from": "gpt"}]}, "missing_field", "conversations[0].value"),
    "a doubled field": (
        '{"conversations": [{"from": "gpt", "from": "human", "value": ""}]}',
        *("doubled_field", "conversations[0].from"),
    ),
    "half a character": (
        '{"instruction": "\\ud800", "output": "x"}',
        *("bad_unicode", "instruction holds"),
    ),
    "a million characters": (
        talk("u:" + "x" * 1_000_000, "a:y"),
        *("text_too_long", "1,000,001 characters, the limit is 200,000"),
    ),
    "NaN for an answer": ('{"q": "a", "a": NaN, "video_id": "v"}', "wrong_type", "a is nan"),
    "no JSON": ("{oops}", "malformed_json", "character 1"),
    "deep JSON": ("[" * 5000 + "]" * 5000, "nested_too_deeply", "[[[["),
}


def test_what_is_no_dialogue_has_its_reason(tmp_path: Path) -> None:
    manifest = build(tmp_path, [record for record, _, _ in REFUSED.values()] + [talk("u:a", "a:b")])
    assert manifest.records.kept == 1
    found = reasons(tmp_path / "out")
    for number, (name, (_, reason, detail)) in enumerate(REFUSED.items(), 1):
        assert found[number][0] == reason, (name, found[number])
        assert detail in (found[number][1] or ""), (name, found[number])


def test_fields_that_are_not_used_cost_nothing(tmp_path: Path) -> None:
    record = '{"instruction": "a", "output": "b", "score": NaN, "x": {"y": "\\ud800"}, "id": 12}'
    assert build(tmp_path, [record]).records.kept == 1
    assert samples(tmp_path / "out")[0].meta["id"] == "12"


def test_a_form_that_is_given_holds_for_all_records(tmp_path: Path) -> None:
    html = talk("u:<image>\nis a tag?", "a:No.")
    alpaca = {"instruction": "a", "output": "b"}
    build(tmp_path, [html, alpaca], Rules(form="sharegpt"))
    assert shown(samples(tmp_path / "out")[0])[0] == "user: <image>\nis a tag?"
    assert reasons(tmp_path / "out")[2] == ("missing_field", "conversations")
    other = tmp_path / "other"
    other.mkdir()
    build(other, [talk("u:Is <image> a tag?", "a:No.")], Rules(form="llava"))
    assert reasons(other / "out")[1][0] == "placeholder_without_medium"
