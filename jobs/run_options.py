"""The options that every training of Emu has, and what a run of them would need (`--plan`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from emu.config import Count, EmuConfig, Positive, SequenceConfig
from emu.recipes import Parallel, TrainConfig
from jobs.cli import JobError, checked_options
from jobs.paths import job_path
from jobs.progress import say
from jobs.training import Workers, check_processes
from schemas.validation import Checked


@dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """Options of every training of Emu: its folder, its length, where it runs, and what it would need."""

    out: str
    """Folder of the run. With workers on several nodes, all of them must see it."""
    checkpoints: str | None = None
    """Folder or fsspec address of the checkpoints, such as s3://bucket/run; one per run. None: OUT/checkpoints."""
    steps: Count | None = None
    """Total number of optimizer steps. None: --train.steps."""
    batch_size: Count | None = None
    """Sequences per micro-batch and worker, for every corpus. None: --train.batch-size."""
    seed: int | None = None
    """Seed of new weights, sample order and dropout masks. None: --train.seed."""
    use_features: bool = False
    """Train on the features that `emu features` computed. The visual encoder then stays frozen.
    Features of an encoder with other weights are refused."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: resume the run in OUT if there is one, otherwise start a new one.
    must: fail if there is no run to resume. never: fail if there is one."""
    compare: tuple[str, ...] = ()
    """Folders of up to five other runs to show beside this one in OUT/report.html."""
    plan: bool = False
    """Print what the run needs (memory per GPU, operations per step, days) and exit; exit code 1 if it does not fit.
    --data then takes names and weights of corpora, such as laion:3 mmc4:1 (without it: the paper's corpora).
    --out is not needed."""
    gpu_memory_gb: Positive = 80.0
    """Memory of one GPU in GB (10^9 bytes), for --plan."""
    gpu_tflops: Positive = 989.5
    """Peak of one GPU in bfloat16 TFLOP/s, for --plan. The default is that of an H100."""
    num_workers: Annotated[int, Field(ge=0, description="0 trains without Ray")] = 2
    """Workers of Ray Train, each with one core or one GPU. 0: train in this process, without Ray."""
    parallel: Parallel | None = None
    """How several workers share the model: full copies (ddp) or sharded weights (fsdp, hsdp).
    None: --train.parallel. Its default, auto, is fsdp on GPUs and ddp on CPUs."""
    num_processes: Annotated[int, Field(ge=1)] = 1
    """With --num-workers 0: processes on this machine that share its cores, without Ray."""
    num_cpus: Count | None = None
    """CPU cores for the local Ray that the job starts. None: all, but at least one per worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """End the run with an error after more than this number of worker failures."""
    min_workers: Count | None = None
    """Train on as few Ray workers as this while others are missing, and on more when they arrive.
    The batches stay those of --num-workers. None: wait for all workers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_processes(self.num_processes, self.num_workers)

    @property
    def workers(self) -> Workers:
        """Where the run is trained."""
        return Workers(
            self.num_workers, self.num_processes, self.num_cpus, self.max_failures, self.min_workers
        )

    def config(self, train: TrainConfig) -> TrainConfig:
        """The recipe's training, changed by --steps, --batch-size, --seed, --parallel and --use-features."""
        given = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "parallel": self.parallel,
        }
        changes: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        if self.batch_size is not None:
            changes["corpus_batch_size"] = {}
        if self.use_features:
            changes["freeze_vision"] = True
        return replace(train, **changes)

    def checkpoint_address(self) -> str | None:
        """The address of `--checkpoints`, made absolute."""
        return None if self.checkpoints is None else job_path(self.checkpoints)

    def forecast(
        self, model: EmuConfig, train: TrainConfig, lengths: SequenceConfig, data: Sequence[str]
    ) -> str:
        """What the run would need on `data`, in words; raises JobError if it does not fit, with what would."""
        from emu.data.mixture import parse_corpus
        from emu.train.flops import step_cost
        from emu.train.forecast import Cluster, alternatives, described, forecast

        with checked_options():
            config = self.config(train)
            parsed = [parse_corpus(word) for word in data]
            corpora = [(c.name or Path(c.address).name, c.weight) for c in parsed]
            cluster = Cluster(max(1, self.num_workers), self.gpu_memory_gb, self.gpu_tflops)
        say("measuring the parts of the model")
        is_sharded = config.parallel != "ddp" and cluster.num_workers > 1  # auto: fsdp on GPUs
        found = forecast(model, config, lengths, cluster, corpora, is_sharded, self.use_features)
        cost = step_cost(
            model, config.freeze_vision, self.use_features, config.recompute_activations
        )
        text = described(found, config, cluster, cost)
        if found.fits:
            return text
        others = list(alternatives(model, config, lengths, cluster, corpora, is_sharded))
        raise JobError(
            f"the run does not fit: {found.memory.peak / 1e9:.1f} GB per GPU, the limit is {found.limit_gb:.1f} GB; "
            f"what would: {'; '.join(others) or 'no change of options'}",
            summary=text,
        )
