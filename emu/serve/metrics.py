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
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

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
        self.token = self._histogram(
            "emu_token_seconds", "Seconds from one piece of text to the next.", TOKEN_SECONDS
        )
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

    async def observed(
        self, events: AsyncGenerator[Event, None], begun: float
    ) -> AsyncGenerator[Event, None]:
        """The same events, measured; `begun` is on the clock of the event loop."""
        clock = asyncio.get_running_loop().time
        last: float | None = None
        async with aclosing(events):
            async for event in events:
                if isinstance(event, str | ScoredPiece):
                    now = clock()
                    if last is None:
                        self.first_token.observe(now - begun)
                    else:
                        self.token.observe(now - last)
                    last = now
                elif isinstance(event, ImageReady):
                    self.images.inc()
                    self.image_seconds.observe(clock() - begun)
                elif isinstance(event, Reply):
                    self.prompt_positions.inc(event.num_prompt_tokens)
                    self.reply_positions.inc(event.num_reply_tokens)
                yield event

    def text(self, engines: Sequence[EngineStats]) -> bytes:
        """All figures, those of the engines as given."""
        self._engines.stats = engines
        return generate_latest(self.registry)


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
