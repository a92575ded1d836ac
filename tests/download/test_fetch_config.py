from pathlib import Path
from typing import Any

import pytest
import tyro

from pipelines.download.config import parse_allowed_hosts
from pipelines.download.fetcher import FetchConfig


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"concurrency": 0}, ["concurrency", "0", "1 to 4,096"]),
        ({"deadline_s": -1.0}, ["deadline_s", "-1.0", "seconds"]),
        ({"deadline_s": float("nan")}, ["deadline_s", "nan"]),
        ({"retries": -1}, ["retries", "-1"]),
        ({"per_host_rate": -2.0}, ["per_host_rate", "-2.0"]),
        ({"max_bytes": 1 << 30}, ["body_budget_bytes", "max_bytes"]),
        ({"user_agent": ""}, ["user_agent", "first word"]),
        ({"user_agent": "Bot\r\nX: y"}, ["user_agent", "printable"]),
        ({"user_agent": "x" * 5000}, ["user_agent", "5,000", "1,000"]),
        ({"ca_file": Path("missing.pem")}, ["ca_file", "missing.pem", "PEM file"]),
        ({"ca_file": Path("x" * 5000)}, ["ca_file", "too long"]),
        ({"ca_file": Path(__file__)}, ["ca_file", "no certificate", "PEM file"]),
        ({"allow_host": ("images.example",)}, ["allow_host", "images.example", "HOST=IP:PORT"]),
        ({"allow_host": ("images.example=127.0.0.1",)}, ["HOST=IP:PORT"]),
        ({"allow_host": ("images.example=localhost:80",)}, ["HOST=IP:PORT"]),
        ({"allow_host": ("images.example=127.0.0.1:0",)}, ["port 0"]),
        ({"allow_host": ("a=127.0.0.1:1", "a=127.0.0.1:2")}, ["already mapped"]),
        ({"allow_host": ("127.0.0.1=127.0.0.2:80",)}, ["itself"]),
    ],
)
def test_errors_name_the_value_the_limit_and_a_hint(
    change: dict[str, Any], wanted: list[str]
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        FetchConfig(**change)
    assert all(part in str(caught.value) for part in wanted), caught.value


def test_allowed_hosts() -> None:
    entries = ("Images.Example.=127.0.0.1:8000", "six.example=[::1]:81", "127.0.0.1=127.0.0.1:82")
    assert parse_allowed_hosts(entries) == {
        "images.example": ("127.0.0.1", 8000),
        "six.example": ("::1", 81),
        "127.0.0.1": ("127.0.0.1", 82),
    }


def test_the_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(FetchConfig, args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option in ("--concurrency", "--allow-host", "--no-respect-robots-tag", "--ca-file"):
        assert option in text
    assert "HOST=IP:PORT: connect to this address" in text


def test_the_command_line_sets_options() -> None:
    args = ["--allow-host", "a.example=127.0.0.1:1", "--no-respect-robots-tag", "--retries", "5"]
    config = tyro.cli(FetchConfig, args=args)
    assert config.allow_host == ("a.example=127.0.0.1:1",)
    assert (config.respect_robots_tag, config.retries) == (False, 5)
