"""`ray_cluster.yaml` against Ray's own reading and validation."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

NODES = ("head_node_type", "available_node_types")


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "ray_cluster.yaml").read_text()


def validated(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as the launcher completes it; raises where Ray would refuse it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster(text: str) -> None:
    prepared = validated(yaml.safe_load(text))
    pools = prepared["available_node_types"]
    assert set(pools) == {"head", "cpu_pool", "gpu_pool"}
    assert prepared["head_node_type"] == "head" and pools["head"]["resources"] == {"CPU": 0}
    assert pools["cpu_pool"]["resources"]["CPU"] > 0
    assert pools["gpu_pool"]["resources"]["GPU"] > 0
    assert pools["head"]["max_workers"] == 0  # Ray's completion: no second head
    assert all(0 <= pools[name]["min_workers"] <= pools[name]["max_workers"] for name in pools)
    limit = sum(pools[name]["max_workers"] for name in pools)
    assert prepared["max_workers"] == limit


def test_every_machine_gets_files_limits_and_versions(text: str, repository: Path) -> None:
    config = yaml.safe_load(text)
    assert set(config["file_mounts"].values()) == {"."}
    commands = "\n".join(config["setup_commands"])
    assert "--constraint constraints.txt" in commands and "--editable '.[all,s3]'" in commands
    assert (repository / "constraints.txt").is_file()
    for role in ("head", "worker"):
        assert "ulimit -n 65536" in "\n".join(config[f"{role}_start_ray_commands"])


def test_ray_accepts_the_variant_for_own_machines(text: str) -> None:
    lines = [line.removeprefix("#:")[1:] for line in text.splitlines() if line.startswith("#:")]
    config = {k: v for k, v in yaml.safe_load(text).items() if k not in NODES}
    prepared = validated(config | yaml.safe_load("\n".join(lines)))
    assert prepared["provider"]["type"] == "local"
    assert prepared["max_workers"] == len(prepared["provider"]["worker_ips"])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"max_workerz": 3}, jsonschema.ValidationError),
        ({"max_workers": "many"}, jsonschema.ValidationError),
        ({"head_node_type": "absent"}, ValueError),
    ],
)
def test_ray_refuses_a_broken_cluster(text: str, change: dict[str, Any], error: type) -> None:
    """The check above would notice a mistake."""
    with pytest.raises(error):
        validated(yaml.safe_load(text) | change)
