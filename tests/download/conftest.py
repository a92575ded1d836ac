"""A photo to serve, fetch options with short timeouts, a certificate authority."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image

from pipelines.download.fetcher import FetchConfig


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A JPEG of 128 x 96 pixels."""
    gradient = np.linspace(0, 255, 128 * 96 * 3).reshape(96, 128, 3).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(gradient).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="session")
def quick_config() -> Callable[..., FetchConfig]:
    """Makes a FetchConfig with short timeouts; arguments override them."""

    def make(**changes: Any) -> FetchConfig:
        short = {
            "deadline_s": 5.0,
            "read_timeout_s": 1.0,
            "connect_timeout_s": 1.0,
            "backoff_s": 0.02,
            "max_bytes": 1 << 20,
        }
        return FetchConfig(**{**short, **changes})

    return make


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """A certificate authority that no system trusts, and its PEM file."""
    made = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    return made, path
