"""A run on the Ray of an address, as a program: `python -m tests.train.elastic_run ADDRESS PLAN [MIN_WORKERS]`."""

import pickle
import sys
from pathlib import Path

import ray

from emu.train.ray_trainer import train_on_ray

RESIZE_S = 3.0


def main(address: str, plan: str, min_workers: str = "1") -> None:
    """Train the pickled plan on up to two workers."""
    ray.init(
        address=address, log_to_driver=True, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}
    )
    train_on_ray(
        pickle.loads(Path(plan).read_bytes()), 2, min_workers=int(min_workers), resize_s=RESIZE_S
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
