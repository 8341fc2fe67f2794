"""Who the client of a session is: what the connection, TLS and listed peers say.

Rules:

1. Listed peers alone may say otherwise than the connection does. XCLIENT counts for everything; XFORWARD for the
   record, the next hop and lists of senders of backscatter only, and for one transaction: nobody is let in for it.
2. With TLS the session begins anew, and so it does with XCLIENT: nothing that was said before counts.

Source: RFC 3207 section 4.2; Postfix's XCLIENT_README and XFORWARD_README.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final

from batv.access import UNIX_CLIENT, tenants_of
from batv.observe.event import clean, printable
from batv.smtp.origin import Origin, Source, parse_xclient, parse_xforward
from batv.stage import Client

if TYPE_CHECKING:
    from batv.access import Holder
    from batv.address import ReversePath
    from batv.proxy.side import Side

__all__ = ["RECEIVED_OCTETS", "Identity"]

RECEIVED_OCTETS: Final = 1024
"""More than a Received field of ours can have."""

_TOKEN: Final = re.compile(r"[!-'*-~]{1,255}")


class Identity:
    """Who the client of one session is.

    Args:
        side: the proxy.
        address: the peer's IP address, or what stands for one on a Unix socket.
        ends: both ends of the connection.

    Attributes:
        address: the peer's; it decides whose word counts.
        client: the client, as the stage sees it.
        may_send: whether the client may send anything for its address.
    """

    __slots__ = ("_ends", "_forwarded", "_named", "_names", "_origin", "_side", "_tls", "address", "client", "may_send")

    def __init__(self, side: Side, address: str, ends: Origin) -> None:
        self._side = side
        self._ends = ends
        self._origin = ends
        self._forwarded: Origin | None = None
        self._names: frozenset[str] = frozenset()
        self._named: list[Holder] = []
        self._tls = ""
        self.address = address
        self.client = Client(address)
        self.may_send = side.access.by_network(address)

    @property
    def origin(self) -> Origin:
        """Whom the next hop is told of."""
        return self._forwarded or self._origin

    @property
    def has_certificate(self) -> bool:
        """Whether the client may send something for a certificate."""
        return bool(self._named)

    def greet(self, name: bytes, *, extended: bool) -> None:
        """Take note of the name in EHLO, or in HELO where not extended."""
        self._origin = replace(self._origin, helo=printable(name), protocol="ESMTP" if extended else "SMTP")
        self._settle()

    def secure(self, tls: str, names: frozenset[str]) -> None:
        """Begin anew in TLS.

        Args:
            tls: version and cipher.
            names: those of the client's certificate, if one was verified.
        """
        self._tls = tls
        self._names = names
        self._named = self._side.access.by_certificate(names)
        self._begin(self._ends, self.address)

    def xclient(self, argument: bytes) -> None:
        """Begin anew for the client that a listed peer names; raises OriginError where the argument breaks a rule."""
        origin = parse_xclient(argument, self._origin)
        self._named = []
        self._begin(origin, origin.address)

    def xforward(self, argument: bytes) -> None:
        """Take a listed peer's word for whom the next message comes from; raises OriginError as `xclient` does."""
        self._forwarded = parse_xforward(argument, self._forwarded or Origin())
        self._settle()

    def forget_forwarded(self) -> bool:
        """Forget what XFORWARD said, as Postfix does at the end of a transaction; return whether anything was said."""
        if self._forwarded is None:
            return False
        self._forwarded = None
        self._settle()
        return True

    def tenants(self, sender: ReversePath) -> frozenset[bytes] | None:
        """Return the tenants of which a message with this sender must come from one; None if it may come from any.

        Raises:
            LookupError: the client may not send for that domain.
        """
        return None if self.may_send else tenants_of(self._named, sender)

    def fields(self) -> dict[str, object]:
        """Return what a notice says of the client."""
        fields: dict[str, object] = {"direction": self._side.direction, "client": self.client.address}
        if self._side.access.holders:
            fields["certificate"] = " ".join(printable(name.encode()) for name in sorted(self._names)) or "none"
        return fields

    def received(self, identifier: str) -> bytes:
        """Return the trace field of a message, now. Source: RFC 5321 section 4.4; RFC 3848 for the protocol's name.

        Args:
            identifier: of the transaction.
        """
        origin = self.origin
        helo = origin.helo if _TOKEN.fullmatch(origin.helo) and origin.helo.isascii() else "unknown"
        literal = f"IPv6:{origin.address}" if ":" in origin.address else origin.address or "unknown"
        protocol = f"{origin.protocol or 'SMTP'}{'S' if self._tls and origin.protocol == 'ESMTP' else ''}"
        date = format_datetime(datetime.fromtimestamp(self._side.clock(), UTC))
        hostname = self._side.hostname.encode("ascii", "replace").decode()
        by = f"by {hostname} with {protocol} id {identifier}"
        return f"Received: from {helo} ([{literal}])\r\n\t{by};\r\n\t{date}\r\n".encode("ascii", "replace")

    def _begin(self, origin: Origin, address: str) -> None:
        self._origin, self._forwarded = origin, None
        self.may_send = self._side.access.by_network(address)
        self._settle()

    def _settle(self) -> None:
        origin = self.origin
        if self._forwarded is None and self.address == UNIX_CLIENT and not origin.address:
            address = UNIX_CLIENT
        else:
            address = origin.address or "unknown"
        self.client = Client(address, clean(origin.helo), local=origin.source is Source.LOCAL)
