"""img2dataset as the fetcher of a shard: its `Downloader`, with what it leaves open closed.

    with Img2datasetFetcher(FetchConfig(), accept="image/*") as fetcher:
        fetched = fetcher.fetch_many(urls, convert)

It takes the place of `Fetcher`: the same links give the same bodies, and the same reasons where there are none. The
links of a shard go through `img2dataset.downloader.Downloader` into a temporary folder, as one shard of its own,
without its resizing; what it wrote there is read back, converted as any body, and deleted. So restarts, atomic shards,
the ledger and the form of images are the platform's. Its requests go through `GuardedOpener`. What it does otherwise:

| img2dataset                                                 | here                                                   |
|-------------------------------------------------------------|--------------------------------------------------------|
| retries everything at once, also 404 and robots refusals    | its own retries are off; what may pass gets another    |
|                                                             | round after `backoff_s`, doubled each time             |
| a row whose writing fails is printed and lost               | `engine_lost`                                          |
| errors are texts                                            | `translate` gives their reasons; else `engine_failed`  |

Requests per host are not limited, hosts are not paused, and Retry-After is not read.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.pipeline import Rejected
from pipelines.download.config import FORBIDDING, FetchConfig, agent_token
from pipelines.download.fetcher import Fetched
from pipelines.download.guarded_opener import GuardedOpener
from pipelines.download.reasons import FETCH_REASONS, RETRYABLE, status_rejection
from pipelines.download.urls import parse_url

T = TypeVar("T")

_SUCCESS = "success"
_ROWS_AT_ONCE = 16
_DETAIL_LENGTH = 200

_TEXTS: tuple[tuple[str, str], ...] = (
    ("disallowed by X-Robots-Tag", "robots_refused"),
    ("infinite loop", "redirect_loop"),
    ("Redirection to url|unknown url type", "scheme_refused"),
    ("Name or service not known|nodename nor servname|No address assoc", "host_not_found"),
    ("getaddrinfo|name resolution", "dns_failed"),
    ("Connection refused", "connect_refused"),
    ("urlopen error timed out|handshake operation timed out", "connect_timeout"),
    ("timed out", "read_timeout"),
    ("CERTIFICATE_VERIFY_FAILED|certificate", "tls_untrusted"),
    ("No route to host|Network is unreachable", "connect_failed"),
    ("reset by peer|Remote end closed|IncompleteRead|Broken pipe|aborted", "connection_lost"),
    ("SSL|TLS", "tls_failed"),
    (
        "no host given|nonnumeric port|control characters|codec can't|label (empty|too)",
        "url_invalid",
    ),
    ("BadStatusLine|got more than|Expected .* bytes|chunk|line|header", "response_malformed"),
    ("image too small", "image_too_small"),
    ("image area too large", "image_too_many_pixels"),
    ("aspect ratio too large", "image_too_elongated"),
    ("Image decoding error", "image_corrupt"),
)
"""What stands in a text of img2dataset -> the reason; the first that fits. The last four are of its resizer."""


def translate(text: str) -> Rejected:
    """The reason that an error text of img2dataset stands for; `engine_failed` with the text where none is known."""
    word, _, detail = text.partition(": ")
    if word in FETCH_REASONS:
        return Rejected(word, detail or None)
    status = re.match(r"HTTP Error (\d{3}): ", text)
    for pattern, reason in _TEXTS:
        if re.search(pattern, text) and not (status and reason == "response_malformed"):
            return Rejected(reason)
    if status:
        return status_rejection(int(status[1]))
    return Rejected("engine_failed", text.encode("ascii", "replace").decode()[:_DETAIL_LENGTH])


class Img2datasetFetcher:
    """Fetches the links of one shard at a time. To be closed, or used as a context manager.

    Args:
        config: limits of fetching; those per host do not apply.
        accept: the media types that are asked for (the header Accept).

    Raises:
        ModuleNotFoundError: img2dataset is not installed.
    """

    def __init__(self, config: FetchConfig, accept: str = "*/*") -> None:
        self.config = config
        self._opener = GuardedOpener(config, accept)
        self._make = _downloader_class()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held open between shards."""

    def fetch_many(
        self, urls: Sequence[str], convert: Callable[[int, bytes], T]
    ) -> list[Fetched[T]]:
        """One result for each of `urls`, in their order.

        Args:
            urls: links as found in the input, however malformed.
            convert: called with the index of a link and its body; a `Rejected` from it is the link's reason.
        """
        results: dict[int, Fetched[T]] = {}
        pending: dict[int, str] = {}
        for index, url in enumerate(urls):
            try:
                pending[index] = str(parse_url(url).url)
            except Rejected as rejected:
                results[index] = _failed(url, rejected, 0)
        for attempt in range(1, self.config.retries + 2):
            if attempt > 1 and pending:
                time.sleep(self.config.backoff_s * 2 ** (attempt - 2))
            results |= self._round(pending, convert, attempt)
            pending = {i: url for i, url in pending.items() if results[i].reason in RETRYABLE}
        return [results[index] for index in range(len(urls))]

    def _round(
        self, pending: dict[int, str], convert: Callable[[int, bytes], T], attempt: int
    ) -> dict[int, Fetched[T]]:
        """The results of one attempt for each link."""
        lost = Rejected("engine_lost", "img2dataset wrote no row for it")
        found = {index: _failed(url, lost, attempt) for index, url in pending.items()}
        if not pending:
            return found
        indices = list(pending)
        with tempfile.TemporaryDirectory(prefix="emu-img2dataset-") as folder:
            self._download(list(pending.values()), folder)
            for position, body, error in _rows(Path(folder)):
                index = indices[position]
                try:
                    value = convert(index, _body(body, error))
                except Rejected as rejected:
                    found[index] = _failed(pending[index], rejected, attempt)
                else:
                    found[index] = _result(pending[index], attempt, value=value)
        return found

    def _download(self, urls: list[str], folder: str) -> None:
        """Let img2dataset write its shard 0 of these links into the folder."""
        shard = Path(folder, "links.arrow")
        table = pa.table({"url": pa.array(urls, pa.string())})
        with pa.OSFile(str(shard), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        config = self.config
        downloader = self._make(
            output_folder=folder,
            column_list=["url"],
            thread_count=config.concurrency,
            timeout=config.read_timeout_s,
            number_sample_per_shard=max(len(urls), 2),
            user_agent_token=agent_token(config.user_agent),
            disallowed_header_directives=sorted(FORBIDDING) if config.respect_robots_tag else None,
        )
        with self._opener.installed():
            downloader.download_shard((0, str(shard)))


def _downloader_class() -> Callable[..., Any]:
    """Makes a `Downloader` that keeps bodies as they are and writes them into a Parquet file."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network when imported
    try:
        from img2dataset.downloader import Downloader
        from img2dataset.resizer import Resizer
        from img2dataset.writer import ParquetSampleWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"--engine img2dataset: {error}; install it with pip install 'emu-platform[img2dataset]'"
        ) from error

    def make(**options: Any) -> Any:
        return Downloader(
            sample_writer_class=ParquetSampleWriter,
            resizer=Resizer(256, "no", False, disable_all_reencoding=True),
            save_caption=False,
            extract_exif=False,
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            **options,
        )

    return make


def _rows(folder: Path) -> Iterator[tuple[int, bytes | None, str | None]]:
    """Position, body and error text of each row that img2dataset wrote."""
    for path in sorted(folder.glob("*.parquet")):
        columns = ["key", "status", "error_message", "jpg"]
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    is_good = row["status"] == _SUCCESS
                    error = None if is_good else row["error_message"] or f"status {row['status']}"
                    yield int(row["key"]), row["jpg"], error


def _body(body: bytes | None, error: str | None) -> bytes:
    """The body of a row; raises `Rejected` where there is none."""
    if error is not None:
        raise translate(error)
    if not body:
        raise Rejected("body_empty")
    return body


def _failed(url: str, rejected: Rejected, attempt: int) -> Fetched[Any]:
    return _result(url, attempt, rejected.reason, rejected.detail)


def _result(
    url: str,
    attempt: int,
    reason: str | None = None,
    detail: str | None = None,
    value: Any = None,
) -> Fetched[Any]:
    return Fetched(
        url=url,
        body=None,
        reason=reason,
        detail=detail,
        content_type=None,
        final_url=None,
        attempts=attempt,
        value=value,
    )
