"""The page of the demo that shows what a served model replied."""

from pathlib import Path

from jobs.demo_client import Asked, held_out_picture, write_replies


def test_replies_stand_beside_their_pictures_and_fit_a_narrow_window(tmp_path: Path):
    png = held_out_picture(1).png
    asked = Asked("a heart", "<b>", "How many?", "one", "two", shown=png, drawn=png)
    page = write_replies([asked], tmp_path / "pictures", "short & simple").read_text()
    assert (tmp_path / "pictures" / "shown1.png").read_bytes() == png
    assert "<b>&lt;b&gt;</b>" in page and "short &amp; simple" in page
    assert 'name="viewport"' in page and "max-width:44rem" in page
    assert "drawn when asked for" in page  # its heading, where the columns are stacked
    assert "color-scheme:light dark" in page and "color:#222" not in page
