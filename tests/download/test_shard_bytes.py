"""What the links of one shard give is bounded, in memory and in the shard."""

import random

import pyarrow as pa

from pipelines.images.normalise import ImageConfig, ImageContent
from pipelines.transforms.fetch_links import SHARD_FULL, FetchLinks, HeldValues
from schemas.sample import LINK_TYPE
from tests.servers.web import WebServer, response


def table_of(records: list[list[str]]) -> pa.Table:
    links = [
        [{"slot": n, "url": url, "reason": None, "detail": None} for n, url in enumerate(urls)]
        for urls in records
    ]
    keys = [f"k-{n}" for n in range(len(records))]
    places = {"source": ["x"] * len(keys), "record": list(range(1, len(keys) + 1))}
    return pa.table({"key": keys, **places, "links": pa.array(links, pa.list_(LINK_TYPE))})


def test_the_links_after_the_bound_are_dropped_in_their_order(photo: bytes, quick_config) -> None:
    with WebServer({"/a.jpg": response(200, photo)}) as server:
        config = quick_config(
            allow_host=(server.allow(),), max_shard_bytes=int(4.5 * len(photo)), per_host=3
        )
        urls = [server.url(f"/a.jpg?{n}") for n in range(8)]
        # The second record repeats a link: fetched once, but published twice.
        records = [urls[:3], [urls[0], urls[3]], urls[4:]]
        step = FetchLinks(config, ImageContent(ImageConfig()))
        found = step(table_of(records))
        step.close()
    counts = [len(images) for images in found["images"].to_pylist()]
    reasons = [[link["reason"] for link in links] for links in found["links"].to_pylist()]
    assert counts == [3, 2, 0]
    assert reasons == [[None] * 3, [None, None], [SHARD_FULL] * 4]


class Sized:
    """Bodies as their own values."""

    def convert(self, body: bytes, key: str = "") -> dict[str, bytes]:
        return {"data": body}

    def num_bytes(self, value: dict[str, bytes]) -> int:
        return len(value["data"])


def test_what_is_let_go_does_not_depend_on_the_order_of_arrival() -> None:
    chance = random.Random(3)
    sizes = [chance.randint(1, 30) for _ in range(60)]
    sums = [sum(sizes[:n]) for n in range(60)]
    for _ in range(20):
        held = HeldValues(Sized(), 200)  # type: ignore[arg-type]
        order = chance.sample(range(60), 60)
        values = {n: held.convert(n, bytes(sizes[n])) for n in order}
        kept = [n for n in range(60) if values[n].value is not None]
        assert kept == [n for n in range(60) if sums[n] < 200]
        assert held.num_bytes == sum(sizes[n] for n in kept)
