import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.download.urls import literal_address, refused_address


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("10.1.2.3", "private"),
        ("172.31.255.255", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "shared"),
        ("100.100.100.200", "shared"),
        ("169.254.169.254", "link-local"),
        ("168.63.129.16", "metadata"),
        ("192.0.0.192", "protocol"),
        ("198.18.0.1", "benchmarking"),
        ("203.0.113.7", "documentation"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fd00::1", "private"),
        ("fd00:ec2::254", "private"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "zone"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "documentation"),
        ("2001::1", "protocol"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::127.0.0.1", "outside"),
        ("64:ff9b::10.0.0.1", "private"),
        ("64:ff9b:1::8.8.8.8", "outside"),
        ("2002:7f00:1::", "loopback"),
        ("2002:c0a8:1::1", "private"),
        ("100::1", "outside"),
        ("5f00::1", "outside"),
        ("not an address", "not an address"),
        ("", "not an address"),
    ],
)
def test_special_addresses_are_refused(address: str, word: str) -> None:
    refusal = refused_address(address)
    assert refusal is not None
    assert word in refusal


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "100.128.0.1", "172.32.0.1", "2606:4700::6810:84e5"]
    + ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"],
)
def test_global_addresses_are_not_refused(address: str) -> None:
    assert refused_address(address) is None


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_is_not_global_by_the_standard_library_is_refused(address) -> None:
    embeds = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if (
        not address.is_global
        and embeds is None
        and address not in ipaddress.ip_network("64:ff9b::/96")
    ):
        assert refused_address(str(address)) is not None


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0x", "0.0.0.0"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:ffff:7f00:1", "::ffff:7f00:1"),
    ],
)
def test_odd_spellings_are_seen_through(host: str, address: str) -> None:
    literal = literal_address(host)
    assert literal is not None
    assert ipaddress.ip_address(literal) == ipaddress.ip_address(address)


@pytest.mark.parametrize("host", ["example.org", "1.2.3.4.example", "0xg", "a", "1e3", "x.0b"])
def test_names_are_names(host: str) -> None:
    assert literal_address(host) is None


@pytest.mark.parametrize(
    "host",
    ["1.2.3.4.5", "256.1.1.1", "1.2.3.256", "0400.1.1.1", "08", "1.2.3.08", "a.1", "4294967296"]
    + ["fe80::1%eth0", "[fe80::1%25eth0]", "::g", "1" * 5000, "0x" + "f" * 5000, "1..2"],
)
def test_what_must_be_an_address_but_is_none_raises(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        literal_address(host)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "0x{:x}", "0{:o}"]))
def test_every_number_is_read_as_its_address(number: int, form: str) -> None:
    assert literal_address(form.format(number)) == str(ipaddress.IPv4Address(number))
