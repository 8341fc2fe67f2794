"""What the connections of one listener share: limits, counts, TLS, and the end without loss."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from batv.net.outbox import Outbox
from batv.net.server import SHUTTING_DOWN, ClientConnection
from batv.observe.event import Level, Notice
from batv.smtp.reply import Reply

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from batv.config import SmtpSettings
    from batv.net.conversation import Conversation
    from batv.observe.event import Observer
    from batv.smtp.origin import Origin

__all__ = ["Door"]

_CROWDED_NOTICE_SECONDS: Final = 60.0
_CROWDED: Final = Reply.of(421, "4.7.0 Too many connections")


class Door:
    """What the connections of one listener share: limits, counts, and how a conversation is begun.

    Args:
        hostname: what we call ourselves.
        settings: limits on clients.
        observer: told of what goes wrong.
        converse: begins a conversation for a client's address and both ends of its connection, or returns the reply
            with which it is sent away.

    Attributes:
        tls: returns what STARTTLS and TLS from the first octet are done with; None if they are not.
        proxy_protocol_from: peers that say with a PROXY header who the client is.
        max_connections_per_client: connections at once from one address; 0 for no limit but those of the settings.
        crowded: returns whether the process has as many connections as it can serve.
    """

    def __init__(
        self,
        hostname: str,
        settings: SmtpSettings,
        observer: Observer,
        converse: Callable[[str, Origin], Conversation | Reply],
    ) -> None:
        self.hostname = hostname
        self.settings = settings
        self.observer = observer
        self.converse = converse
        self.tls: ssl.SSLContext | None = None
        self.proxy_protocol_from: Sequence[IPv4Network | IPv6Network] = ()
        self.max_connections_per_client = 0
        self.crowded: Callable[[], bool] = bool
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self.outbox = Outbox()
        self._by_client: Counter[str] = Counter()
        self._empty = asyncio.Event()
        self._says_crowded_from = 0.0

    def connection(self, *, encrypted: bool = False) -> ClientConnection:
        """Return a protocol object for a connection that is about to be made; with TLS from the first octet or not."""
        return ClientConnection(self, asyncio.get_running_loop(), encrypted=encrypted)

    def admit(self, connection: ClientConnection) -> Reply | None:
        """Count a connection; return the reply with which it is sent away if there are too many."""
        self.connections.add(connection)
        self._empty.clear()
        if self.draining:
            return SHUTTING_DOWN
        if len(self.connections) > self.settings.max_connections or self.crowded():
            return self._turned_away("connections", len(self.connections))
        return None

    def count(self, address: str) -> Reply | None:
        """Count a client's connection; return the reply with which it is sent away if it has too many."""
        self._by_client[address] += 1
        limits = [each for each in (self.settings.max_connections_per_client, self.max_connections_per_client) if each]
        if limits and self._by_client[address] > min(limits):
            return self._turned_away("client", address)
        return None

    def leave(self, connection: ClientConnection, counted: str | None) -> None:
        """Count a connection no more, nor its client if that was counted."""
        self.connections.discard(connection)
        if counted is not None:
            self._by_client[counted] -= 1
            if not self._by_client[counted]:
                del self._by_client[counted]
        if not self.connections:
            self._empty.set()

    def _turned_away(self, field: str, value: object) -> Reply:
        """Say in the log why clients are sent away, but not for each one of a flood."""
        now = asyncio.get_running_loop().time()
        if now >= self._says_crowded_from:
            self._says_crowded_from = now + _CROWDED_NOTICE_SECONDS
            self.observer(Notice(Level.WARNING, "too many connections", {field: value}))
        return _CROWDED

    async def emptied(self) -> None:
        """Return once no connection is left."""
        if self.connections:
            await self._empty.wait()

    async def cut(self) -> None:
        """End the connections that are left; a message without its reply stays with its client."""
        tasks = [task for connection in self.connections if (task := connection.cut()) is not None]
        if tasks:
            await asyncio.wait(tasks)

    def drain(self) -> None:
        """Send away the clients without a transaction, and the others when theirs has ended."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
