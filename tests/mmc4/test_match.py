import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.corpora.mmc4.rules import (
    MatchDocuments,
    ParseDocuments,
    Rules,
    choose_images,
    match_images,
)

LOW = Rules(min_similarity=-1)


def test_images_below_the_threshold_to_every_sentence_are_not_fetched():
    similarity = [[0.31, 0.1], [0.1, 0.32], [0.33, 0.4]]
    outcomes = choose_images(similarity, ["a", "b"], Rules(0.32))
    assert [o.reason for o in outcomes] == ["low_similarity", None, None]
    assert outcomes[0].detail == "0.3100 is below 0.32"


def test_the_most_similar_images_stay_and_ties_go_to_the_earlier():
    similarity = [[0.3], [0.5], [0.3], [0.4], [0.1]]
    outcomes = choose_images(similarity, ["a"], Rules(0.2, max_images=3))
    reasons = [o.reason for o in outcomes]
    assert reasons == [None, None, "over_max_images", None, "low_similarity"]


def test_the_similarity_to_a_blank_sentence_does_not_count():
    outcomes = choose_images([[0.2, 0.9]], ["a", " "], Rules(0.3))
    assert outcomes[0].reason == "low_similarity"
    assert match_images([[0.2, 0.9]], ["a", " "], [0], LOW)[0].text_index == 0


def test_assignment_is_solved_again_over_what_arrived():
    # Released for three images: 0 -> sentence 1, 1 -> 0, 2 -> 2. Without image 1, sentence 0 is free.
    similarity = [[0.35, 0.30, 0.1], [0.40, 0.1, 0.1], [0.1, 0.2, 0.33]]
    full = match_images(similarity, ["a", "b", "c"], [0, 1, 2], LOW)
    assert {i: o.text_index for i, o in full.items()} == {0: 1, 1: 0, 2: 2}
    rest = match_images(similarity, ["a", "b", "c"], [0, 2], LOW)
    assert {i: o.text_index for i, o in rest.items()} == {0: 0, 2: 2}
    assert rest[0].similarity == 0.35


def test_more_images_than_sentences_leave_some_unassigned():
    outcomes = match_images([[0.3], [0.5], [0.4]], ["a"], [0, 1, 2], LOW)
    assert [o.reason for o in outcomes.values()] == ["unassigned", None, "unassigned"]


def test_an_assigned_similarity_below_the_threshold_drops_the_image():
    similarity = [[0.4, 0.1], [0.38, 0.2]]
    outcomes = match_images(similarity, ["a", "b"], [0, 1], Rules(0.32))
    assert outcomes[0].text_index == 0
    assert outcomes[1].reason == "low_similarity_assigned"


def test_nothing_arrived():
    assert match_images([[0.4]], ["a"], [], LOW) == {}


@pytest.mark.parametrize("value", [30.0, 1.01, -2.0, float("nan")])
def test_thresholds_outside_the_range_of_cosines_are_refused(value: float):
    with pytest.raises(ValueError, match=rf"min_similarity is {value}, give a "):
        Rules(value)
    with pytest.raises(ValueError, match="max_images is 0, give a whole number of at least 1"):
        Rules(max_images=0)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_assignment_is_the_best_of_all(data: st.DataObject):
    num_images, num_texts = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    value = st.floats(-1, 1, width=16)
    row = st.lists(value, min_size=num_texts, max_size=num_texts)
    similarity = data.draw(st.lists(row, min_size=num_images, max_size=num_images))
    outcomes = match_images(similarity, ["x"] * num_texts, list(range(num_images)), LOW)
    placed = {o.text_index: i for i, o in outcomes.items() if o.reason is None}
    assert len(placed) == min(num_images, num_texts)
    assert {o.reason for o in outcomes.values()} <= {
        None,
        *ParseDocuments.reasons,
        *MatchDocuments.reasons,
    }
    total = sum(similarity[i][j] for j, i in placed.items())
    if num_images <= num_texts:
        ways = itertools.permutations(range(num_texts), num_images)
        best = max(sum(similarity[i][j] for i, j in enumerate(way)) for way in ways)
    else:
        ways = itertools.permutations(range(num_images), num_texts)
        best = max(sum(similarity[i][j] for j, i in enumerate(way)) for way in ways)
    assert total == pytest.approx(best)
