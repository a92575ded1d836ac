"""The Ray that a job runs on: the cluster it was submitted to, or a local one of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.core.pipeline import ShardPlan
    from pipelines.core.stage_runner import Operator

log = logging.getLogger(__name__)


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the duration of the block.

    Inside `ray job submit`, or where `RAY_ADDRESS` is set, that cluster is used and left running. Otherwise
    a local Ray is started (with `num_cpus`, by default all cores) and stopped at the end. A process that is
    already connected keeps its connection.
    """
    import ray  # takes a second, and jobs in one process do not need it

    if ray.is_initialized():
        yield
        return
    address = cluster_address(os.environ)
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    log.info("ray address=%s cpus=%s", address or "local", ray.cluster_resources().get("CPU"))
    try:
        yield
    finally:
        ray.shutdown()


def cluster_address(environment: Mapping[str, str]) -> str | None:
    """The cluster to connect to by `RAY_ADDRESS`; None if it is not set.

    Raises ValueError for the address of a dashboard, which `ray job submit` takes from the same variable.
    """
    address = environment.get("RAY_ADDRESS")
    if address and address.lower().startswith(("http://", "https://")):
        raise ValueError(
            f"RAY_ADDRESS is {address}, the dashboard to which `ray job submit` sends jobs; a job that is started "
            "directly connects to HOST:6379 (or auto, on a machine of the cluster): set that, or submit the job"
        )
    return address


@dataclass(frozen=True)
class RunnerOnDemand:
    """A runner that connects to Ray when the first shard is to be built, so that a refused folder starts nothing."""

    sessions: ExitStack
    """Ends the session; the caller closes it."""
    num_cpus: int | None = None
    gpu_per_worker: bool = False
    """Give every worker one GPU where the cluster has any."""

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        """Yield each shard when it is done, in the order of completion."""
        import ray

        from pipelines.core.run_ray import RayRunner

        self.sessions.enter_context(ray_session(self.num_cpus))
        if self.gpu_per_worker and ray.cluster_resources().get("GPU", 0) > 0:
            operators = [replace(o, resources=replace(o.resources, num_gpus=1)) for o in operators]
        return RayRunner().run(operators, shards)
