import pyarrow as pa
import pytest

from pipelines.readers.columns import Column, find_columns
from pipelines.readers.files import InputError

URL = Column("url", pa.string())
CAPTION = Column("caption", pa.string(), ("top_caption", "text"), option="--caption-column")
WIDTH = Column("width", pa.float64(), is_required=False)


def test_names_in_either_case_and_the_preferred_alias_first() -> None:
    assert find_columns([URL, CAPTION, WIDTH], ["URL", "TEXT", "TOP_CAPTION"], "f") == {
        "url": "URL",
        "caption": "TOP_CAPTION",
    }
    assert find_columns([CAPTION, WIDTH], ["Text", "WIDTH"], "f") == {
        "caption": "Text",
        "width": "WIDTH",
    }


def test_a_name_as_written_wins_and_two_in_other_cases_are_refused() -> None:
    assert find_columns([URL], ["URL", "url"], "f") == {"url": "url"}
    with pytest.raises(InputError, match=r"'f': column 'url' is there 2 times \(URL, Url\)"):
        find_columns([URL], ["URL", "Url"], "f")


def test_a_missing_column_is_named_with_what_is_there_and_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        find_columns([URL, CAPTION], ["URL", "CAPTIONS", "texts"], "part.parquet")
    message = str(error.value)
    assert message.startswith("'part.parquet': no column 'top_caption' or 'text' (--caption-column")
    assert "there are: URL, CAPTIONS, texts; the nearest is 'texts'" in message
    with pytest.raises(InputError, match=r"there are: none$"):
        find_columns([URL], [], "f")
