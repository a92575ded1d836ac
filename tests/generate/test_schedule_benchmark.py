"""Both sides of every subject of `benchmarks.schedule` agree."""

from typing import get_args

from benchmarks.random_emu import random_engine
from benchmarks.schedule import Subject, compare


def test_both_sides_of_every_subject_agree() -> None:
    engine = random_engine(width=128, layers=2)
    for subject in get_args(Subject):
        line = compare(subject, engine, num_rounds=1)  # raises where ids differ
        assert line["subject"] == subject
        assert line["largest_difference"] < 1e-4 and line["times_faster"]["median"] > 0
