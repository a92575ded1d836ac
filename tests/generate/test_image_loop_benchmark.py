"""Every subject of `benchmarks.image_loop` runs, and the next token comes one step after an image."""

from typing import get_args

from benchmarks.image_loop import Comparison, Subject, lines


def test_every_subject_gives_its_line() -> None:
    subjects: tuple[Subject, ...] = get_args(Subject)
    options = Comparison(subjects, 1, 6, 2, width=128, layers=1, channels=32)
    found = {line["subject"]: line for line in lines(options)}
    assert set(found) == set(subjects)
    assert found["step"]["steps_to_next_token"] == 1
    assert found["gap"]["p95_ratio"] > 0 and found["reply"]["wall_ratio"] > 0
