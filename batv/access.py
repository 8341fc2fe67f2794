"""Whose mail a proxy takes: clients by their network, and clients by their certificate, for what these may send.

Source: RFC 5321 section 7.9 on whom a server serves; RFC 9525 section 6 on names in certificates.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batv.address import ReversePath

__all__ = ["UNIX_CLIENT", "Access", "Holder", "name_matches", "tenants_of", "within"]

UNIX_CLIENT: Final = "unix"
"""What stands for the address of a client on a Unix socket."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A client that is known by its certificate.

    Attributes:
        name: a name of the certificate, or `*.` and what comes after its first label.
        domains: names in lower case of the domains that it sends for; empty: for any.
        tenant: the tenant of Exchange Online that a message must come from, in lower case; None: from any.
    """

    name: str
    domains: frozenset[bytes] = frozenset()
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Whose mail is taken.

    Attributes:
        networks: whoever is there may send anything; None: everybody may.
        holders: certificates, and what those who hold them may send.
    """

    networks: Sequence[IPv4Network | IPv6Network] | None = None
    holders: Sequence[Holder] = ()

    def by_network(self, address: str) -> bool:
        """Whether a client may send because of its address."""
        if self.networks is None or address == UNIX_CLIENT:
            return True  # the mode of a socket says who may connect
        return within(address, self.networks)

    def by_certificate(self, names: Iterable[str]) -> list[Holder]:
        """Return what a client may send for whose verified certificate has these names."""
        names = frozenset(names)
        return [holder for holder in self.holders if name_matches(holder.name, names)]


def tenants_of(holders: Iterable[Holder], sender: ReversePath) -> frozenset[bytes] | None:
    """Return the tenants of which a message with this sender must come from one; None if it may come from any.

    A null sender is nobody's domain: bounces and automatic replies are held to the tenant alone.

    Raises:
        LookupError: none of the holders may send for that domain.
    """
    mailbox = sender.mailbox
    fitting = [
        holder
        for holder in holders
        if mailbox is None or not holder.domains or mailbox.domain.lower() in holder.domains
    ]
    if not fitting:
        raise LookupError
    tenants = frozenset(holder.tenant.encode() for holder in fitting if holder.tenant is not None)
    return tenants if all(holder.tenant is not None for holder in fitting) else None


def within(address: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Whether an IP address, which may have a scope, is in one of the networks; an empty one is in none."""
    if not address or address == UNIX_CLIENT:
        return False
    client = ip_address(address.partition("%")[0])
    mapped = client.ipv4_mapped if isinstance(client, IPv6Address) else None
    return any((mapped or client) in network for network in networks)


def name_matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern of the settings stands for one of a certificate's names.

    `mail.example.com` stands for itself, `*.example.com` for one label, whichever, before `.example.com`. A wildcard
    in the certificate is a name like any other: its holder shows what he is called, not all he could be called.

    Args:
        pattern: the pattern, compared without regard to case.
        names: names in lower case.
    """
    pattern = pattern.lower()
    if not pattern.startswith("*."):
        return pattern in names
    # What is left of a name when its first label is gone, dot and all.
    return any(name.find(".") > 0 and name[name.find(".") :] == pattern[1:] for name in names)
