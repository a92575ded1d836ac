"""A dataset in a bucket: the bytes of a local one, kills or not, and errors in words."""

import random
import time
import uuid
from pathlib import Path

import pytest
import s3fs
from engine_jobs import Job, kill_group
from numbers_pipeline import contents, numbers_pipeline

from pipelines.core.run import run
from pipelines.core.storage import Storage, StorageError


def bucket_contents(address: str, folder: Path) -> dict[str, str]:
    """Hashes of all files below an address."""
    s3fs.S3FileSystem(use_listings_cache=False).get(f"{address}/", f"{folder}/", recursive=True)
    return contents(folder)


def test_a_build_in_a_bucket_has_the_bytes_of_a_local_one(s3_bucket: str, tmp_path: Path) -> None:
    near = run(numbers_pipeline(), str(tmp_path / "near"), progress=False)
    far = run(numbers_pipeline(), f"{s3_bucket}/far", progress=False)
    assert near == far
    assert bucket_contents(f"{s3_bucket}/far", tmp_path / "copy") == contents(tmp_path / "near")
    # a finished one is left alone
    assert run(numbers_pipeline(), f"{s3_bucket}/far", progress=False) == far


@pytest.mark.slow
def test_kills_of_a_build_in_a_bucket_leave_the_same_bytes(
    job: Job, s3_bucket: str, tmp_path: Path
) -> None:
    job.to_the_end(tmp_path / "near")
    chance, out, killed_at = random.Random(3), f"{s3_bucket}/far", []
    for _ in range(5):
        process = job.start(out, "--sleep-s", "0.02")
        time.sleep(chance.uniform(1.5, 4.0))
        kill_group(process)
        killed_at.append(len(s3fs.S3FileSystem(use_listings_cache=False).find(out)))
    assert max(killed_at) > 0, "every kill came before the first file"
    job.to_the_end(out)
    assert bucket_contents(out, tmp_path / "copy") == contents(tmp_path / "near")


def test_a_bucket_that_is_not_there_is_named_and_not_made(s3_endpoint: str) -> None:
    address = f"s3://misspelt-{uuid.uuid4().hex}/far"
    with pytest.raises(StorageError, match=f"'{address}/a': .* there is no such bucket or folder"):
        Storage(address).commit("a", b"1")
    assert not s3fs.S3FileSystem(use_listings_cache=False).exists(address.removesuffix("/far"))


def test_a_store_that_does_not_answer_is_an_error_in_words(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StorageError, match=f"'{s3_bucket}/far/a': .*Could not connect"):
            Storage(f"{s3_bucket}/far").commit("a", b"1")
        with pytest.raises(StorageError, match=f"'{s3_bucket}/far/a': .*Could not connect"):
            Storage(f"{s3_bucket}/far").exists("a")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
