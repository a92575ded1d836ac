"""The Ray that a job runs on: the cluster it was submitted to, or a local one of its own."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import ray

from pipelines.core.pipeline import ShardPlan
from pipelines.core.run_ray import RayRunner
from pipelines.core.stage_runner import Operator

log = logging.getLogger(__name__)


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the length of the block.

    Inside `ray job submit`, or where `RAY_ADDRESS` is set, that cluster is used and left running. Else
    a local Ray is started (with `num_cpus`, by default all cores) and stopped at the end. An already
    connected process is left as it is.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
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


@dataclass(frozen=True)
class RunnerOnDemand:
    """A runner that connects to Ray when there is work to do, and not for a folder that refuses it."""

    sessions: ExitStack
    """Ends the session; the caller closes it."""
    num_cpus: int | None = None

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        """Yield each shard when it is done, in the order of completion."""
        self.sessions.enter_context(ray_session(self.num_cpus))
        return RayRunner().run(operators, shards)


def start_logging(level: int = logging.INFO) -> None:
    """Log lines of `key=value` to standard error."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
