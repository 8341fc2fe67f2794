"""Lists of servers that send backscatter, asked by DNS while a bounce comes in.

Rules:

1. Whatever goes wrong, nobody is listed: no answer in time, an answer that says nothing of listing, a list that is
   gone. A bounce waits for the answer as long as it was told to and no longer, whatever the number of lists.
2. Only addresses of the Internet are asked about: a list knows nothing of the others, and need not know of them.
3. Only an address within 127.0.0.0/8 says that a client is listed. Anything else comes from a server that invents
   answers, as some do for names that do not exist. 127.255.255.0/24 says that the list refuses us, and 127.0.0.1 is
   what no list gives.
4. A list that has 127.0.0.1 among its clients has everybody: lists that were given up end like that. It is not
   believed.
5. Answers are kept for the time that they carry, an hour at most, and a limited number of them. Who asks for what is
   being asked already waits for the same answer. A list that fails again and again is left alone for a while.

Times are seconds. Source: RFC 5782 sections 2.1, 2.4 and 5; the refusals of 127.255.255.0/24 are those of Spamhaus,
which other lists use alike.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from batv.net.resolver import DnsFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batv.net.resolver import Resolver

__all__ = ["Blocklists", "Inquiry", "asked_about", "lists", "query_name", "says_listed"]

_LISTED: Final = IPv4Network("127.0.0.0/8")
_REFUSED: Final = IPv4Network("127.255.255.0/24")
_NOBODY: Final = IPv4Address("127.0.0.1")
_MAX_KEPT_SECONDS: Final = 3600
_MAX_KEPT: Final = 10_000
"""Answers. Each takes some 300 octets."""

_MAX_UNDER_WAY: Final = 1000
"""Questions at once, each with a socket of its own; whoever comes then is not asked about."""

_FAILURES: Final = 3
_REST_SECONDS: Final = 30.0


def asked_about(address: str) -> IPv4Address | IPv6Address | None:
    """Return the address of a client if a list can know it, else None.

    Args:
        address: as it stands in a record; a word such as `unknown` or `unix` is none.
    """
    try:
        client = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(client, IPv6Address) and client.ipv4_mapped is not None:
        client = client.ipv4_mapped
    return client if client.is_global and not client.is_multicast else None


def query_name(address: IPv4Address | IPv6Address, zone: str) -> str:
    """Return the name under which a list would have an address: its octets or nibbles, the last one first."""
    reverse = address.reverse_pointer
    return f"{reverse.removesuffix('.in-addr.arpa').removesuffix('.ip6.arpa')}.{zone}"


def says_listed(values: Iterable[str]) -> bool:
    """Whether the addresses of an answer say that the client is listed."""
    found = [IPv4Address(value) for value in values]
    return any(each in _LISTED and each not in _REFUSED and each != _NOBODY for each in found)


async def lists(resolver: Resolver, zone: str, address: IPv4Address | IPv6Address) -> tuple[bool, int]:
    """Return whether a list has an address, and for how many seconds that may be kept.

    Raises:
        DnsFault: that cannot be found out, or the list has everybody.
    """
    answer = await resolver.ask(query_name(address, zone), "A")
    if not says_listed(answer.values):
        return False, answer.seconds
    control = await resolver.ask(query_name(_NOBODY, zone), "A")
    if control.values:
        raise DnsFault(f"{zone} lists everybody, 127.0.0.1 too", "take it out of the settings")
    return True, min(answer.seconds, control.seconds)


@dataclass(slots=True)
class _List:
    """How a list has answered of late.

    Attributes:
        zone: its name.
        failures: questions in a row to which it gave no answer.
        rests_until: the time before which it is not asked.
    """

    zone: str
    failures: int = 0
    rests_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What was asked about one client.

    Attributes:
        found: the zone that is known already to list it; empty if none is.
        tasks: questions under way, each of which ends in time by itself.
    """

    found: str
    tasks: Sequence[asyncio.Task[str]] = field(default=())

    async def zone(self) -> str:
        """Return the first list that says that it has the client; empty if none says so in time."""
        pending = set() if self.found else set(self.tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and task.result():
                    return task.result()
        return self.found


class Blocklists:
    """The lists that a proxy asks.

    Args:
        zones: their names.
        resolver: who answers.
        seconds: that a question may take, and so that a bounce waits at most: all lists are asked at once.
        failing: told of a list that is left alone for a while, and why.
        now: returns the time by which answers grow old; None for the event loop's.
    """

    def __init__(
        self,
        zones: Sequence[str],
        resolver: Resolver,
        seconds: float,
        failing: Callable[[str, DnsFault], None],
        now: Callable[[], float] | None = None,
    ) -> None:
        self._lists: Final = [_List(zone) for zone in zones]
        self._resolver: Final = resolver
        self._seconds: Final = seconds
        self._failing: Final = failing
        self._now: Final = now or (lambda: asyncio.get_running_loop().time())
        self._kept: OrderedDict[tuple[str, str], tuple[bool, float]] = OrderedDict()
        self._under_way: dict[tuple[str, str], asyncio.Task[str]] = {}

    def ask(self, address: str) -> Inquiry | None:
        """Begin to ask about a client, and do not wait; None if no list can know it."""
        client = asked_about(address)
        if client is None:
            return None
        tasks = []
        for each in self._lists:
            known = self._known(each.zone, str(client))
            if known:
                return Inquiry(each.zone)
            if known is None and (task := self._asked(each, client)) is not None:
                tasks.append(task)
        return Inquiry("", tasks)

    async def close(self) -> None:
        """Give up what is under way; whoever waits for it hears that nobody is listed."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _known(self, zone: str, address: str) -> bool | None:
        kept = self._kept.get((zone, address))
        if kept is None or kept[1] <= self._now():
            return None
        return kept[0]

    def _asked(self, each: _List, client: IPv4Address | IPv6Address) -> asyncio.Task[str] | None:
        key = (each.zone, str(client))
        task = self._under_way.get(key)
        if task is None and len(self._under_way) < _MAX_UNDER_WAY and each.rests_until <= self._now():
            task = self._under_way[key] = asyncio.get_running_loop().create_task(self._question(each, client))
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return task

    async def _question(self, each: _List, client: IPv4Address | IPv6Address) -> str:
        try:
            async with asyncio.timeout(self._seconds):
                listed, seconds = await lists(self._resolver, each.zone, client)
        except TimeoutError:
            self._failed(each, DnsFault(f"no answer from {each.zone} within {self._seconds:g} s", "look at the DNS"))
        except DnsFault as fault:
            self._failed(each, fault)
        else:
            each.failures = 0
            self._keep((each.zone, str(client)), listed, min(seconds, _MAX_KEPT_SECONDS))
            return each.zone if listed else ""
        return ""

    def _failed(self, each: _List, fault: DnsFault) -> None:
        each.failures += 1
        if each.failures >= _FAILURES and each.rests_until <= self._now():
            each.rests_until = self._now() + _REST_SECONDS
            self._failing(each.zone, fault)

    def _keep(self, key: tuple[str, str], listed: bool, seconds: int) -> None:  # noqa: FBT001 -- the answer itself
        self._kept[key] = (listed, self._now() + seconds)
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
