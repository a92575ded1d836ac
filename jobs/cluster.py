"""The Ray that a job runs on: the cluster it was submitted to, or a local one of its own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

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


def start_logging(level: int = logging.INFO) -> None:
    """Log lines of `key=value` to standard error."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
