"""What a list of senders of backscatter is asked, and what counts as its yes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from batv.net.dnsbl import asked_about, query_name, says_listed


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.99", "99.2.0.192.bl.example"),
        (
            "2001:db8:1:2:3:4:567:89ab",
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bl.example",
        ),
    ],
)
def test_a_list_is_asked_about_octets_and_nibbles_from_the_last_to_the_first(address: str, name: str) -> None:
    """The examples of RFC 5782 sections 2.1 and 2.4."""
    assert query_name(ip_address(address), "bl.example") == name


def test_a_client_in_the_clothes_of_ipv6_is_asked_about_as_the_ipv4_client_it_is() -> None:
    """A listener on [::] sees every IPv4 client like that, and no list knows it by that name."""
    assert asked_about("::ffff:11.0.0.2") == ip_address("11.0.0.2")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.9", "172.16.0.1", "169.254.1.1", "100.64.0.1", "224.0.0.1", "0.0.0.1"),
        *("::1", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "unix", "unknown", ""),
    ],
)
def test_no_list_is_asked_about_what_is_no_address_of_the_internet(address: str) -> None:
    """It would learn of the inner network, and cannot know an answer."""
    assert asked_about(address) is None


@pytest.mark.parametrize("value", ["127.0.0.2", "127.0.0.4", "127.1.0.0", "127.255.254.255"])
def test_an_address_of_127_says_that_the_client_is_listed(value: str) -> None:
    """RFC 5782 section 2.1."""
    assert says_listed([value])


@pytest.mark.parametrize("value", ["198.51.100.7", "10.0.0.2", "128.0.0.2", "127.0.0.1", "127.255.255.254"])
def test_any_other_answer_does_not(value: str) -> None:
    """A resolver that sends unknown names to a page of advertisements would list the world, and so would a refusal."""
    assert not says_listed([value])


def test_one_yes_among_other_answers_is_a_yes() -> None:
    """A list may give a client several addresses, one for each reason."""
    assert says_listed(["198.51.100.7", "127.0.0.3"])
    assert not says_listed([])
