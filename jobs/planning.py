"""What a build would do, before anything is fetched: `--dry-run` on all records, `--estimate` from a sample."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from schemas.validation import Checked

if TYPE_CHECKING:
    from pipelines.core.pipeline import Pipeline
    from pipelines.core.stage_runner import Runner
    from schemas.manifest import Manifest

SAMPLED_SHARDS = 20


@dataclass(frozen=True)
class Rates(Checked):
    """Assumptions of --estimate: rates measured with this platform, and typical sizes of web images."""

    links_per_s: Annotated[float, Field(gt=0, le=1e7, description="links per second")] = 240.0
    """Links per second of all workers together. 240 is one core over https with a new connection for each link.
    Multiply by the number of cores, as far as network and name servers allow."""
    link_kb: Annotated[float, Field(gt=0, le=1e6, description="kB per link")] = 120.0
    """Kilobytes to download per link that still works. Images on the web average 110 to 130."""
    arriving: Annotated[float, Field(ge=0, le=1, description="a fraction of the links")] = 0.6
    """Fraction of the links, 0 to 1, that still lead to an image: 0.5 to 0.8 for LAION, less each year."""
    kept_kb: Annotated[float, Field(gt=0, le=1e6, description="kB per image")] = 30.0
    """Kilobytes per published image: 20 to 40 for photos at --side 256. It grows with the square of the side."""


def dry_run(pipeline: "Pipeline", noun: str, out: str, runner: "Runner") -> str:
    """Run everything but the fetch on all records, with the ledger in `OUT.dry_run`; returns the counts in words."""
    from pipelines.core.run import run
    from pipelines.readers.files import refuse_overlap

    began, where = time.monotonic(), dry_run_folder(out)
    source = pipeline.source
    refuse_overlap(
        getattr(source, "patterns", ()), getattr(source, "base", "."), where, pipeline.dataset
    )
    manifest = run(pipeline, where, runner, overwrite=True)
    seconds = time.monotonic() - began
    lines = [
        "",
        *_counts(manifest, pipeline, noun),
        "",
        f"ledger     {where}/ledger",
        f"time       {seconds:.1f} s, {manifest.records.total / seconds:,.0f} {noun} per second",
    ]
    return "\n".join(lines)


def dry_run_folder(out: str) -> str:
    """Where the ledger of a dry run goes."""
    return f"{out.rstrip('/')}.dry_run"


def estimate(pipeline: "Pipeline", noun: str, rates: Rates) -> str:
    """Links, bytes, hours and disk of a build, from the plan of its inputs and a sample of their records.

    Args:
        pipeline: the dry one.
        noun: what its records are called.
        rates: what is reckoned with.
    """
    from pipelines.core.run import run
    from pipelines.publish.report import size
    from pipelines.transforms.dry_run import NOT_FETCHED, SampledSource

    shards = pipeline.source.plan(pipeline.dataset)
    total = sum(shard.num_records or 0 for shard in shards)
    sampled = replace(pipeline, source=SampledSource.of(pipeline.source, shards, SAMPLED_SHARDS))
    with tempfile.TemporaryDirectory(prefix="emu-estimate-") as folder:
        manifest = run(sampled, str(Path(folder, "sample")), progress=False)
    share = total / max(manifest.records.total, 1)
    links = round(manifest.links.dropped.get(NOT_FETCHED, 0) * share)
    arriving = round(links * rates.arriving)
    lines = [
        f"{noun:<11}{total:>16,} in {len(shards):,} shards. Of a sample of {manifest.records.total:,}:",
        *_counts(manifest, pipeline, noun),
        "",
        f"links      {links:>16,} to fetch",
        f"arriving   {arriving:>16,} at {100 * rates.arriving:g} % (--rates.arriving)",
        f"download   {size(round(arriving * rates.link_kb * 1e3)):>16} at {rates.link_kb:g} kB (--rates.link-kb)",
        f"time       {links / rates.links_per_s / 3600:>14,.1f} h at {rates.links_per_s:g} links per second "
        "(--rates.links-per-s)",
        f"disk       {size(round(arriving * rates.kept_kb * 1e3)):>16} at {rates.kept_kb:g} kB (--rates.kept-kb)",
    ]
    return "\n".join(lines)


def planned(
    pipeline: "Pipeline", noun: str, out: str, rates: Rates | None, runner: "Runner"
) -> str:
    """The estimate where there are rates, else the dry run."""
    from pipelines.transforms.dry_run import without_fetch

    dry = without_fetch(pipeline)
    return dry_run(dry, noun, out, runner) if rates is None else estimate(dry, noun, rates)


def _counts(manifest: "Manifest", pipeline: "Pipeline", noun: str) -> list[str]:
    from pipelines.transforms.dry_run import NOT_FETCHED

    lines = []
    for name, tally in ((noun, manifest.records), ("links", manifest.links)):
        wanted = tally.dropped.get(NOT_FETCHED, 0)
        share = f" ({100 * wanted / tally.total:.1f} %)" if tally.total else ""
        lines += [f"{name:<10} {tally.total:>10,}", f"  to fetch {wanted:>10,}{share}"]
        ranked = sorted(tally.dropped.items(), key=lambda item: (-item[1], item[0]))
        lines += [
            f"  dropped  {n:>10,}  {word:<24} {pipeline.reasons[word].meaning}"
            for word, n in ranked
            if word != NOT_FETCHED
        ]
    return lines
