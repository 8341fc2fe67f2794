"""Patterns of the settings: what they fit, and that many of them, or hostile addresses, cost no more time."""

from __future__ import annotations

import time
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from batv.address import Mailbox
from batv.pattern import AddressIndex, NetworkIndex, Pattern

FITTING = {
    "joe@example.org": ["joe@example.org", "JOE@Example.Org", '"joe"@example.org'],
    "joe@": ["joe@example.org", "Joe@other.example"],
    "@example.org": ["joe@example.org", "list-1@EXAMPLE.org", '"a b"@example.org'],
    "example.org": ["joe@example.org"],
    "*.example.org": ["joe@a.example.org", "joe@B.a.example.org"],
    "joe@*.example.org": ["joe@a.example.org", "joe@b.a.example.org"],
    "list-*@": ["list-@x.example", "LIST-7@example.org", "list-a-b@a.example.org"],
    "*-bounces+*@example.org": [
        "l-bounces+u@example.org",
        "-bounces+@example.org",
        "a-bounces+b-bounces+c@example.org",
    ],
    "*@example.org": ["joe@example.org"],
    "a*b*c@example.org": ["abc@example.org", "a-b-c@example.org", "abbcc@example.org", "abcbc@example.org"],
}

NOT_FITTING = {
    "joe@example.org": ["joe@a.example.org", "joey@example.org", "joe@example.orgs", "ajoe@example.org"],
    "joe@": ["joey@example.org", "xjoe@example.org", "joe+x@example.org"],
    "@example.org": ["joe@a.example.org", "joe@xexample.org"],
    "*.example.org": ["joe@example.org", "joe@xexample.org", "joe@a.example.org.evil.example"],
    "joe@*.example.org": ["joe@example.org", "ann@a.example.org"],
    "list-*@": ["list@example.org", "mylist-1@example.org"],
    "*-bounces+*@example.org": ["l-bounces@example.org", "l-bounces+u@a.example.org"],
    "a*b*c@example.org": ["acb@example.org", "ac@example.org", "abcd@example.org"],
}


def found(pattern: str, address: str) -> bool:
    """Return whether an index that has this pattern alone finds the address."""
    index = AddressIndex([(Pattern.parse(pattern), True)])
    return any(index.find(Mailbox.parse(address.encode())))


@pytest.mark.parametrize(("pattern", "address"), [(name, each) for name, these in FITTING.items() for each in these])
def test_a_pattern_fits_what_its_form_says(pattern: str, address: str) -> None:
    """Whoever writes an exemption wants it to count."""
    assert found(pattern, address)


@pytest.mark.parametrize(
    ("pattern", "address"), [(name, each) for name, these in NOT_FITTING.items() for each in these]
)
def test_a_pattern_fits_nothing_else(pattern: str, address: str) -> None:
    """An exemption that is too wide lets forged bounces in."""
    assert not found(pattern, address)


@pytest.mark.parametrize(
    "text", ["", "@", "joe", "a b@example.org", "joe@-x", "joe@exa mple", "*", "joe@*", "@*.", "a@b@c.d"]
)
def test_what_has_none_of_the_forms_is_refused(text: str) -> None:
    """A pattern that fits nothing, or everything, is a slip."""
    with pytest.raises(ValueError, match="is no pattern"):
        Pattern.parse(text)


@pytest.mark.parametrize("text", ["joe@example.org", "joe@", "@example.org", "*.example.org", "list-*@", "x@*.a.b"])
def test_a_pattern_is_shown_as_it_is_written(text: str) -> None:
    """What `batv config show` prints is read in again."""
    assert str(Pattern.parse(text)) == text
    assert Pattern.parse(str(Pattern.parse(text.upper()))) == Pattern.parse(text)


def test_all_that_belongs_to_an_address_is_found() -> None:
    """Several exemptions may fit, of which the first in the settings counts."""
    patterns = ["joe@a.example.org", "joe@", "@a.example.org", "*.example.org", "j*@", "ann@", "*.org", "x*@"]
    index = AddressIndex((Pattern.parse(text), text) for text in patterns)
    mailbox = Mailbox.parse(b"Joe@A.example.org")
    assert sorted(index.find(mailbox)) == sorted(text for text in patterns if text not in {"ann@", "x*@"})


def test_an_address_is_found_among_many_as_fast_as_among_few() -> None:
    """A site may exempt ten thousand addresses; each message is looked up."""

    def seconds(count: int) -> float:
        index = AddressIndex((Pattern.parse(f"user{number}@d{number}.example"), number) for number in range(count))
        mailbox = Mailbox.parse(b"user7@d7.example")
        assert list(index.find(mailbox)) == [7]
        return min(_took(lambda: list(index.find(mailbox))) for _ in range(200))

    assert seconds(10_000) < 20 * seconds(10)


def test_a_hostile_address_is_compared_in_little_time() -> None:
    """A pattern with many stars must not try every way to share an address out among them."""
    index = AddressIndex([(Pattern.parse("*a*a*a*a*a*a*a*b@"), True)])
    mailbox = Mailbox(b"a" * 4000, b"peer.example")
    assert _took(lambda: list(index.find(mailbox))) < 0.5


def _took(action: object) -> float:
    assert callable(action)
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


NETWORKS = ["192.0.2.0/24", "192.0.2.128/25", "198.51.100.7/32", "2001:db8::/32", "0.0.0.0/0"]


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("192.0.2.1", ["0.0.0.0/0", "192.0.2.0/24"]),
        ("192.0.2.129", ["0.0.0.0/0", "192.0.2.0/24", "192.0.2.128/25"]),
        ("::ffff:192.0.2.1", ["0.0.0.0/0", "192.0.2.0/24"]),
        ("198.51.100.7", ["0.0.0.0/0", "198.51.100.7/32"]),
        ("198.51.100.8", ["0.0.0.0/0"]),
        ("2001:db8::1", ["2001:db8::/32"]),
        ("2001:db8::1%eth0", ["2001:db8::/32"]),
        ("2001:db9::1", []),
        ("unix", []),
        ("unknown", []),
        ("", []),
    ],
)
def test_a_client_is_found_by_all_networks_that_it_is_in(address: str, wanted: list[str]) -> None:
    """And by no others; who has no IP address is in none."""
    networks: list[IPv4Network | IPv6Network] = [ip_network(text) for text in NETWORKS]
    index = NetworkIndex((network, str(network)) for network in networks)
    assert sorted(index.find(address)) == wanted
