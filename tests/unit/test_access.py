"""Whose mail is taken: networks, names of certificates, and what their holders may send."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Final

import pytest

from batv.access import UNIX_CLIENT, Access, Holder, tenants_of, within
from batv.smtp.path import parse_mail

TENANT: Final = "01234567-89ab-cdef-0123-456789abcdef"
OTHER: Final = "11111111-2222-3333-4444-555555555555"
NETWORKS: Final = (IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::/32"))
NULL: Final = parse_mail(b"FROM:<>").path
JOE: Final = parse_mail(b"FROM:<joe@Example.COM>").path
SUB: Final = parse_mail(b"FROM:<joe@sub.example.com>").path


def holder(*domains: bytes, tenant: str | None = None) -> Holder:
    """Return a holder who may send for these domains."""
    return Holder("out.example.com", frozenset(domains), tenant)


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("192.0.2.1", True),
        ("192.0.3.1", False),
        ("::ffff:192.0.2.1", True),
        ("::ffff:192.0.3.1", False),
        ("2001:db8::1", True),
        ("2001:db8::1%eth0", True),
        ("2001:db9::1", False),
        ("", False),
        (UNIX_CLIENT, False),
    ],
)
def test_an_address_is_in_a_network_however_it_is_written(address: str, *, inside: bool) -> None:
    """A listener for IPv6 shows clients of IPv4 in its own way; an address that is gone is nobody's."""
    assert within(address, NETWORKS) is inside
    assert Access(NETWORKS).by_network(address) is (inside or address == UNIX_CLIENT)


def test_without_networks_everybody_may_send() -> None:
    """The inbound proxy takes mail for domains, whoever brings it."""
    assert Access().by_network("203.0.113.1")
    assert Access().by_network("")
    assert not Access(()).by_network("192.0.2.1")


def test_a_certificate_stands_for_every_holder_with_one_of_its_names() -> None:
    """One certificate may have several names, and several tables may name it."""
    exact, wild, other = Holder("out.example.com"), Holder("*.relay.example"), Holder("in.example.com")
    access = Access((), (exact, wild, other))
    assert access.by_certificate(["out.example.com", "a.relay.example"]) == [exact, wild]
    assert access.by_certificate([]) == []
    assert access.by_certificate(["relay.example", "a.b.relay.example", "xout.example.com"]) == []


def test_a_holder_may_send_for_his_domains_only() -> None:
    """A supplier's server must not have mail of another domain of ours signed; a subdomain is another domain."""
    assert tenants_of([holder(b"example.com")], JOE) is None
    with pytest.raises(LookupError):
        tenants_of([holder(b"example.com")], SUB)
    with pytest.raises(LookupError):
        tenants_of([], JOE)
    assert tenants_of([holder()], SUB) is None


def test_a_null_sender_is_held_to_the_tenant_alone() -> None:
    """Bounces and automatic replies of that server have no domain, but they come from somewhere."""
    assert tenants_of([holder(b"example.com")], NULL) is None
    assert tenants_of([holder(b"example.com", tenant=TENANT)], NULL) == frozenset({TENANT.encode()})


def test_the_tenants_are_those_of_the_holders_who_may_send_for_the_domain() -> None:
    """A tenant of another domain is none; and whoever may send for it from any tenant is held to none."""
    first, second = holder(b"example.com", tenant=TENANT), holder(b"sub.example.com", tenant=OTHER)
    assert tenants_of([first, second], JOE) == frozenset({TENANT.encode()})
    assert tenants_of([first, second], SUB) == frozenset({OTHER.encode()})
    assert tenants_of([first, second], NULL) == frozenset({TENANT.encode(), OTHER.encode()})
    assert tenants_of([first, holder(tenant=OTHER)], JOE) == frozenset({TENANT.encode(), OTHER.encode()})
    assert tenants_of([first, holder(b"example.com")], JOE) is None
