"""Storage: the files of one dataset, on a local disk or at any fsspec address, written atomically.

A file is either there as a whole under its name or not there. On a local disk it is written into
`.work/tmp/`, flushed to the disk and renamed. Object stores have no rename: the bytes are prepared in a
local temporary file and put with one call, which those stores make visible only when it is complete.

Tables in storage: Arrow IPC for working shards, Parquet for ledger and index; checked, deterministic.
"""

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import fsspec.core
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.table_spec import TableSpec, check_table
from schemas.validation import SchemaError

T = TypeVar("T")
TEMPORARY = ".work/tmp"
TEMPORARY_NAME = re.compile(r".+\.[0-9]+\.[0-9a-f]{8}")
"""Of a file that is being written: its final name, the process, a random number."""
ATTEMPTS = 100
OBJECT_STORES = frozenset(("s3", "gs", "gcs", "abfs", "az", "oss", "swift"))
"""Kinds of addresses without folders."""

HINTS = {
    errno.ENOSPC: "the disk is full: free some space and start again; finished shards are kept",
    errno.EDQUOT: "the quota is used up: free some space and start again; finished shards are kept",
    errno.EACCES: "no permission: check the owner and the mode of the folder",
    errno.EPERM: "no permission: check the owner and the mode of the folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EFBIG: "a file may not be that large there: raise the limit (ulimit -f), or make smaller shards",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
}


class StorageError(OSError):
    """A file that cannot be read or written, in words: the address, the cause, a hint."""

    def __str__(self) -> str:
        """The words alone; the number of the error is in `errno`."""
        return str(self.args[1]) if len(self.args) > 1 else super().__str__()


@dataclass(frozen=True)
class Storage:
    """Files below a root: a local path, or an address such as `s3://bucket/folder`.

    Paths are relative to the root and use `/`. A value of this class may travel to other processes; a
    relative local root is made absolute, because theirs may be another working directory.
    """

    root: str

    def __post_init__(self) -> None:
        address = str(self.root)
        if not address:
            raise ValueError("the root of a storage is empty; give a folder or an address")
        if "://" not in address:
            address = str(Path(address).expanduser().absolute())
        elif address.startswith(("file://", "local://")):
            address = address.partition("://")[2]
        object.__setattr__(self, "root", address.rstrip("/") or "/")

    @property
    def is_local(self) -> bool:
        """True on a file system of this machine, where files can be renamed and memory-mapped."""
        return "://" not in self.root

    def local_path(self, path: str) -> Path:
        """The path of a file on the local disk."""
        assert self.is_local, self.root
        return Path(self.root) / path

    def address(self, path: str) -> str:
        """The full path or address of a file, for a person."""
        return f"{self.root}/{path}" if path else self.root

    def exists(self, path: str) -> bool:
        """True if there is a file or folder of that path."""
        with self.explained(path):
            if self.is_local:
                return self.local_path(path).exists()
            system, full = self._remote(path)
            return bool(system.exists(full))

    def is_folder(self, path: str) -> bool:
        """True if there is a folder of that path; a link to one counts."""
        with self.explained(path):
            if self.is_local:
                return self.local_path(path).is_dir()
            system, full = self._remote(path)
            return bool(system.isdir(full))

    def list(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; empty where there is no such folder."""
        with self.explained(folder):
            if self.is_local:
                local = self.local_path(folder)
                return sorted(p.name for p in local.iterdir()) if local.is_dir() else []
            system, full = self._remote(folder)
            try:
                found = system.ls(full, detail=False)
            except FileNotFoundError:
                return []
        return sorted(n for n in (p.rstrip("/").rpartition("/")[2] for p in found) if n)

    def size(self, path: str) -> int:
        """The size of a file in bytes."""
        with self.explained(path):
            if self.is_local:
                return self.local_path(path).stat().st_size
            system, full = self._remote(path)
            return int(system.size(full))

    def read_bytes(self, path: str) -> bytes:
        """The contents of a file."""
        with self.explained(path):
            if self.is_local:
                return self.local_path(path).read_bytes()
            system, full = self._remote(path)
            return system.cat_file(full)

    def open(self, path: str) -> BinaryIO:
        """A file opened for reading; seekable."""
        with self.explained(path):
            if self.is_local:
                return self.local_path(path).open("rb")
            system, full = self._remote(path)
            return cast(BinaryIO, system.open(full, "rb"))

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with all in it; nothing happens where there is none."""
        with self.explained(path):
            if self.is_local:
                local = self.local_path(path)
                if local.is_dir() and not local.is_symlink():
                    shutil.rmtree(local)
                else:
                    local.unlink(missing_ok=True)
                return
            system, full = self._remote(path)
            with suppress(FileNotFoundError):
                system.rm(full, recursive=True)

    def commit(self, path: str, data: bytes | Callable[[BinaryIO], T]) -> T | None:
        """Write a file, whole or not at all, and return what the writer returned.

        `data` is the contents, or a function that writes them into a file object. An existing file is
        replaced. Raises `StorageError` (disk full, no permission), leaving what was there before.
        """
        write = data if callable(data) else (lambda file: _write_all(file, data))
        if not self.is_local:
            return self._put(path, write)
        with self.explained(path):
            return self._commit_local(path, write)

    def _commit_local(self, path: str, write: Callable[[BinaryIO], T]) -> T:
        final, folder = self.local_path(path), self.local_path(TEMPORARY)
        with self.can_be_made(path):
            final.parent.mkdir(parents=True, exist_ok=True)
        # Two workers may write the same file at the same time (a lost worker that still runs).
        temporary = folder / f"{final.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        try:
            with self.can_be_made(path):
                opened = _opened(temporary)
            with opened as file:
                result = write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            # Not empty: other files are being written, or a build is in progress.
            with suppress(OSError):
                folder.rmdir()
                folder.parent.rmdir()
        _sync_folder(final.parent)
        return result

    def _put(self, path: str, write: Callable[[BinaryIO], T]) -> T:
        with tempfile.NamedTemporaryFile() as file:
            with _explained(f"{self.address(path)} (by way of {file.name})"):
                result = write(cast(BinaryIO, file))
                file.flush()
            with self.explained(path), self.can_be_made(path):
                system, full = self._remote(path)
                # Object stores have no folders; asked for one, they make a bucket, be it of a misspelt name.
                if not OBJECT_STORES.intersection(_protocols(system)):
                    system.makedirs(full.rpartition("/")[0], exist_ok=True)
                system.put_file(file.name, full)
        return result

    def _remote(self, path: str) -> tuple[Any, str]:
        # A remembered listing would hide files that other workers have written since.
        system, root = fsspec.core.url_to_fs(self.root, use_listings_cache=False)
        return system, f"{root}/{path}" if path else root

    @contextmanager
    def explained(self, path: str) -> Iterator[None]:
        """Turn an error of the block into a `StorageError` that names the file and gives a hint.

        On a local disk these are `OSError`s; the clients of object stores raise classes of their own.
        """
        with _explained(self.address(path)):
            try:
                yield
            except OSError:
                raise
            except Exception as error:
                if self.is_local:
                    raise
                raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error

    @contextmanager
    def can_be_made(self, path: str) -> Iterator[None]:
        """Say in words that a file cannot be made where a file system knows no new folders (`/proc`)."""
        try:
            yield
        except FileNotFoundError as error:
            where = "folder" if self.is_local else "address: there is no such bucket or folder"
            text = f"'{self.address(path)}': cannot be made there (choose another {where})"
            raise StorageError(errno.ENOENT, text) from error


@contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        cause = error.strerror or str(error) or type(error).__name__
        hint = HINTS.get(error.errno or 0, "")
        text = f"'{address}': {cause}" + (f" ({hint})" if hint else "")
        raise StorageError(error.errno or errno.EIO, text) from error


def _protocols(system: Any) -> set[str]:
    protocol: str | tuple[str, ...] = system.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _opened(temporary: Path) -> BinaryIO:
    """A new file for writing; its folder may vanish at any moment, when another writer leaves it empty."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            return temporary.open("xb")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    return temporary.open("xb")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; without it the name may vanish, though the bytes are there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_arrow(
    storage: Storage, path: str, table: pa.Table, spec: TableSpec | None = None
) -> None:
    """Commit a table as an Arrow IPC file, uncompressed so that it can be memory-mapped.

    With a `spec` the table is checked first. Metadata of the schema is kept.
    """
    checked = table if spec is None else _with_metadata(check_table(table, spec), table)

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, checked.schema) as writer:
            writer.write_table(checked.combine_chunks())

    storage.commit(path, write)


def read_arrow(storage: Storage, path: str, spec: TableSpec | None = None) -> pa.Table:
    """A table from an Arrow IPC file; on a local disk its buffers are the mapped file."""
    try:
        with pa.ipc.open_file(_source(storage, path)) as reader:
            table = reader.read_all()
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{storage.address(path)}: not an Arrow file: {error}") from error
    return table if spec is None else _with_metadata(check_table(table, spec), table)


def read_arrow_schema(storage: Storage, path: str) -> pa.Schema:
    """The schema of an Arrow IPC file with its metadata, without the data."""
    with _native(storage, path) as file, pa.ipc.open_file(file) as reader:
        return reader.schema


def write_parquet(
    storage: Storage,
    path: str,
    table: pa.Table,
    spec: TableSpec,
    metadata: Mapping[bytes, bytes] | None = None,
) -> None:
    """Commit a checked table as Parquet: equal tables give equal bytes with one release of Arrow.

    `metadata` is added to the metadata of the schema.
    """
    checked = check_table(table, spec)
    extra = {**(checked.schema.metadata or {}), **(metadata or {})}
    stamped = checked.replace_schema_metadata(extra).combine_chunks()

    def write(file: BinaryIO) -> None:
        pq.write_table(
            stamped, file, compression="zstd", compression_level=3, row_group_size=1 << 20
        )

    storage.commit(path, write)


def read_parquet(
    storage: Storage, path: str, spec: TableSpec, columns: Sequence[str] | None = None
) -> pa.Table:
    """A checked table from Parquet; with `columns`, only those, unchecked but for the version."""
    table = _read_parquet(storage, path, columns)
    if columns is None:
        return _named(storage, path, table, spec)
    empty = table.schema.metadata or {}
    _named(storage, path, spec.schema.empty_table().replace_schema_metadata(empty), spec)
    return table


def read_parquet_metadata(storage: Storage, path: str) -> dict[bytes, bytes]:
    """The metadata of the schema of a Parquet file, without the data."""
    with _native(storage, path) as file:
        return dict(pq.read_schema(file).metadata or {})


def _read_parquet(storage: Storage, path: str, columns: Sequence[str] | None) -> pa.Table:
    try:
        with _native(storage, path) as file:
            return pq.read_table(file, columns=None if columns is None else list(columns))
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{storage.address(path)}: not a Parquet file: {error}") from error


def _named(storage: Storage, path: str, table: pa.Table, spec: TableSpec) -> pa.Table:
    try:
        return check_table(table, spec)
    except SchemaError as error:
        raise SchemaError(f"{storage.address(path)}: {error}") from error


def _with_metadata(checked: pa.Table, original: pa.Table) -> pa.Table:
    both = {**(original.schema.metadata or {}), **(checked.schema.metadata or {})}
    return checked.replace_schema_metadata(both)


def _native(storage: Storage, path: str) -> pa.NativeFile:
    """A file that Arrow reads by itself.

    Given a Python file, Arrow's own threads call Python and drop their reference to it when they come to that. If the
    process ends in that moment, Python ends the thread inside C++, which aborts: "terminate called without an active
    exception".
    """
    if storage.is_local:
        with storage.explained(path):
            return pa.OSFile(str(storage.local_path(path)), "rb")
    return pa.BufferReader(storage.read_bytes(path))


def _source(storage: Storage, path: str) -> pa.NativeFile:
    if storage.is_local:
        return pa.memory_map(str(storage.local_path(path)))
    return pa.BufferReader(storage.read_bytes(path))
