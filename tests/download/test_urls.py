import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.pipeline import Rejected
from pipelines.download.reasons import FETCH_REASONS
from pipelines.download.urls import MAX_URL_LENGTH, join_redirect, parse_url


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("http://a.example/x.jpg", "http://a.example/x.jpg"),
        ("HTTPS://A.Example:443/x.jpg#part", "https://a.example/x.jpg"),
        ("  http://a.example  ", "http://a.example/"),
        ("http://a.example:8080/x?b=1&c=%2F", "http://a.example:8080/x?b=1&c=%2F"),
        ("http://a.example/a b.jpg", "http://a.example/a%20b.jpg"),
        ("http://a.example/å.jpg?q=ø", "http://a.example/%C3%A5.jpg?q=%C3%B8"),
        ("http://a.example/%7Ea%zz.jpg", "http://a.example/%7Ea%zz.jpg"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://a.example./x", "http://a.example/x"),
        ("http://under_score.example/x", "http://under_score.example/x"),
        ("http://2130706433/x", "http://127.0.0.1/x"),
        ("http://１２７.0.0.1/x", "http://127.0.0.1/x"),
        ("http://[::FFFF:127.0.0.1]:80/x", "http://[::ffff:7f00:1]/x"),
        ("http://a.example?q=1", "http://a.example/?q=1"),
        ("http:/a.example/x.jpg", "http://a.example/x.jpg"),
        ("http:///a.example/x.jpg", "http://a.example/x.jpg"),
        ("http://a%2eexample/", "http://a.example/"),
        ("http://-a.example/", "http://-a.example/"),
        ("http://a.example\\@127.0.0.1/", "http://a.example/@127.0.0.1/"),
        ("http://a.example\\b/", "http://a.example/b/"),
        ("http://a.example/\x00.jpg", "http://a.example/%00.jpg"),
        ("http://a.example/x\r\nHost: b", "http://a.example/xHost:%20b"),
        ("http://a.example/x|y^z`{}", "http://a.example/x|y%5Ez%60%7B%7D"),
        ("http://http./x", "http://http/x"),
    ],
)
def test_good_links(text: str, canonical: str) -> None:
    assert str(parse_url(text).url) == canonical


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "url_missing"),
        ("", "url_missing"),
        (" \t\n", "url_missing"),
        ("http://a.example/" + "x" * MAX_URL_LENGTH, "url_too_long"),
        ("a.example/x.jpg", "url_invalid"),
        ("a.example:80/x.jpg", "url_invalid"),
        ("localhost:80/x.jpg", "url_invalid"),
        ("//a.example/x.jpg", "url_invalid"),
        ("/x.jpg", "url_invalid"),
        ("http://", "url_invalid"),
        ("http://a.example:0/", "url_invalid"),
        ("http://a.example:99999/", "url_invalid"),
        ("http://a.example:x/", "url_invalid"),
        ("http://a b.example/", "url_invalid"),
        ("http://a..example/", "url_invalid"),
        ("http://" + "a" * 64 + ".example/", "url_invalid"),
        ("http://[::1/", "url_invalid"),
        ("http://[fe80::1%25eth0]/", "url_invalid"),
        ("http://1.2.3.4.5/", "url_invalid"),
        ("http://me:secret@a.example/", "url_with_credentials"),
        ("http://a.example/\udcff", "url_invalid"),
        ("http://\u200b/", "url_invalid"),
        ("file:///etc/passwd", "scheme_refused"),
        ("ftp://a.example/x", "scheme_refused"),
        ("data:image/png;base64,AAAA", "scheme_refused"),
        ("javascript:alert(1)", "scheme_refused"),
        ("gopher://a.example/", "scheme_refused"),
    ],
)
def test_bad_links_have_a_reason(text: str | None, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_url(text)
    assert caught.value.reason == reason


_URL_LIKE = st.one_of(
    st.text(max_size=60),
    st.from_regex(r"\A(https?|file|HTTP):?/{0,3}[a-z0-9.:@\[\]%_ é-]{0,30}(/[^\n]{0,20})?\Z"),
    st.builds("http://{}/{}".format, st.text(max_size=30), st.text(max_size=30)),
)


@given(_URL_LIKE)
def test_any_text_gives_a_stable_address_or_a_reason(text: str) -> None:
    try:
        address = parse_url(text)
    except Rejected as rejected:
        assert rejected.reason in FETCH_REASONS
        return
    assert address.url.scheme in ("http", "https")
    assert address.url.raw_host == address.host
    assert address.url.port == address.port
    assert str(address.url).isascii() and str(address.url).isprintable()
    assert parse_url(str(address.url)) == address


@given(st.text(max_size=80))
def test_any_location_gives_an_address_or_a_reason(location: str) -> None:
    base = parse_url("http://a.example/dir/x.jpg")
    try:
        assert join_redirect(base, location).url.scheme in ("http", "https")
    except Rejected as rejected:
        assert rejected.reason in FETCH_REASONS


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("y.jpg", "http://a.example:81/dir/y.jpg"),
        ("/y.jpg", "http://a.example:81/y.jpg"),
        ("//b.example/y.jpg", "http://b.example/y.jpg"),
        ("?v=2", "http://a.example:81/dir/x.jpg?v=2"),
        ("../ü y.jpg", "http://a.example:81/%C3%BC%20y.jpg"),
        ("https://b.example/%2F", "https://b.example/%2F"),
    ],
)
def test_redirects_are_joined(location: str, target: str) -> None:
    base = parse_url("http://a.example:81/dir/x.jpg?q=1")
    assert str(join_redirect(base, location).url) == target
    wire = location.encode("utf-8").decode("ascii", "surrogateescape")
    assert str(join_redirect(base, wire).url) == target
