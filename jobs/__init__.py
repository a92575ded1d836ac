"""The jobs: command-line entry points, each a file that runs alone and a subcommand of `emu`.

A job is a file of this form. At the top it imports what its options need and nothing heavier, so that `--help` and a
wrong option are answered at once; the work imports torch, transformers or Ray when it begins.

    @dataclass(frozen=True)
    class CountWords(Checked):
        '''Counts the words of a dataset.'''  # the help text

        data: str
        '''Folder or address of a finished dataset.'''

    def count_words(options: CountWords) -> str:
        from emu.data.dataset import ShardReader

        ...
        return summary

    def main(arguments: Sequence[str] | None = None) -> int:
        '''Run the job and return its exit code (see `jobs.cli`).'''
        return run_job(CountWords, count_words, arguments)

    if __name__ == "__main__":
        sys.exit(main())

and a line of `COMMANDS`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A subcommand of `emu`."""

    module: str
    """In this folder; its `main` is called."""
    summary: str
    """A line of help."""
    extra: str
    """Of `pip install 'emu-platform[EXTRA]'`: what its work imports."""


COMMANDS = {
    "build laion": Command(
        "build_laion", "Build a dataset from LAION metadata: fetch images, write pairs", "data"
    ),
    "build mmc4": Command(
        "build_mmc4", "Build a dataset from MMC4 documents: fetch images, write shards", "data"
    ),
    "build obelics": Command(
        "build_obelics",
        "Build a dataset from OBELICS documents: fetch images, write shards",
        "data",
    ),
    "build yt-storyboard": Command(
        "build_yt_storyboard", "Build a dataset from storyboards and subtitles of videos", "data"
    ),
    "build webvid": Command(
        "build_webvid", "Build a dataset from WebVid clips: frames and captions", "data"
    ),
    "build instruct": Command(
        "build_instruct",
        "Build a dataset of dialogues from instruction data in five formats",
        "data",
    ),
    "build miniworld": Command(
        "build_miniworld",
        "Write a synthetic world in the file format of a corpus, for trials",
        "data",
    ),
    "build pairs": Command(
        "build_pairs", "Build a dataset of synthetic image-text pairs; needs no download", "data"
    ),
    "dedup": Command("dedup", "Merge datasets into one and remove their duplicates", "data"),
    "filters": Command(
        "list_filters", "List the filters for --filters: parameters, defaults, reasons", "data"
    ),
    "adopt": Command(
        "adopt_shards",
        "Turn existing webdataset shards into a dataset without copying them",
        "data",
    ),
    "inspect": Command(
        "inspect_shards",
        "Show a dataset (counts, samples, one record, a page) and check its files",
        "data",
    ),
    "export": Command(
        "export_dataset", "Write a dataset as Parquet tables that `datasets` opens", "data"
    ),
    "features": Command(
        "precompute_features", "Compute the visual encoder's outputs for a dataset", "data"
    ),
    "train-visual": Command(
        "train_visual", "Pretrain the visual encoder of a small model from captions", "train"
    ),
    "train": Command("train_emu", "Train Emu on a dataset", "train"),
    "train-instruct": Command(
        "train_instruct", "Tune a trained model on dialogues with low-rank adapters", "train"
    ),
    "train-decoder": Command(
        "train_decoder", "Train the visual decoder of a trained model", "train"
    ),
    "report": Command(
        "report_runs", "Write the report of a training, compared with other runs", "train"
    ),
    "convert": Command(
        "convert_checkpoint",
        "Import released Emu weights, or export a model to their format",
        "train",
    ),
    "evaluate": Command("evaluate", "Score the outputs of a model against references", "eval"),
    "serve": Command("serve", "Serve a model over HTTP, with a chat page", "serve"),
    "demo": Command("demo", "Run the whole workflow on a synthetic world", "all"),
}
"""The subcommands by name, in the order of the workflow."""
