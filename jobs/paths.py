"""Paths, addresses and ports as they are given on a command line."""

import re
import socket
from pathlib import Path

JOB_FOLDER = "working_dir_files"
"""A component of the path to which Ray unpacks the working directory of a submitted job."""


def job_path(text: str) -> str:
    """A path made absolute; an address unchanged.

    Raises ValueError for an empty path, for an address of a file system that is not available here, and for a
    relative path in a submitted job: it would lead into a copy of the working directory, which Ray deletes.
    """
    if not text:
        raise ValueError("a path is empty (''); name a folder, '.' for this one")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"the path {text!r} is not UTF-8; choose another, or rename the folder")
    if "://" in text:
        _check_scheme(text)
        return text
    if Path(text).expanduser().is_absolute():
        return str(Path(text).expanduser())
    if JOB_FOLDER in Path.cwd().parts:
        raise ValueError(
            f"{text!r} is relative, but a submitted job runs in a copy of its working directory that "
            "Ray deletes; give an absolute path or an address"
        )
    return str(Path(text).absolute())


def folder_path(text: str) -> str:
    """The path of a file or folder of a model or a run, made absolute.

    Raises ValueError as `job_path` and `refuse_address` do.
    """
    refuse_address(text)
    return job_path(text)


def refuse_address(text: str) -> None:
    """Raise ValueError for an address: weights are memory-mapped and checkpoints renamed, which needs a file system."""
    if "://" in text:
        raise ValueError(
            f"{text!r} is an address, but models and runs must be on a file system: give a folder that every worker "
            "sees (only data may be at an address)"
        )


def weights_path(text: str | None) -> str | None:
    """The path of weights made absolute; the tag of pretrained weights, which is not a path, unchanged."""
    is_tag = text is None or ("/" not in text and "." not in text and not Path(text).exists())
    return text if is_tag else folder_path(str(text))


def encoder_path(text: str | None) -> str | None:
    """As `weights_path`; also `MODEL:FILE`, `MODEL:TAG`, `local-dir:FOLDER` and `hf-hub:OWNER/NAME` of open_clip."""
    head, colon, rest = (text or "").partition(":")
    if not colon or rest.startswith("//") or "/" in head:
        return weights_path(text)
    if not rest or head == "hf-hub":
        return text
    return f"{head}:{folder_path(rest) if head == 'local-dir' else weights_path(rest)}"


def _check_scheme(address: str) -> None:
    import fsspec  # takes a tenth of a second, and most paths are no addresses

    scheme = address.partition("://")[0].rpartition("::")[2]
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{address!r} cannot be used here: {error} (in this environment and on every worker)"
        ) from error


def free_port(host: str) -> int:
    """A port that is not in use."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return listener.getsockname()[1]


def check_port(host: str, port: int) -> None:
    """Raise ValueError for a port that is no port, or that a server cannot listen on."""
    if not 0 <= port < 65536:
        raise ValueError(f"--port is {port}, give 0 to 65535 (0 chooses a free one)")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen()
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; give another --port (0 chooses a "
            "free one)"
        ) from error
