"""Ctrl-C: one line, status 130, and a start after it that ends in the same bytes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.build_mmc4 import main
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.mmc4 import write_mmc4
from pipelines.miniworld.server import ImageServer
from tests.interrupts import interrupted
from tests.mmc4.test_restart import contents

GOES_ON = "stopped; the same command resumes where it stopped"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupt") / "world"
    write_mmc4(MiniworldConfig(num_documents=60, bad_share=0.3), folder)
    return folder


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[ImageServer]:
    with ImageServer(world / "images", retry_after_s=0) as found:
        yield found


@pytest.fixture(scope="module")
def whole(world: Path, server: ImageServer) -> dict[str, bytes]:
    """What a build makes that nobody stops."""
    out = world.parent / "whole"
    assert main([*options(world, server, out), "--runner", "local"]) == 0
    return contents(out)


def options(world: Path, server: ImageServer, out: Path) -> list[str]:
    return [
        *("--documents", f"{world}/documents/*", "--out", str(out)),
        *("--fetch.allow-host", server.allow_host, "--samples-per-shard", "5"),
    ]


# As links are being fetched; as the plan is made; as a shard is published.
MOMENTS = [
    ".work/01-parse/mmc4-000003.arrow",
    pytest.param(".work/plan.json", marks=pytest.mark.slow),
    pytest.param("shards/mmc4-000001.tar", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_build_that_is_stopped_goes_on(
    repository: Path,
    world: Path,
    server: ImageServer,
    whole: dict[str, bytes],
    tmp_path: Path,
    moment: str,
):
    out = tmp_path / "out"
    given = [*options(world, server, out), "--runner", "local"]
    ended = interrupted(repository, (out / moment).exists, "jobs.build_mmc4", *given)
    assert (ended.exit_code, ended.last_line) == (130, GOES_ON), ended.error
    assert "Traceback" not in ended.error and not (out / "manifest.json").exists()
    assert main(given) == 0
    assert contents(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_a_build_on_ray_that_is_stopped_goes_on(
    repository: Path,
    world: Path,
    server: ImageServer,
    whole: dict[str, bytes],
    tmp_path: Path,
    to_all: bool,
):
    out = tmp_path / "out"
    given = [*options(world, server, out), "--num-cpus", "2"]
    is_time = (out / "shards/mmc4-000001.tar").exists
    ended = interrupted(repository, is_time, "jobs.build_mmc4", *given, to_all=to_all)
    assert (ended.exit_code, ended.last_line) == (130, GOES_ON), ended.error
    assert "Traceback" not in ended.error and not (out / "manifest.json").exists()
    assert main([*given, "--runner", "local"]) == 0
    assert contents(out) == whole
