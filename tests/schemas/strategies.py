"""Hypothesis strategies for samples of every shape that the contract allows."""

from hypothesis import strategies as st

from schemas.sample import FORMATS, ROLES, Sample, Segment

keys = st.from_regex(r"\A[a-z0-9_-]{1,80}\Z")
corpora = st.from_regex(r"\A[a-z0-9_]{1,20}\Z")
# Any text that has a UTF-8 form: also NUL, right-to-left marks, characters beyond the first plane.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
times_s = st.one_of(st.none(), st.floats(0, 1e7, allow_nan=False))
roles = st.one_of(st.none(), st.sampled_from(ROLES))
sizes = st.integers(1, 2**31 - 1)
numbers = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))

text_segments = st.builds(
    lambda text, time_s, role: Segment.of_text(text, time_s=time_s, role=role),
    texts,
    times_s,
    roles,
)
image_segments = st.builds(
    lambda image, format, width, height, time_s, role: Segment.of_image(
        image, format, width, height, time_s=time_s, role=role
    ),
    st.binary(min_size=1, max_size=600),
    st.sampled_from(FORMATS),
    sizes,
    sizes,
    times_s,
    roles,
)
plain_texts = st.builds(Segment.of_text, texts)
plain_images = st.builds(
    Segment.of_image,
    st.binary(min_size=1, max_size=600),
    st.sampled_from(FORMATS),
    sizes,
    sizes,
)
pairs = st.one_of(st.tuples(plain_texts, plain_images), st.tuples(plain_images, plain_texts))
sequences = st.lists(st.one_of(text_segments, image_segments), min_size=1, max_size=12).map(tuple)

metas = st.dictionaries(
    texts,
    st.recursive(
        st.one_of(st.none(), st.booleans(), numbers, texts),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
).map(lambda meta: {k: v for k, v in meta.items() if k != "scores"})
scores = st.dictionaries(st.from_regex(r"\A[a-z_]{1,12}\Z"), numbers, max_size=3)

samples = st.builds(
    lambda key, corpus, segments, meta, scores: Sample(
        key, corpus, segments, meta | ({"scores": scores} if scores else {})
    ),
    keys,
    corpora,
    st.one_of(pairs, sequences),
    metas,
    scores,
)
shards_of_samples = st.lists(samples, max_size=6, unique_by=lambda sample: sample.key)
