"""The application's options, as Ray Serve's own commands give them, and what `serve build` writes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from emu.serve.limits import Limits
from emu.serve.options import ServeOptions, options_of
from jobs import serve
from schemas.validation import ConfigError
from tests.exit_codes import exit_code


def test_texts_become_options() -> None:
    arguments = {
        "model": "/m",
        "num_replicas": "2",
        "max_replicas": "4",
        "num_gpus": "0.5",
        "limits.timeout_s": "30",
        "cors_origins": "https://a.example,https://b.example",
        "api_keys": "/k",
    }
    assert options_of(arguments) == ServeOptions(
        Path("/m"),
        num_replicas=2,
        max_replicas=4,
        num_gpus=0.5,
        api_keys=Path("/k"),
        cors_origins=("https://a.example", "https://b.example"),
        limits=Limits(timeout_s=30),
    )


def test_values_of_a_configuration_become_options() -> None:
    arguments = {"model": "/m", "limits": {"max_images": 3}, "cors_origins": ["*"], "num_cpus": 2}
    assert options_of(arguments) == ServeOptions(
        Path("/m"), num_cpus=2, cors_origins=("*",), limits=Limits(max_images=3)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "model is missing"),
        (
            {"model": "/m", "num_replica": "2"},
            "num_replica is not a known option; did you mean num_replicas",
        ),
        ({"model": "/m", "num_replicas": "two"}, "num_replicas is 'two'"),
        ({"model": "/m", "num_replicas": "0"}, "num_replicas is 0|num_replicas is '0'"),
        ({"model": "/m", "limits.timeout": "3"}, "did you mean limits.timeout_s"),
        ({"model": "/m", "num_replicas": 3, "max_replicas": 2}, "max_replicas is 2, give at least"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        options_of(arguments)


def test_an_open_address_needs_keys_or_consent(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(serve.main, ["--model", tiny_dir, "--host", "0.0.0.0"]) == 2
    assert "--api-keys FILE, or --allow-anyone" in capsys.readouterr().err
    (tmp_path / "keys.toml").write_text("[a]\nrate = 1\n")
    arguments = ["--model", tiny_dir, "--api-keys", tmp_path / "keys.toml"]
    assert exit_code(serve.main, arguments) == 2
    assert "unknown field rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("a.example", False),
    ],
)
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert serve.is_loopback(host) is expected


@pytest.mark.slow
def test_serve_build_writes_a_configuration(
    tiny_dir: Path, tmp_path: Path, repository: Path
) -> None:
    arguments = {"model": str(tiny_dir), "num_replicas": 2, "max_replicas": 5, "drain_s": 7}
    (tmp_path / "served.py").write_text(
        f"from emu.serve.app import build\n\napp = build({arguments!r})\n"
    )
    program = Path(sys.executable).with_name("serve")
    written = tmp_path / "config.yaml"
    command = [program, "build", "--app-dir", tmp_path, "served:app", "-o", written]
    subprocess.run(command, cwd=repository, check=True, capture_output=True, timeout=100)
    (application,) = yaml.safe_load(written.read_text())["applications"]
    assert application["import_path"] == "served:app" and application["route_prefix"] == "/"
    deployments = {each["name"]: each for each in application["deployments"]}
    assert set(deployments) == {"ingress", "engine"}
    engine = deployments["engine"]
    assert engine["graceful_shutdown_timeout_s"] == 7 and engine["max_queued_requests"] == 64
    scaling = engine["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 5)
    assert scaling["target_ongoing_requests"] == 3


@pytest.mark.slow
def test_the_configuration_of_the_guide_is_valid(tiny_dir: Path, repository: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    text = (repository / "docs" / "serve_config.yaml").read_text()
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (application,) = config.applications
    assert application.import_path == "emu.serve.app:build"
    options = options_of(application.args | {"model": str(tiny_dir)})
    assert options.max_replicas and options.max_replicas > options.num_replicas
