"""One server behind a proxy: how a connection to it is opened, and the opened ones that nobody uses.

Opening is connecting, telling who the client is where PROXY says so, TLS, EHLO, logging in. Only then is a connection
handed out.

Rules:

1. A connection goes back for reuse only when no transaction is open on it; else the next user would meet
   `503 nested MAIL command`, or worse, add recipients to another's message. Nor does one that has heard many errors
   since its last message: servers slow such a connection down, and cut it, and that must not meet other people's mail.
2. What the server offers is read again after TLS and after XCLIENT: what it said before does not count any more.

Source: RFC 5321 sections 4.1.1.1 and 4.5.3.2; RFC 2033 section 4.1 (LHLO); RFC 3207; RFC 7435 section 3; RFC 4954.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batv.config import Announce, NextHopTls
from batv.net.connection import (
    ClientFault,
    IdentityFault,
    LoginFault,
    NextHopConnection,
    NextHopFault,
    TlsFault,
)
from batv.net.outbox import Outbox
from batv.net.reason import reason
from batv.smtp.auth import auth_lines, choose, mechanisms
from batv.smtp.extension import Capabilities
from batv.smtp.origin import Origin, proxy_v1, proxy_v2, xclient_commands

if TYPE_CHECKING:
    import ssl

    from batv.config import Endpoint, NextHopSettings
    from batv.smtp.auth import Credentials
    from batv.smtp.reply import Reply

__all__ = ["Destination", "Link", "taken_of_client"]

_MAX_BURDEN: Final = 5
"""Errors and RSETs without a message. Postfix delays from 10 errors on and cuts at 20; Exim cuts at 10 RSETs."""

_MORE_WANTED: Final = 334
_CLOSING: Final = 421
_OURSELVES: Final = Origin()
_HELO: Final = re.compile(r"[!-~]{1,255}")
_STATUS: Final = re.compile(rb"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_KEYWORDS: Final = {Announce.XFORWARD: b"XFORWARD", Announce.XCLIENT: b"XCLIENT"}
_PROXY: Final = {Announce.PROXY_V1: proxy_v1, Announce.PROXY_V2: proxy_v2}


@dataclass(frozen=True, slots=True)
class Link:
    """How the servers behind a proxy are spoken to.

    Attributes:
        announce: how they learn who the client is.
        tls: whether the way there is encrypted, and verified.
        context: what is demanded of a server's TLS; None where there is none.
        name: name that a certificate must have instead of the host's; None for the host's.
        credentials: user and password, or None.
    """

    announce: Announce = Announce.OFF
    tls: NextHopTls = NextHopTls.OFF
    context: ssl.SSLContext | None = None
    name: str | None = None
    credentials: Credentials | None = None


class Destination:
    """One server, and the connections to it that are kept for reuse.

    Args:
        endpoint: where it listens.
        link: how it is spoken to.
        settings: how long it may take.
        hostname: what we call ourselves in EHLO.

    Attributes:
        known: what it offered when it was last asked; None if it never was.
        avoided_until: the event loop's time before which it is passed over while others answer.
    """

    def __init__(self, endpoint: Endpoint, link: Link, settings: NextHopSettings, hostname: bytes) -> None:
        self.endpoint = endpoint
        self._name = str(endpoint)
        self.known: Capabilities | None = None
        self.avoided_until = 0.0
        self._link = link
        self._settings = settings
        self._hostname = hostname
        self._idle: dict[NextHopConnection, float] = {}
        self._retiring: asyncio.TimerHandle | None = None
        self._outbox = Outbox()
        self._known_until = 0.0
        self._closed = False

    def __str__(self) -> str:
        """Return the address."""
        return self._name

    @property
    def fresh(self) -> Capabilities | None:
        """What it offered, as heard within the last `idle_seconds`; else None."""
        return self.known if asyncio.get_running_loop().time() < self._known_until else None

    def take(self) -> NextHopConnection | None:
        """Return a connection that nobody uses, or None."""
        while self._idle:
            connection, _ = self._idle.popitem()  # the one used last is the likeliest to stand
            if connection.usable:
                connection.reused = True
                return connection
            connection.abort()
        return None

    def keep(self, connection: NextHopConnection) -> None:
        """Take a connection back that has no transaction open."""
        if not connection.usable:
            connection.abort()
            return
        if self._closed or connection.burden > _MAX_BURDEN:
            connection.close()
            return
        until = connection.now + self._settings.idle_seconds
        self.known, self._known_until = connection.capabilities, until
        self._idle[connection] = until
        if self._retiring is None:
            self._retiring = asyncio.get_running_loop().call_at(until, self._retire)

    def close(self) -> None:
        """Close what is unused, and what comes back from now on."""
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        if self._retiring is not None:
            self._retiring.cancel()
            self._retiring = None

    async def connect(self, origin: Origin | None) -> NextHopConnection:
        """Return a new connection without a transaction.

        Args:
            origin: the client whose messages will go there; None for ourselves.

        Raises:
            NextHopFault: none can be made.
        """
        try:
            return await self._opened(origin, encrypted=self._link.tls is not NextHopTls.OFF)
        except TlsFault:
            if self._link.tls is not NextHopTls.OPPORTUNISTIC:
                raise
        # Encrypted if it can be had, and in clear rather than not at all (RFC 7435 section 3).
        return await self._opened(origin, encrypted=False)

    async def introduce(self, connection: NextHopConnection, origin: Origin | None) -> None:
        """Tell the server with XCLIENT of whom the next messages come, and hear what it offers that client.

        Raises:
            ClientFault: it does not take that.
            NextHopFault: it is gone. Either way the connection is cut: it may serve under a foreign name now.
        """
        if origin is None or connection.origin == origin:
            return
        seconds = self._settings.command_seconds
        try:
            for line in xclient_commands(origin, _attributes(connection, b"XCLIENT")):
                taken_of_client("XCLIENT", await connection.command(line, seconds))
            # XCLIENT_README has the client's own name follow, which is what the server goes by from then on.
            helo = origin.helo.encode() if _HELO.fullmatch(origin.helo) else self._hostname
            taken_of_client("the client's greeting", await self._said_hello(connection, helo))
        except BaseException:
            connection.abort()
            raise
        connection.origin = origin

    def _retire(self) -> None:
        """Close what was unused for long; one timer for all, since most connections are used again at once."""
        loop = asyncio.get_running_loop()
        self._retiring = None
        while self._idle:
            connection, until = next(iter(self._idle.items()))  # the one kept first
            if until > loop.time():
                self._retiring = loop.call_at(until, self._retire)
                return
            del self._idle[connection]
            connection.close()

    async def _opened(self, origin: Origin | None, *, encrypted: bool) -> NextHopConnection:
        connection = await self._connected()
        try:
            if self._link.announce in _PROXY:
                connection.tell(_PROXY[self._link.announce](origin or _OURSELVES))
            if encrypted and self._link.tls is NextHopTls.IMPLICIT:
                await self._encrypt(connection, first=True)
            _positive("the connection", await connection.greeting())
            await self._hello(connection)
            if encrypted and self._link.tls is not NextHopTls.IMPLICIT:
                try:
                    await self._start_tls(connection)
                except NextHopFault as fault:
                    # However it ends: a server that closes, or is silent, has no TLS for us either.
                    raise fault if isinstance(fault, TlsFault) else TlsFault(str(fault)) from fault
            if self._link.credentials is not None:
                await self._log_in(connection, self._link.credentials)
            self._check_announced(connection)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _connected(self) -> NextHopConnection:
        loop = asyncio.get_running_loop()
        seconds, endpoint = self._settings.connect_seconds, self.endpoint
        connection = NextHopConnection(loop, 2 * seconds, self._outbox)
        try:
            async with asyncio.timeout(seconds):
                if endpoint.path:
                    await loop.create_unix_connection(lambda: connection, endpoint.path)
                else:
                    await loop.create_connection(lambda: connection, endpoint.host, endpoint.port)
        except BaseException as error:
            connection.abort()
            if isinstance(error, TimeoutError):
                raise NextHopFault(f"the next hop could not be connected to within {seconds:g} s") from error
            if isinstance(error, OSError | UnicodeError):  # the latter for what no host can be called
                raise NextHopFault(f"the next hop cannot be connected to: {reason(error)}") from error
            raise
        return connection

    async def _hello(self, connection: NextHopConnection) -> None:
        _positive("our greeting", await self._said_hello(connection, self._hostname))

    async def _said_hello(self, connection: NextHopConnection, name: bytes) -> Reply:
        """Return the reply to EHLO, or to HELO where that is not known, and note what is offered."""
        seconds = self._settings.connect_seconds
        verb = b"LHLO " if self.endpoint.lmtp else b"EHLO "
        reply = await connection.command(verb + name, seconds)
        offered = Capabilities.of(reply) if reply.positive else Capabilities({})
        if reply.permanent and not self.endpoint.lmtp:
            reply = await connection.command(b"HELO " + name, seconds)
        connection.capabilities = offered
        connection.tells = self._announced_to(offered)
        return reply

    def _announced_to(self, offered: Capabilities) -> Announce | None:
        """Return how a server that offers this is told who the client is; None if with no command."""
        wanted = (
            (Announce.XFORWARD, Announce.XCLIENT) if self._link.announce is Announce.AUTO else (self._link.announce,)
        )
        return next((each for each in wanted if _KEYWORDS.get(each) in offered), None)

    def _check_announced(self, connection: NextHopConnection) -> None:
        """Raise IdentityFault where the settings name a command that the server does not offer.

        It would take the mail for ours, and its access control and its log would go by that.
        """
        announce = self._link.announce
        keyword = _KEYWORDS.get(announce)
        if keyword is None or b"ADDR" in _attributes(connection, keyword):
            return
        word = keyword.decode()
        raise IdentityFault(
            f'the next hop does not offer {word}, and next_hop_identity = "{announce.value}" wants it',
            f"let it offer that to this host (Postfix: smtpd_authorized_{announce.value}_hosts), or set another",
        )

    async def _start_tls(self, connection: NextHopConnection) -> None:
        if b"STARTTLS" not in connection.capabilities:
            if self._link.tls.verifies:
                raise TlsFault("the next hop does not offer STARTTLS, and next_hop_tls requires it")
            return
        reply = await connection.command(b"STARTTLS", self._settings.connect_seconds)
        if not reply.positive:
            raise TlsFault(f"the next hop answered STARTTLS with {reply}")
        await self._encrypt(connection, first=False)
        await self._hello(connection)

    async def _encrypt(self, connection: NextHopConnection, *, first: bool) -> None:
        if self._link.context is None:  # pragma: no cover -- who sets tls sets the context
            raise TlsFault("there is no TLS context")
        name = self._link.name or self.endpoint.host or None
        await connection.start_tls(self._link.context, name, self._settings.connect_seconds, first=first)

    async def _log_in(self, connection: NextHopConnection, credentials: Credentials) -> None:
        mechanism = choose(mechanisms(connection.capabilities.keywords.get(b"AUTH", b"")))
        if mechanism is None:
            raise LoginFault("the next hop offers neither AUTH PLAIN nor AUTH LOGIN")
        lines = auth_lines(mechanism, credentials)
        reply = await connection.command(lines[0], self._settings.connect_seconds, shown=b"AUTH")
        for line in lines[1:]:
            if reply.code != _MORE_WANTED:
                break
            reply = await connection.command(line, self._settings.connect_seconds, shown=b"AUTH")
        if not reply.positive:
            # Its text stays out of the log: there are servers that repeat what they do not like.
            status = _STATUS.match(reply.texts[0])
            said = f"{reply.code} {status[0].decode()}" if status is not None else str(reply.code)
            raise LoginFault(f"the next hop does not let us log in: {said}")
        # A server may offer more to whom it knows.
        await self._hello(connection)


def taken_of_client(what: str, reply: Reply) -> None:
    """Raise ClientFault where a server has refused what it was told of a client, and NextHopFault where it closes."""
    if reply.positive:
        return
    kind = NextHopFault if reply.code == _CLOSING else ClientFault
    raise kind(f"the next hop answered {what} with {reply}")


def _positive(what: str, reply: Reply) -> None:
    if not reply.positive:
        raise NextHopFault(f"the next hop answered {what} with {reply}")


def _attributes(connection: NextHopConnection, keyword: bytes) -> list[bytes]:
    return connection.capabilities.keywords.get(keyword, b"").upper().split()
