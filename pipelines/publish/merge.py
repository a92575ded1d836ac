"""Finished datasets published once more as one: what a pipeline of them begins and ends with."""

from pipelines.core.pipeline import Pipeline
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.publish.shards import ShardSink
from pipelines.readers.published import DatasetSource

CARD = Card(
    title="Merged dataset",
    about="Samples of finished datasets, published once more as one; the ledger names the dataset and tar of each.",
    record_word="sample",
)
REPORT = Report(title="Merged dataset", record_word="sample")


def merged_pipeline(roots: tuple[str, ...]) -> Pipeline:
    """The pipeline from finished datasets to one of all their samples; stages are still to be put into it."""
    source = DatasetSource(roots)
    return Pipeline(source.corpus, source, (), ShardSink(), finish=(REPORT, CARD))
