"""The figures of the parts that generate, for metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """What a scheduler holds at present, and what it has done since it began."""

    num_waiting: int
    """Requests that wait for a row or for pages."""
    num_running: int
    """Requests that take part in the next step."""
    num_pages: int
    """Pages of the pool."""
    num_pages_used: int
    """Pages of the requests that run."""
    num_pages_registered: int
    """Pages whose content another prompt may share."""
    prefix_pages_wanted: int
    """Full pages of the prompts that were admitted, since the beginning, as all that follow."""
    prefix_pages_hit: int
    """Those of them that were shared instead of computed."""
    images_wanted: int
    """Images of prompts whose visual embeddings were needed."""
    images_hit: int
    """Those of them whose embeddings were kept from before."""
    steps: int
    """Forward passes."""
    positions: int
    """Positions that were fed, of prompts and of replies."""
    tokens: int
    """Rows whose next token was chosen."""
    embeddings: int
    """Visual embeddings that were generated."""
    finished: int
    """Requests that ended by themselves."""
    aborted: int
    """Requests that were ended from outside."""


@dataclass(frozen=True)
class ImageCounters:
    """What the loop of image decoding holds at present, and what it has done since it began."""

    num_waiting: int
    """Images that are being made or wait."""
    steps: int
    """Forwards of the U-Net."""
    rows: int
    """Images in all of those forwards: `rows / steps` is the mean batch."""
    images: int
    """Images that were finished."""
