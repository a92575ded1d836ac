"""What the paper left out of LLaVA's instruction data: detailed descriptions, and a pattern of its answers.

Of LLaVA's 158K dialogues the paper keeps about 130K: without the detailed descriptions (23K) and without those in
which "on top of the back of" occurs. The file of 158K does not tell the three kinds of dialogues apart, but the
detailed descriptions are one question each, always one of ten (`detail_23k.json`; where the three files are at hand,
leave that one out instead).

Sources: Emu, section 3 and appendix; LLaVA-Instruct-150K as released.
"""

import re
from collections.abc import Sequence

from pipelines.core.pipeline import Reason, Reasons, Rejected
from pipelines.corpora.instruct.forms import Dialogue
from pipelines.corpora.instruct.turns import CleanTurn

PAPER_FILTER_REASONS: Reasons = {
    "detailed_description": Reason(
        "One of the ten requests for a detailed description of an image, which the paper excluded."
    ),
    "answer_pattern": Reason(
        "An answer about an image contains a pattern that the paper excluded."
    ),
}

PATTERN = "on top of the back of"
DETAILED_QUESTIONS = frozenset(
    {
        "analyze the image in a comprehensive and detailed manner",
        "can you describe the main features of this image for me",
        "can you elaborate on the elements of the picture provided",
        "describe the following image",
        "explain the visual content of the image in great detail",
        "what are the key elements in this picture",
        "what do you see happening in this image",
        "what do you think is going on in this snapshot",
        "what's happening in the scene",
        "write a detailed description of the given image",
    }
)
"""In lower case, without the mark at the end."""


def check_against_paper(dialogue: Dialogue, turns: Sequence[CleanTurn]) -> None:
    """Raise `Rejected` if the paper left such a dialogue about an image out."""
    if not any(medium.kind == "image" for medium in dialogue.media):
        return
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and PATTERN in re.sub(r"\s+", " ", turn.text.lower()):
            raise Rejected("answer_pattern", f"turn {number}: '{PATTERN}'")
    question = turns[0].text.strip().lower().rstrip(".?!")
    if len(turns) == 2 and question in DETAILED_QUESTIONS:
        raise Rejected("detailed_description", f"'{question}'")
