"""Links of a shard into values: fetched, converted, one value for each link that succeeded.

What the links lead to is handed in as a `Content` (images, for example: `pipelines.images.normalise.ImageContent`).
The new column holds, for each record, one struct for each link that succeeded, in the order of the links: `slot`, the
number of the link in its record, and the fields of the content. A link that failed carries its reason: a word of
`FETCH_REASONS` or of the content's own reasons.

With a media folder, links that are no web addresses are paths in it (see `pipelines.download.media`).
A run that retries a published dataset takes from it what is already known of its links (`Prior`).
"""

import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeGuard

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import (
    Ask,
    Barrier,
    Construct,
    Pipeline,
    Reason,
    Rejected,
    Stage,
    shard_of,
)
from pipelines.core.published import read_built_samples
from pipelines.core.storage import Storage, read_parquet
from pipelines.download.fetcher import FetchConfig, Fetcher
from pipelines.download.host_leases import LeaseTable
from pipelines.download.media import MEDIA_REASONS, MediaFolder, is_web_address
from pipelines.download.reasons import FETCH_REASONS
from pipelines.transforms.link_columns import Drop, LinkColumns
from schemas.sample import Sample
from schemas.shard import LEDGERS
from schemas.tables import DROPPED, KEPT, LEDGER

if TYPE_CHECKING:
    from pipelines.download.img2dataset import Img2datasetFetcher

SHARD_FULL = "shard_full"
SHARD_REASONS: Mapping[str, Reason] = {
    SHARD_FULL: Reason("The shard is full: earlier links reached `max_shard_bytes`.")
}

Engine = Literal["native", "img2dataset"]
"""What fetches: `pipelines.download.fetcher`, or `pipelines.download.img2dataset`."""

Value = Mapping[str, Any]
"""One value: the fields of a `Content` by name."""

LinkName = tuple[str, int, int]
"""Source, record and slot of a link."""

Wanted = tuple[str, str]
"""The address of a value, and the key of the record that wants it; empty where the value is the same for all."""


class Content(Protocol):
    """What links lead to, and what is made of it."""

    @property
    def column(self) -> str:
        """The name of the column that holds the values."""
        ...

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The fields of one value."""
        ...

    @property
    def accept(self) -> str:
        """The media types that are asked for (the header Accept)."""
        ...

    @property
    def reasons(self) -> Mapping[str, Reason]:
        """Why a body may give no value."""
        ...

    @property
    def is_keyed(self) -> bool:
        """Whether the key of a record decides on the value too (on frames at random, for example)."""
        ...

    def convert(self, body: bytes, key: str = "") -> Value:
        """The value of a body for the record of that key; raises `Rejected` with one of `reasons`."""
        ...

    def num_bytes(self, value: Value) -> int:
        """What a value counts towards the bytes of its shard."""
        ...

    def published(self, sample: Sample) -> Iterator[tuple[int, Value]]:
        """The values in a published sample, each with the slot of its link."""
        ...


@dataclass(frozen=True)
class Known:
    """What is known of one link: its value, or a reason that will not change."""

    value: Value = field(default_factory=dict)
    reason: str | None = None
    detail: str | None = None


def has_retryable(reasons: Mapping[str, Reason]) -> Callable[[pa.Table], bool]:
    """A test of ledgers: true if a link failed for one of `reasons` that another run may not meet."""
    words = pa.array(sorted(word for word, reason in reasons.items() if reason.retryable))
    return lambda ledger: bool(pc.any(pc.is_in(ledger["reason"], value_set=words)).as_py())


@dataclass(frozen=True)
class Prior:
    """A published dataset, as a memory of what became of its links.

    Known are the links that were kept (their value is cut out of the tar, byte for byte) and those that failed
    for good. Unknown, so to be fetched again: those that failed for a retryable reason, and those that
    succeeded but were left out afterwards, since their bytes were not kept.
    """

    root: str

    def known(self, shard: str, content: Content) -> dict[LinkName, Known]:
        """What is known of a shard's links; nothing of those of a divided record of which a part was dropped."""
        storage = Storage(self.root)
        ledger = read_parquet(storage, f"{LEDGERS}/{shard}.parquet", LEDGER)
        is_record, is_kept = pc.is_null(ledger["slot"]), pc.equal(ledger["status"], KEPT)
        links = ledger.filter(pc.invert(is_record))
        final = _final_reasons(content)
        failed = {
            (row["source"], row["record"], row["slot"]): Known(
                reason=row["reason"], detail=row["detail"]
            )
            for row in links.filter(pc.equal(links["status"], DROPPED)).to_pylist()
            if row["reason"] in final
        }
        records = ledger.filter(is_record)
        lost = set(_origins(records.filter(pc.equal(records["status"], DROPPED))))
        kept = ledger.filter(pc.and_(pc.invert(is_record), is_kept))
        wanted = {
            (*origin, slot)
            for origin, slot in zip(_origins(kept), kept["slot"].to_pylist(), strict=True)
            if origin not in lost
        }
        origin_of = dict(zip(records["key"].to_pylist(), _origins(records), strict=True))
        values: dict[LinkName, list[Value]] = {}
        for sample in read_built_samples(storage, shard):
            origin = origin_of[sample.key]
            for slot, value in content.published(sample) if origin not in lost else ():
                values.setdefault((*origin, slot), []).append(value)
        assert wanted == set(values), f"{shard}: ledger and index name other links"
        return failed | {name: Known(_joined(found)) for name, found in values.items()}


def _origins(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["source"].to_pylist(), table["record"].to_pylist(), strict=True))


def _joined(values: list[Value]) -> Value:
    """One value of what the parts of a record hold of it: lists are joined."""
    joined = dict(values[0])
    for value in values[1:]:
        joined |= {n: [*joined[n], *v] for n, v in value.items() if isinstance(v, list)}
    return joined


def _final_reasons(content: Content) -> set[str]:
    reasons = {**link_reasons(content), **MEDIA_REASONS}
    return {word for word, reason in reasons.items() if not reason.retryable}


def link_reasons(content: Content, media: str | None = None) -> Mapping[str, Reason]:
    """Every reason for which a link may give no value; with a media folder, those of its files too."""
    of_media = {} if media is None else MEDIA_REASONS
    return {**FETCH_REASONS, **of_media, **content.reasons, **SHARD_REASONS}


def fetch_limits(fetch: FetchConfig) -> Mapping[str, Any]:
    """What of the fetching is configuration of a dataset: what decides which media may be used.

    Politeness and retries are not, so that a later retry may try harder.
    """
    names = ("respect_robots_tag", "max_bytes", "max_shard_bytes")
    return {name: getattr(fetch, name) for name in names}


def media_config(media: str | None) -> Mapping[str, Any]:
    """What a media folder adds to the configuration of a dataset: that there is one, not where, so that it may move."""
    return {} if media is None else {"media": True}


def fetch_links(
    fetch: FetchConfig, content: Content, prior: Prior | None = None, media: str | None = None
) -> Construct:
    """The step that constructs `FetchLinks` on its worker, with the reasons of fetching and of the content."""
    return Construct(
        FetchLinks,
        (fetch, content, prior, media),
        link_reasons(content, media),
        shared=partial(LeaseTable, fetch.per_host),
    )


def is_fetch(step: object) -> TypeGuard[Construct]:
    """Whether a step of a pipeline is the one of `fetch_links`."""
    return isinstance(step, Construct) and step.make is FetchLinks


def with_engine(pipeline: Pipeline, engine: Engine) -> Pipeline:
    """The pipeline with another engine in its fetch; the same samples, so the same fingerprint."""
    return replace(pipeline, stages=tuple(_with_engine(stage, engine) for stage in pipeline.stages))


def _with_engine(stage: Stage | Barrier, engine: Engine) -> Stage | Barrier:
    if isinstance(stage, Barrier):
        return stage
    steps = (replace(s, args=(*s.args, engine)) if is_fetch(s) else s for s in stage.steps)
    return replace(stage, steps=tuple(steps))


class FetchLinks:
    """Transform with one fetcher as long as its worker runs: adds the column of values, marks failed links.

    A link that occurs several times in a shard is fetched once. In the order of the links, once what they gave exceeds
    `max_shard_bytes`, all others are dropped: neither a worker's memory nor a shard grows without bound.

    Args:
        fetch: limits and politeness of fetching.
        content: what the links lead to.
        prior: a published dataset; what it knows of a link is not fetched again.
        media: folder or address of files; links that are no web addresses are paths in it.
        engine: what fetches.
        ask: reaches the table of limits per host that all workers share.
    """

    def __init__(
        self,
        fetch: FetchConfig,
        content: Content,
        prior: Prior | None = None,
        media: str | None = None,
        engine: Engine = "native",
        ask: Ask | None = None,
    ) -> None:
        self.content = content
        self.prior = prior
        self.media = None if media is None else MediaFolder(media, fetch.max_bytes)
        self.max_bytes = fetch.max_shard_bytes
        self.fetcher = _fetcher(engine, fetch, content.accept, ask)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with the column of values, and with reasons in `links`."""
        links = LinkColumns.of(table)
        keys = table["key"].to_pylist() if self.content.is_keyed else [""] * table.num_rows
        wanted = [(url or "", keys[row]) for row, url in zip(links.rows, links.urls, strict=True)]
        known = self._known(table, links)
        each = list(zip(wanted, links.reasons, known, strict=True))
        fetched = self._fetch(one for one, lost, prior in each if lost is None and prior is None)
        values: list[Value | None] = []
        dropped: dict[int, Drop] = {}
        num_bytes = 0
        for number, (one, lost, prior) in enumerate(each):
            value, reason, detail = None, None, None
            if lost is None:
                left = self.max_bytes - num_bytes
                value, reason, detail = _settled(prior, fetched.get(one), left)
            num_bytes += 0 if value is None else self.content.num_bytes(value)
            values.append(value)
            if reason is not None:
                dropped[number] = reason, detail
        column = links.listed(values, self.content.fields)
        return links.marked(table, dropped).append_column(self.content.column, column)

    def _known(self, table: pa.Table, links: LinkColumns) -> list[Known | None]:
        """What the prior dataset knows of each link."""
        if self.prior is None:
            return [None] * len(links.rows)
        known, origins = self.prior.known(shard_of(table), self.content), _origins(table)
        return [known.get((*origins[n], s)) for n, s in zip(links.rows, links.slots, strict=True)]

    def close(self) -> None:
        """Closes the connections, and what the content holds if it has a `close`."""
        self.fetcher.close()
        close = getattr(self.content, "close", None)
        if callable(close):
            close()

    def _fetch(self, wanted: Iterable[Wanted]) -> "dict[Wanted, _Result]":
        """What became of each address for each key; an address is fetched once."""
        place = {one: number for number, one in enumerate(dict.fromkeys(wanted))}
        keys: dict[str, list[str]] = {}
        for url, key in place:
            keys.setdefault(url, []).append(key)
        held = HeldValues(self.content, self.max_bytes)

        def convert(url: str, body: bytes) -> list[_Result]:
            if len(keys[url]) == 1:  # a rejection is that of the link
                (key,) = keys[url]
                return [_Result(held.convert(place[url, key], body, key))]
            made = (partial(held.convert, place[url, key], body, key) for key in keys[url])
            return [_result_of(one) for one in made]

        web = [url for url in keys if self.media is None or is_web_address(url)]
        fetched = self.fetcher.fetch_many(web, lambda i, body: convert(web[i], body))
        found: dict[str, list[_Result]] = {
            url: one.value or [_Result(None, one.reason, one.detail)] * len(keys[url])
            for url, one in zip(web, fetched, strict=True)
        }
        for url in [url for url in keys if url not in found]:
            assert self.media is not None, url
            try:
                found[url] = convert(url, self.media.read(url))
            except Rejected as rejected:
                found[url] = [_Result(None, rejected.reason, rejected.detail)] * len(keys[url])
        return {(url, key): found[url][n] for url in keys for n, key in enumerate(keys[url])}


class _Result(NamedTuple):
    """What became of a link: a value, or the reason why there is none."""

    value: "_Held | None" = None
    reason: str | None = None
    detail: str | None = None


def _result_of(convert: Callable[[], "_Held"]) -> _Result:
    try:
        return _Result(convert())
    except Rejected as rejected:
        return _Result(None, rejected.reason, rejected.detail)


def _fetcher(
    engine: Engine, fetch: FetchConfig, accept: str, ask: Ask | None
) -> "Fetcher | Img2datasetFetcher":
    if engine == "native":
        return Fetcher(fetch, accept=accept, ask=ask)
    from pipelines.download.img2dataset import Img2datasetFetcher

    return Img2datasetFetcher(fetch, accept)


@dataclass
class _Held:
    """A value, until values of earlier links fill the shard."""

    value: Value | None


class HeldValues:
    """The values of a shard as they arrive, in any order; lets go of those that are certain not to fit.

    A value is certain not to fit once those of earlier links, which are all that can come before it, fill the shard.
    So at most the bound and one value more are held, and what is let go does not depend on the order of arrival.
    """

    def __init__(self, content: Content, max_bytes: int) -> None:
        self._content, self._max_bytes = content, max_bytes
        self._lock = threading.Lock()
        self._latest: list[tuple[int, int, _Held]] = []
        """A heap by negative index: bytes and values held."""
        self.num_bytes = 0

    def convert(self, index: int, body: bytes, key: str = "") -> _Held:
        """The value of a body, held."""
        held = _Held(self._content.convert(body, key))
        assert held.value is not None
        with self._lock:
            num_bytes = self._content.num_bytes(held.value)
            heapq.heappush(self._latest, (-index, num_bytes, held))
            self.num_bytes += num_bytes
            while self.num_bytes - self._latest[0][1] >= self._max_bytes:
                _, num_bytes, last = heapq.heappop(self._latest)
                self.num_bytes -= num_bytes
                last.value = None
        return held


def _settled(
    known: Known | None, result: _Result | None, bytes_left: int
) -> tuple[Value | None, str | None, str | None]:
    """Of a link its value if it has one that fits, or the reason why it has none, with its detail."""
    if known is not None:
        return (None, known.reason, known.detail) if known.reason else (known.value, None, None)
    assert result is not None
    if result.reason is not None:
        return None, result.reason, result.detail
    assert result.value is not None
    if result.value.value is None or bytes_left <= 0:
        return None, SHARD_FULL, None
    return result.value.value, None, None
