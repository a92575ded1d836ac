"""The client of the demo, and the page that it writes of a served model's replies."""

import io
from pathlib import Path

import pytest
from PIL import Image

from jobs.demo_client import (
    ClientError,
    Replies,
    held_out_image,
    request_replies,
    wait_until_healthy,
    write_replies,
)
from tests.serve.conftest import Caller


def test_replies_stand_beside_their_images_and_fit_a_narrow_window(tmp_path: Path) -> None:
    png = held_out_image(1).png
    replies = Replies("a heart", "<b>", "How many?", "one", "two", image=png, generated=png)
    page = write_replies([replies], tmp_path / "images", "short & simple").read_text()
    assert (tmp_path / "images" / "input1.png").read_bytes() == png
    assert (tmp_path / "images" / "generated1.png").read_bytes() == png
    assert "<b>&lt;b&gt;</b>" in page and "short &amp; simple" in page
    assert 'name="viewport"' in page and "max-width: 44rem" in page
    assert "prompt of the generated image" in page  # its heading, where the columns are stacked
    assert "color-scheme: light dark" in page and "object-fit: contain" in page


def test_a_served_model_is_asked_for_texts_and_an_image(caller: Caller) -> None:
    address = str(caller.client.base_url).rstrip("/")
    wait_until_healthy(address, lambda: True)
    try:
        replies = request_replies(address, held_out_image(3), seed=1)
    except ClientError as error:  # random weights may end a text at once
        assert "expected a text, got ''" in str(error)
        return
    assert replies.caption and replies.answer and replies.true_caption
    assert Image.open(io.BytesIO(replies.generated)).size == (64, 64)


def test_a_server_that_ends_or_refuses_is_a_client_error(caller: Caller) -> None:
    with pytest.raises(ClientError, match="ended before it responded"):
        wait_until_healthy("http://127.0.0.1:9", lambda: False)
    with pytest.raises(ClientError, match="status 404"):
        request_replies(
            str(caller.client.base_url).rstrip("/") + "/nowhere", held_out_image(3), seed=1
        )
