"""The demo's client and exam: requests to a served model, scores beside chance, the page of all replies."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from jobs.demo_client import ClientError, held_out_pair, request_reply, wait_until_healthy
from jobs.demo_scores import (
    Reply,
    attributes,
    is_right_answer,
    read_caption,
    score,
    verdict,
    write_page,
)
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.language import caption
from pipelines.miniworld.pairs import Pair, caption_sentence
from pipelines.miniworld.reading import Reading, read_image
from pipelines.miniworld.render import render
from pipelines.miniworld.scene import Scene, Thing
from tests.serve.conftest import Caller

CONFIG = PairsConfig(seed=5)


def png_of(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render(scene, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def right_reply(number: int) -> Reply:
    pair = held_out_pair(CONFIG, number)
    question = pair.questions[number % len(pair.questions)]
    png = png_of(pair.scene)
    reading = read_image(render(pair.scene, 64))
    return Reply(pair, png, caption_sentence(pair.scene), question, question.answer, png, reading)


def test_captions_are_read_as_they_are_written() -> None:
    for number in range(200):
        scene = held_out_pair(CONFIG, number).scene
        assert read_caption(caption(scene)) == attributes(scene)
        assert read_caption(caption_sentence(scene)) == attributes(scene)


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("A small red blue star at the top on a mint background", "colour"),
        ("A red star at the top on a mint background", "size"),
        ("A small red star in the top bottom on a mint background", "place"),
        ("", "shape"),
    ],
)
def test_what_a_caption_leaves_open_is_left_out(text: str, absent: str) -> None:
    assert absent not in read_caption(text)


def test_an_answer_is_right_up_to_case_and_full_stop() -> None:
    question = held_out_pair(CONFIG, 0).questions[4]
    assert is_right_answer(f" {question.answer.capitalize()}.", question)
    assert not is_right_answer(f"not {question.answer}", question)


def test_perfect_replies_score_one_and_each_fault_counts_once() -> None:
    replies = [right_reply(number) for number in range(16)]
    perfect = score(replies)
    for group in (perfect.captions, perfect.answers, perfect.images):
        assert all(each.share == 1 for each in group)
    wrong = replace(
        replies[0], caption="a blob", answer="perhaps", reading=Reading("no such background")
    )
    found = score([wrong, *replies[1:]])
    for group in (found.captions, found.images):
        assert all(each.num_correct == 15 for each in group)
    assert found.answers[0].num_correct == 15
    assert found.captions[0].chance == pytest.approx(1 / (8 * 9 * 2 * 9 * 8))


def test_the_verdict_names_what_is_learned_and_what_is_not() -> None:
    replies = [right_reply(number) for number in range(16)]
    blind = [replace(each, reading=Reading(each.reading.background)) for each in replies]
    text = verdict(score(blind))
    assert "Captions: learned: background, colour, size, place, shape." in text
    assert "Generated images: learned: background; not learned: colour, size, place, shape." in text


def test_the_page_shows_failures_escapes_texts_and_crops_nothing(tmp_path: Path) -> None:
    replies = [right_reply(0), replace(right_reply(1), caption="<b>", answer="?")]
    page = write_page(replies, score(replies), tmp_path, "short & simple").read_text()
    assert page.count('<article class="card">') == 2
    assert "&lt;b&gt;" in page and "<b>" not in page and "short &amp; simple" in page
    assert f"True: {caption(replies[1].pair.scene)}" in page
    assert f"(true: {replies[1].question.answer})" in page
    assert "object-fit: contain" in page and "object-fit: cover" not in page
    assert 'name="viewport"' in page and "color-scheme: light dark" in page


def test_a_served_model_is_asked_for_texts_and_an_image(caller: Caller) -> None:
    address = str(caller.client.base_url).rstrip("/")
    wait_until_healthy(address, lambda: True)
    reply = request_reply(address, held_out_pair(CONFIG, 3), number=3, side_px=64)
    assert reply.question in reply.pair.questions
    assert Image.open(io.BytesIO(reply.generated)).size == (64, 64)


def test_a_server_that_ends_or_refuses_is_a_client_error(caller: Caller) -> None:
    with pytest.raises(ClientError, match="ended before it responded"):
        wait_until_healthy("http://127.0.0.1:9", lambda: False)
    address = str(caller.client.base_url).rstrip("/") + "/nowhere"
    with pytest.raises(ClientError, match="status 404"):
        request_reply(address, held_out_pair(CONFIG, 3), number=3, side_px=64)


def test_a_scene_reads_back_as_its_attributes() -> None:
    scene = Scene("sky", 1.0, (Thing("heart", "green", "small", 0.5, 0.27, 0.1, 0.0),))
    pair = Pair(scene, caption_sentence(scene), ())
    assert attributes(pair.scene)["place"] == "top" == read_image(render(scene, 64)).place
