"""YT-Storyboard: from the records of videos to samples of frames and subtitles.

Stages, each from shard to shard:

| stage    | steps                                                                                        |
|----------|----------------------------------------------------------------------------------------------|
| parse    | a record becomes the plan of a video: a level of its storyboard, times, sheets and subtitles |
| fetch    | sheets and subtitles are fetched, or read from the media folder                              |
| assemble | sheets are cut into frames, frames and subtitles merged by time, and the video cut into samples |

A video of which only some sheets arrive keeps their frames. The sample: frames and texts with their `time_s`, in the
order of time, see `pipelines.storyboards.timeline`. Its key is that of the
video, and the number of the part. Its `meta`:

| field                 | meaning                                                                           |
|-----------------------|-----------------------------------------------------------------------------------|
| video_id, duration_s  | of the video; seconds, or null                                                    |
| source, record        | name of the input file, without its folder, and line number in it                 |
| part, num_parts       | number of the sample among those of the video, from 0                             |
| positions             | positions of the sample, at most `max_positions`                                  |
| level, columns, rows, count | of the storyboard: grid of a sheet, frames in all                           |
| interval_s, interval_source | seconds between frames, and where that is from (`levels.Timing`)            |
| frame                 | for each image segment its number in the storyboard                               |
| language, automatic_subtitles | of the subtitles; null where there are none, or where it is not known     |
| subtitles_slot        | the link that led to them; null where the record held them                        |
| text_cues             | for each text segment the start (seconds) and length (characters) of its subtitles |
| unreadable_cues, unreadable_levels | what could not be read: number of subtitles, levels in words         |

Source: the released tools of Emu (storyboards), with the times of the storyboard instead of duration over count.
"""

import hashlib
from dataclasses import asdict

from pipelines.core.division import Divide
from pipelines.core.pipeline import Pipeline, Source, Stage
from pipelines.corpora.build import Build
from pipelines.corpora.yt_storyboard.assemble import AssembleSamples, tokenizer_bytes
from pipelines.corpora.yt_storyboard.options import Rules
from pipelines.corpora.yt_storyboard.sheets import BodyContent
from pipelines.corpora.yt_storyboard.videos import ParseVideos
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.readers.json_records import RecordSource

__all__ = ["CARD", "CORPUS", "READER", "REPORT", "Rules", "pipeline"]

CORPUS = "yt_storyboard"
READER = RecordSource
"""Reads the input files: a video per line, or per `.json` file."""
REPORT = Report(title="YT-Storyboard dataset", record_word="sample")
CARD = Card(
    title=REPORT.title,
    about="Videos as the frames of their storyboards and their subtitles, in the order of time.",
    sources=("https://arxiv.org/abs/2307.05222",),
    licence="Frames and subtitles belong to the owners of the videos.",
)


def pipeline(build: Build[Source], rules: Rules) -> Pipeline:
    """The pipeline from records of videos, each in the column `line`, to published samples."""
    stages = (
        Stage("parse", (ParseVideos(rules, build.media is not None),)),
        build.fetch_stage(BodyContent()),
        Stage("assemble", (Divide(AssembleSamples(rules)),)),
    )
    config = {**asdict(rules), "tokenizer": _digest(rules.tokenizer)}
    return build.pipeline(CORPUS, stages, config, REPORT, CARD)


def _digest(tokenizer: str | None) -> str | None:
    """A tokenizer counts by its contents, not by its name."""
    return tokenizer and hashlib.sha256(tokenizer_bytes(tokenizer)).hexdigest()
