"""The page in a real browser, by clicks and keys: Chromium of the system, driven by playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Caller, Serve

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(params=["light-1200", "dark-420"])
def page(
    browser: Any, request: pytest.FixtureRequest, caller: Caller, tmp_path: Path
) -> Iterator[Any]:
    """The page of a server, whose console and requests must stay without errors."""
    scheme, width = request.param.split("-")
    context = browser.new_context(
        viewport={"width": int(width), "height": 800}, color_scheme=scheme, locale="en"
    )
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda failed: problems.append(f"{failed.url} {failed.failure}"))
    page.goto(str(caller.client.base_url))
    wait_for_start(page)
    page.problems = problems
    yield page
    page.screenshot(path=tmp_path / f"{request.param}.png")
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the window"
    assert problems == [] or all("ERR_ABORTED" in problem for problem in problems), problems
    context.close()


def turns(page: Any) -> list[str]:
    return page.locator(".turn").all_inner_texts()


def wait_for_start(page: Any) -> None:
    page.locator("#about", has_text="positions").wait_for(state="attached")


def wait_for_reply(page: Any) -> None:
    page.get_by_role("button", name="Send").wait_for(timeout=60_000)


def test_text_is_continued_by_keyboard_alone(page: Any):
    page.keyboard.type("a red circle")  # the prompt has the focus
    page.keyboard.press("Enter")
    wait_for_reply(page)
    mine, reply = turns(page)
    assert mine == "a red circle"
    assert "positions" in reply and not reply.startswith("(no text)")
    page.keyboard.type("above two")
    page.keyboard.press("Enter")
    wait_for_reply(page)
    assert len(turns(page)) == 4
    page.get_by_role("button", name="New conversation").click()
    wait_for_start(page)
    assert turns(page) == []


def test_an_image_is_added_removed_and_sent(page: Any, photo_png: bytes):
    files = [{"name": f"{n}.png", "mimeType": "image/png", "buffer": photo_png} for n in range(2)]
    page.locator("#files").set_input_files(files)
    page.locator("#thumbs .thumb").nth(1).wait_for()
    page.get_by_role("button", name="Remove image 1").click()
    page.get_by_label("Prompt", exact=True).fill("the image shows")
    page.get_by_role("button", name="Send").click()
    wait_for_reply(page)
    assert page.locator(".turn.mine img").count() == 1
    assert len(turns(page)) == 2


def test_images_are_dropped_and_pasted(page: Any, photo_png: bytes):
    for kind, target in (("drop", "#form"), ("paste", "#prompt")):
        page.evaluate(
            """([kind, target, bytes]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
                const options = {bubbles: true, dataTransfer: transfer, clipboardData: transfer};
                const event = kind === "drop" ? new DragEvent(kind, options) : new ClipboardEvent(kind, options);
                document.querySelector(target).dispatchEvent(event);
            }""",
            [kind, target, list(photo_png)],
        )
    page.locator("#thumbs .thumb").nth(1).wait_for()


def test_an_image_appears_in_its_place_and_can_be_saved(page: Any):
    page.get_by_text("Image", exact=True).click()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Denoising steps").fill("2")
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Prompt", exact=True).fill("a red circle")
    page.get_by_role("button", name="Send").click()
    wait_for_reply(page)
    image = page.get_by_alt_text("The generated image")
    assert image.evaluate("node => node.complete && node.naturalWidth") == 64
    assert page.get_by_role("link", name="Save").get_attribute("download").endswith(".png")
    page.get_by_text("Both", exact=True).click()
    page.get_by_label("Prompt", exact=True).fill("and another")
    page.keyboard.press("Enter")
    wait_for_reply(page)
    assert page.locator(".turn.wrong").count() == 0


def test_errors_are_in_words_and_the_prompt_comes_back(page: Any):
    page.get_by_label("Prompt", exact=True).fill("a red circle [IMG]")
    page.locator("#send").click()
    wait_for_reply(page)
    assert "contains [IMG], a control token" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Prompt", exact=True).input_value() == "a red circle [IMG]"


def test_a_reply_can_be_stopped(page: Any):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Maximum tokens").fill("900")
    page.get_by_label("Temperature").fill("1")
    page.get_by_label("Prompt", exact=True).fill("a red circle")
    page.locator("#prompt").press("Enter")
    stop = page.get_by_role("button", name="Stop")
    stop.click()
    wait_for_reply(page)
    assert page.get_by_role("button", name="Send").is_visible()
    assert page.locator(".turn.wrong").count() == 0


def test_a_server_that_is_gone_is_said(browser: Any, serve_with: Serve):
    page = browser.new_page()
    with serve_with() as caller:
        page.goto(str(caller.client.base_url))
        wait_for_start(page)
    page.get_by_label("Prompt", exact=True).fill("a red circle")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.wrong")
    assert "Failed to fetch" not in page.locator(".turn.wrong").inner_text()
