"""The SPF record of a domain: which networks may send for it, and by which term of the record.

A site's SPF record is its own list of the routes that its mail takes. It is read for that alone: nobody's mail is
judged by it. What is refused (`-`, `~`) and what is neutral (`?`) is left out; terms that depend on the message
(macros, `exists`, `ptr`) are named, and not followed.

Source: RFC 7208 sections 4.6.4, 5 and 6.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from batv.net.resolver import DnsFault

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from batv.net.resolver import Resolver

__all__ = ["Allowed", "Permit", "allowed_by_spf"]

_MAX_QUESTIONS: Final = 10
"""Terms that ask the DNS. Source: RFC 7208 section 4.6.4."""

_MAX_HOSTS: Final = 10
_MAX_TERMS: Final = 500
_VERSION: Final = "v=spf1"

_MECHANISM: Final = re.compile(
    r"(?:\+|(?P<sign>[-~?]))?(?P<name>[A-Za-z0-9]+)(?::(?P<value>.+?))?(?:/(?P<four>[0-9]{1,3}))?(?://(?P<six>[0-9]{1,3}))?"
)
"""A term of a record, with the sign of those that let nobody send. Source: RFC 7208 sections 4.6.1 and 5."""


@dataclass(frozen=True, slots=True)
class Permit:
    """A network that may send.

    Attributes:
        network: the network.
        term: the term of the domain's own record that lets it: that of an `include`, not what it includes.
    """

    network: IPv4Network | IPv6Network
    term: str


@dataclass(slots=True)
class Allowed:
    """Who may send for a domain.

    Attributes:
        permits: the networks.
        remarks: what could not be followed, one clause each.
        published: whether there is a record.
    """

    permits: list[Permit] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    published: bool = False

    def term_for(self, address: IPv4Address | IPv6Address) -> str:
        """Return the term that lets an address send; empty if none does."""
        return next((permit.term for permit in self.permits if address in permit.network), "")


async def allowed_by_spf(domain: str, resolver: Resolver) -> Allowed:
    """Return who may send for a domain; what the DNS does not tell is among the remarks."""
    walk = _Walk(resolver, Allowed())
    try:
        await walk.record(domain, "")
    except DnsFault as fault:
        walk.allowed.remarks.append(str(fault))
    return walk.allowed


@dataclass(slots=True)
class _Walk:
    resolver: Resolver
    allowed: Allowed
    questions: int = 0
    terms: int = 0

    async def record(self, domain: str, above: str) -> None:
        """Follow the record of a domain; `above` is the term that led there from the first one."""
        texts = (await self.resolver.ask(domain, "TXT")).values
        records = [text for text in texts if text.lower().split(" ")[0] == _VERSION]
        if len(records) != 1:
            if above or records:
                said = "no SPF record" if not records else "several SPF records, which counts as none"
                self.allowed.remarks.append(f"{domain} has {said}")
            return
        self.allowed.published = True
        redirect = ""
        for term in records[0].split()[1:]:
            self.terms += 1
            if self.terms > _MAX_TERMS:
                self.allowed.remarks.append(f"the SPF record has more than {_MAX_TERMS} terms: the rest is not read")
                return
            name, equals, value = term.partition("=")
            if equals and name.isalnum():
                redirect = value if name.lower() == "redirect" else redirect
            else:
                await self._mechanism(term, domain, above)
        if redirect and await self._may_ask(f"redirect={redirect}", redirect):
            await self.record(redirect, above or f"redirect={redirect}")

    async def _mechanism(self, text: str, domain: str, above: str) -> None:
        term = _MECHANISM.fullmatch(text)
        if term is None:
            self.allowed.remarks.append(f"{text} of {domain} is no term of SPF")
            return
        if term["sign"]:
            return
        what, shown = term["value"] or domain, above or text.removeprefix("+")
        match term["name"].lower():
            case "ip4" | "ip6":
                self._permit(what, term["four"], shown)
            case "include" if await self._may_ask(text, what):
                await self.record(what, shown)
            case "a" if await self._may_ask(text, what):
                await self._host(what, term, shown)
            case "mx" if await self._may_ask(text, what):
                for host in (await self.resolver.ask(what, "MX")).values[:_MAX_HOSTS]:
                    await self._host(host, term, shown)
            case "all":
                self.allowed.remarks.append(f"{domain} lets everybody send, with {text}")
            case "exists" | "ptr":
                self.allowed.remarks.append(f"{text} of {domain} is not followed")

    async def _host(self, host: str, term: re.Match[str], shown: str) -> None:
        for value in (await self.resolver.ask(host, "A")).values:
            self._permit(value, term["four"], shown)
        for value in (await self.resolver.ask(host, "AAAA")).values:
            self._permit(value, term["six"], shown)

    def _permit(self, address: str, prefix: str | None, term: str) -> None:
        try:
            network = ip_network(f"{address}/{prefix}" if prefix else address, strict=False)
        except ValueError:
            self.allowed.remarks.append(f"{term} names no network")
            return
        self.allowed.permits.append(Permit(network, term))

    async def _may_ask(self, term: str, name: str) -> bool:
        if "%" in name:
            self.allowed.remarks.append(f"{term} has a macro, which is not followed")
            return False
        self.questions += 1
        if self.questions > _MAX_QUESTIONS:
            self.allowed.remarks.append(f"{term} is not followed: more than {_MAX_QUESTIONS} terms ask the DNS")
            return False
        return True
