"""Filter: samples that a takedown or block list names: by web address, domain or hash of an image."""

import hashlib
import re
from collections.abc import Iterator

import pyarrow as pa

from pipelines.columns import images_of, normalised_url, urls_of, verdicts
from pipelines.core.pipeline import Construct, Filter, Reason
from pipelines.filters.files import InputFile, lines_of, resolved

REASONS = {
    "url_blocked": Reason(
        "The address of the sample or of one of its images is on the block list."
    ),
    "domain_blocked": Reason("The domain of one of its addresses is on the block list."),
    "hash_blocked": Reason("The SHA-256 of one of its images is on the block list."),
}
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_DOMAIN = re.compile(r"(?:\*?\.)?((?:[\w-]+\.)*[\w-]+)\.?", re.ASCII)


def block_list(file: InputFile = "", max_drop: float = 0.9) -> Filter:
    """Samples that are not listed in `file`; a sample is dropped if any of its images is listed.

    A line is an address with `://` (compared without scheme, fragment and case of the host), 64 hexadecimal digits (the
    SHA-256 of an image as published), or a domain, which blocks its subdomains too. `#` begins a comment. Addresses
    are tested before they are fetched, and again in the sample.
    """
    path = resolved("block_list", file)
    BlockList(path)  # a wrong line is found before the build
    return Filter("block_list", Construct(BlockList, (path,)), REASONS, max_drop, is_for_links=True)


class BlockList:
    """The test, with the list in memory."""

    def __init__(self, file: str) -> None:
        self.urls: set[str] = set()
        self.domains: set[str] = set()
        self.hashes: set[str] = set()
        for number, line in lines_of(file):
            if "://" in line:
                self.urls.add(normalised_url(line))
            elif _HASH.fullmatch(line):
                self.hashes.add(line.lower())
            elif found := _DOMAIN.fullmatch(line):
                self.domains.add(found[1].lower())
            else:
                raise ValueError(
                    f"{file}, line {number}: {line[:80]!r} is no address with ://, no domain and no SHA-256 "
                    "(64 hexadecimal digits)"
                )

    def __call__(self, table: pa.Table) -> pa.Array:
        """The reason of each record, and what of it is on the list."""
        images = images_of(table) if self.hashes else [[]] * table.num_rows
        return verdicts(
            [self._verdict(urls, own) for urls, own in zip(urls_of(table), images, strict=True)]
        )

    def _verdict(self, urls: list[str], images: list[bytes]) -> tuple[str, str | None] | None:
        for url in urls:
            normalised = normalised_url(url)
            if normalised in self.urls:
                return "url_blocked", url
            for domain in _domains(normalised) if self.domains else ():
                if domain in self.domains:
                    return "domain_blocked", domain
        for image in images:
            digest = hashlib.sha256(image).hexdigest()
            if digest in self.hashes:
                return "hash_blocked", digest
        return None


def _domains(url: str) -> Iterator[str]:
    """The host of a normalised address, and every domain above it."""
    host = re.split(r"[/?:]", url, maxsplit=1)[0]
    while host:
        yield host
        host = host.partition(".")[2]
