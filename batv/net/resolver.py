"""Questions to the DNS, and what is answered: the one user of dnspython.

Rules:

1. A name that does not exist, or has nothing of the kind that was asked for, is an answer: an empty one. No answer,
   one that says that the server failed, and one that cannot be read, are a DnsFault.
2. Names are asked for as they stand: no search list of the host is put behind them.
3. No question takes longer than the seconds that were given, whatever the number of servers.

Times to live are seconds. Source: RFC 1035 sections 3.3 and 7.2; RFC 2308 section 5 for how long "no" may be kept.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import dns.asyncresolver
import dns.exception
import dns.message
import dns.nameserver
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.TXT
import dns.resolver

from batv.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batv.config import Endpoint

__all__ = ["Answer", "DnsFault", "Kind", "Resolver"]

Kind = Literal["A", "AAAA", "MX", "TXT"]

_TRIES: Final = 2
"""In the time for a question. A datagram that got lost is not to cost all of it."""


class DnsFault(UnavailableError):  # noqa: N818 -- a fault, as every word for what a peer does wrong
    """The DNS does not answer a question."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the DNS says of a name.

    Attributes:
        values: addresses; names of servers, the preferred ones first, without the dot at the end; or texts. Empty where
            there are none.
        seconds: for how long that may be kept.
    """

    values: tuple[str, ...]
    seconds: int


class Resolver:
    """Asks servers.

    Args:
        servers: their addresses; none: those of the system.
        seconds: that a question may take.

    Raises:
        ConfigError: the system names no servers.
    """

    def __init__(self, servers: Sequence[Endpoint], seconds: float) -> None:
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=not servers)
        except dns.resolver.NoResolverConfiguration as error:
            raise ConfigError(
                "the system names no DNS servers in /etc/resolv.conf", "name them in [dns] servers"
            ) from error
        if servers:
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(each.host, each.port) for each in servers]
        self._resolver.timeout = seconds / _TRIES
        self._seconds: Final = seconds

    async def ask(self, name: str, kind: Kind) -> Answer:
        """Return what there is of a kind under a name.

        Raises:
            DnsFault: that cannot be found out.
        """
        try:
            async with asyncio.timeout(self._seconds):
                found = await self._resolver.resolve(
                    name, kind, raise_on_no_answer=False, lifetime=self._seconds, search=False
                )
        except dns.resolver.NXDOMAIN as error:
            # One name was asked for: there is one response.
            return Answer((), next((_seconds(each) for each in error.kwargs["responses"].values()), 0))
        except TimeoutError as error:
            raise _fault(name, kind, f"none within {self._seconds:g} s") from error
        except (dns.exception.DNSException, OSError) as error:
            raise _fault(name, kind, _cause(error)) from error
        return Answer(_values(found), _seconds(found.response))


def _fault(name: str, kind: Kind, cause: str) -> DnsFault:
    return DnsFault(f"no answer from the DNS about {name} {kind}, {cause}", "look at its servers")


def _cause(error: Exception) -> str:
    if isinstance(error, dns.exception.Timeout):
        return "none in time"
    if isinstance(error, dns.resolver.NoNameservers):
        return "its servers refuse or fail"
    return type(error).__name__


def _values(found: dns.resolver.Answer) -> tuple[str, ...]:
    if found.rrset is None:
        return ()
    records = list(found.rrset)
    if all(isinstance(each, dns.rdtypes.ANY.MX.MX) for each in records):
        # RFC 7505: a lone dot says that the domain takes no mail; then the name is empty.
        records.sort(key=lambda each: (each.preference, each.exchange))
        return tuple(each.exchange.to_text().removesuffix(".") for each in records)
    # A text comes in pieces of at most 255 octets, which belong together (RFC 7208 section 3.3).
    return tuple(
        b"".join(each.strings).decode("utf-8", "backslashreplace")
        if isinstance(each, dns.rdtypes.ANY.TXT.TXT)
        else each.to_text()
        for each in records
    )


def _seconds(response: dns.message.Message) -> int:
    if not isinstance(response, dns.message.QueryMessage):
        return 0
    try:
        return response.resolve_chaining().minimum_ttl
    except dns.exception.DNSException:
        return 0
