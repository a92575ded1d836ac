"""The figures of the server in the format of Prometheus.

| name | kind | meaning |
|---|---|---|
| `emu_requests_total` | counter | requests by `route`, `method` and `status` |
| `emu_request_seconds` | histogram | seconds from the first byte of a request to the last of its response, by `route` |
| `emu_requests_in_progress` | gauge | requests that are handled now, those that wait included |
| `emu_first_token_seconds` | histogram | seconds from a request to the first text of its reply |
| `emu_token_seconds` | histogram | seconds from one piece of text (a token as a rule) to the next |
| `emu_image_seconds` | histogram | seconds from a request to an image of its reply |
| `emu_images_total` | counter | generated images |
| `emu_reply_positions_total`, `emu_prompt_positions_total` | counter | positions of replies and of prompts |
| `emu_engine_waiting`, `emu_engine_running` | gauge | requests that wait for a row, and that run, by `replica` |
| `emu_engine_pages`, `emu_engine_pages_used` | gauge | pages of 16 positions, and those in use, by `replica` |
| `emu_engine_prefix_pages_wanted_total`, `…_hit_total` | counter | pages of prompts, and those found in the cache |
| `emu_engine_images_wanted_total`, `…_hit_total` | counter | images of prompts, and those found in the cache |
| `emu_engine_steps_total`, `…_positions_total`, `…_aborted_total` | counter | steps, positions, requests given up |

`rate(emu_images_total[1m])` are the images per second.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from emu.generate.prompts import Reply
from emu.serve.backend import EngineStats, Event, ImageReady, ScoredPiece

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

ENGINE_FIGURES = (
    ("num_waiting", GaugeMetricFamily, "Requests that wait for a row or for pages."),
    ("num_running", GaugeMetricFamily, "Requests that take part in the next step."),
    ("num_pages", GaugeMetricFamily, "Pages of 16 positions."),
    ("num_pages_used", GaugeMetricFamily, "Pages of the requests that run."),
    ("prefix_pages_wanted", CounterMetricFamily, "Full pages of the prompts that were admitted."),
    ("prefix_pages_hit", CounterMetricFamily, "Those of them that were shared, not computed."),
    ("images_wanted", CounterMetricFamily, "Images of prompts whose embeddings were needed."),
    ("images_hit", CounterMetricFamily, "Those of them whose embeddings were kept from before."),
    ("steps", CounterMetricFamily, "Forward passes."),
    ("positions", CounterMetricFamily, "Positions that were fed, of prompts and of replies."),
    ("aborted", CounterMetricFamily, "Requests that were ended from outside."),
)
"""Fields of `emu.generate.scheduler.Counters`."""


class Metrics:
    """Counts what passes the server; each server has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "emu_requests",
            "Requests by route, method and status.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.request_seconds = self._histogram(
            "emu_request_seconds", "Seconds from request to end.", SECONDS, ("route",)
        )
        self.in_progress = Gauge(
            "emu_requests_in_progress", "Requests that are handled now.", registry=self.registry
        )
        self.first_token = self._histogram(
            "emu_first_token_seconds", "Seconds from a request to its first text.", SECONDS
        )
        self.token = Gaps()
        self.registry.register(self.token)
        self.image_seconds = self._histogram(
            "emu_image_seconds", "Seconds from a request to an image of its reply.", SECONDS
        )
        self.images = Counter("emu_images", "Generated images.", registry=self.registry)
        self.reply_positions = Counter(
            "emu_reply_positions", "Positions of replies.", registry=self.registry
        )
        self.prompt_positions = Counter(
            "emu_prompt_positions", "Positions of prompts.", registry=self.registry
        )
        self._engines = EngineCollector()
        self.registry.register(self._engines)

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def watch(self, begun: float) -> Watch:
        """What counts the events of a request that began at this time on the clock of the event loop."""
        return Watch(self, begun, asyncio.get_running_loop().time)

    def text(self, engines: Sequence[EngineStats]) -> bytes:
        """All figures, those of the engines as given."""
        self._engines.stats = engines
        return generate_latest(self.registry)


class Gaps(Collector):
    """The histogram of seconds between pieces of text; for one thread, since it is called for every piece."""

    def __init__(self) -> None:
        self._counts = [0] * (len(TOKEN_SECONDS) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one."""
        self._counts[bisect_left(TOKEN_SECONDS, seconds)] += 1
        self._sum_s += seconds

    def collect(self) -> Iterator[Metric]:
        """The histogram."""
        bounds = [*map(floatToGoString, (*TOKEN_SECONDS, math.inf))]
        buckets = [*zip(bounds, accumulate(self._counts), strict=True)]
        text = "Seconds from one piece of text to the next."
        yield HistogramMetricFamily("emu_token_seconds", text, buckets, self._sum_s)


_PIECES = (str, ScoredPiece)  # a union would be made anew for every piece


class Watch:
    """Counts the events of one request."""

    def __init__(self, metrics: Metrics, begun: float, clock: Callable[[], float]) -> None:
        self._metrics, self._begun, self._clock = metrics, begun, clock
        self._last: float | None = None
        self._observe_gap = metrics.token.observe

    def see(self, event: Event) -> None:
        """Counts an event, which comes now."""
        if isinstance(event, _PIECES):
            now, last = self._clock(), self._last
            self._last = now
            if last is None:
                self._metrics.first_token.observe(now - self._begun)
            else:
                self._observe_gap(now - last)
            return
        metrics = self._metrics
        if isinstance(event, ImageReady):
            metrics.images.inc()
            metrics.image_seconds.observe(self._clock() - self._begun)
        elif isinstance(event, Reply):
            metrics.prompt_positions.inc(event.num_prompt_tokens)
            metrics.reply_positions.inc(event.num_reply_tokens)


class EngineCollector(Collector):
    """Gives the figures of the engines as they were last seen."""

    stats: Sequence[EngineStats] = ()

    def collect(self) -> Iterator[Metric]:
        """One sample per engine and figure."""
        for field, kind, text in ENGINE_FIGURES:
            name = f"emu_engine_{field.removeprefix('num_')}"
            family = kind(name, text, labels=["replica"])
            for each in self.stats:
                family.add_metric([each.replica], each.counts[field])
            yield family
