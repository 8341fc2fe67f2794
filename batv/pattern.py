"""Patterns of the settings: for addresses and for clients, found without trying one after the other.

Forms of a pattern for addresses; all are compared without regard to case::

    user@example.org     one address
    user@                that user of any domain
    @example.org         every address of a domain
    example.org          the same
    *.example.org        every address of the domains below, however deep
    user@*.example.org   that user of the domains below

A user may hold any number of `*`, each of which stands for any octets or none: `list-*@`, `*-bounces+*@example.org`.

Source: RFC 5321 section 2.4 on case; the forms are our own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

from batv.address import DOMAIN, LOCAL_PART, fold

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Network, IPv6Network

    from batv.address import Mailbox

__all__ = ["AddressIndex", "NetworkIndex", "Pattern"]

_DOMAIN: Final = re.compile(DOMAIN)
_LOCAL: Final = re.compile(LOCAL_PART)
_STAR: Final = b"*"
_ANY_DOMAIN: Final = b""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern for addresses.

    Attributes:
        local: the user, in lower case, stars and all; None for every user.
        domain: the domain in lower case; `.example.org` for those below; empty for any.
    """

    local: bytes | None
    domain: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the pattern that is written so.

        Raises:
            ValueError: the text has none of the forms.
        """
        octets = fold(text.encode())
        local, at, domain = octets.rpartition(b"@")
        below = domain.startswith(b"*.")
        name = domain[2:] if below else domain
        # Without an at sign a name is a domain: one without a dot is a user whose at sign was forgotten.
        good = (_DOMAIN.fullmatch(name) and (at or b"." in domain)) if name or not local else True
        if not good or (local and not _LOCAL.fullmatch(local)):
            raise ValueError(
                f"'{text}' is no pattern: write it as user@example.com, user@, @example.com or *.example.com,"
                " where user may hold stars"
            )
        return cls(local if at and local else None, b"." + name if below else name)

    @classmethod
    def parse_local(cls, text: str) -> Self:
        """Return the pattern for a user that is written without a domain.

        Raises:
            ValueError: the text is no local part.
        """
        octets = fold(text.encode())
        if not _LOCAL.fullmatch(octets):
            raise ValueError(f"'{text}' is no pattern for the part before the @: write it as postmaster or list-*")
        return cls(octets, _ANY_DOMAIN)

    def __str__(self) -> str:
        """Return the pattern as it is written."""
        domain = (b"*" + self.domain if self.domain.startswith(b".") else self.domain).decode()
        if self.local is None:
            return domain if domain.startswith("*") else f"@{domain}"
        return f"{self.local.decode()}@{domain}"


@dataclass(slots=True)
class _Users(Generic[T]):
    """What belongs to the users of one domain, or of any.

    Attributes:
        all: what belongs to every user.
        exact: what belongs to one.
        starred: what belongs to those that an expression fits.
        some: an expression that fits all that `starred` fits; None where that is empty.
    """

    all: list[T] = field(default_factory=list)
    exact: dict[bytes, list[T]] = field(default_factory=dict)
    starred: list[tuple[re.Pattern[bytes], T]] = field(default_factory=list)
    some: re.Pattern[bytes] | None = None

    def add(self, local: bytes | None, what: T) -> None:
        if local is None:
            self.all.append(what)
        elif _STAR not in local:
            self.exact.setdefault(local, []).append(what)
        else:
            self.starred.append((re.compile(_expression(local), re.DOTALL), what))
            # One search tells that none of them fits, which is the usual case.
            self.some = re.compile(b"|".join(each.pattern for each, _ in self.starred), re.DOTALL)

    def find(self, local: bytes) -> Iterator[T]:
        yield from self.all
        yield from self.exact.get(local, ())
        if self.some is not None and self.some.fullmatch(local):
            yield from (what for each, what in self.starred if each.fullmatch(local))


class AddressIndex(Generic[T]):
    """What belongs to addresses, by their patterns.

    Args:
        entries: patterns, each with what belongs to it.
    """

    __slots__ = ("_below", "_users")

    def __init__(self, entries: Iterable[tuple[Pattern, T]] = ()) -> None:
        self._users: Final[dict[bytes, _Users[T]]] = {}
        for pattern, what in entries:
            self._users.setdefault(pattern.domain, _Users()).add(pattern.local, what)
        self._below: Final = any(domain.startswith(b".") for domain in self._users)

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self._users)

    def find(self, mailbox: Mailbox) -> Iterator[T]:
        """Yield what belongs to an address."""
        local = fold(mailbox.local)
        if mailbox.quoted and b"\\" not in local:
            local = local[1:-1]  # the quotes are no part of the name
        for domain in self._domains(fold(mailbox.domain)):
            users = self._users.get(domain)
            if users is not None:
                yield from users.find(local)

    def _domains(self, domain: bytes) -> Iterator[bytes]:
        yield _ANY_DOMAIN
        yield domain
        dot = domain.find(b".") if self._below else -1
        while dot >= 0:
            yield domain[dot:]
            dot = domain.find(b".", dot + 1)


class NetworkIndex(Generic[T]):
    """What belongs to clients, by their networks.

    Args:
        entries: networks, each with what belongs to it.
    """

    __slots__ = ("_networks",)

    def __init__(self, entries: Iterable[tuple[IPv4Network | IPv6Network, T]] = ()) -> None:
        # By version and length of the prefix: there are few of those, however many networks there are.
        self._networks: Final[dict[tuple[int, int], dict[int, list[T]]]] = {}
        for network, what in entries:
            shift = network.max_prefixlen - network.prefixlen
            named = self._networks.setdefault((network.version, shift), {})
            named.setdefault(int(network.network_address) >> shift, []).append(what)

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self._networks)

    def find(self, address: str) -> Iterator[T]:
        """Yield what belongs to an IP address, which may have a scope; nothing belongs to what is none."""
        if not self._networks:
            return
        try:
            client = ip_address(address.partition("%")[0])
        except ValueError:
            return
        mapped = client.ipv4_mapped if isinstance(client, IPv6Address) else None
        number, version = int(mapped or client), (mapped or client).version
        for (of_version, shift), named in self._networks.items():
            if of_version == version:
                yield from named.get(number >> shift, ())


def _expression(local: bytes) -> bytes:
    """Return the expression for a user with stars; what a star took is not given back, so none is tried twice."""
    first, *between, last = (re.escape(part) for part in re.sub(rb"\*+", _STAR, local).split(_STAR))
    return first + b"".join(b"(?>.*?%b)" % part for part in between) + b".*" + last
