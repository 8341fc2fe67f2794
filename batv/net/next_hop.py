"""The next hop of a proxy: the servers in their order, and the way of one client's messages to them.

Rules:

1. The servers are tried in their order. One that cannot be reached, breaks down, or cannot be told of clients as the
   settings want it, is passed over for a while, unless none is left. One that refuses to be told of one client is
   passed over for nobody, and what it refuses is not offered to the next one.
2. With PROXY a connection serves one client and ends with its session. With XCLIENT it is told of each change of
   client, and with XFORWARD of the client of each message: nobody is served under another's name. A server that takes
   no further XCLIENT, as Postfix takes none of a stranger, is one client's as with PROXY.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from batv.config import Announce
from batv.net.connection import ClientFault, NextHopConnection, NextHopFault
from batv.net.destination import Destination, Link
from batv.smtp.origin import xforward_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batv.config import Endpoint, NextHopSettings
    from batv.smtp.extension import Capabilities
    from batv.smtp.origin import Origin

__all__ = ["NextHop", "Route"]

_UNKNOWN_LINK = Link()


class NextHop:
    """The servers that the mail goes on to.

    Args:
        endpoints: where they listen, the first choice first.
        settings: how long they may take.
        hostname: what we call ourselves in EHLO.
        link: how they are spoken to.

    Attributes:
        settings: how long they may take.
        lmtp: whether a message may have one recipient only.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], settings: NextHopSettings, hostname: str, link: Link = _UNKNOWN_LINK
    ) -> None:
        self.settings = settings
        self._key = (tuple(endpoints), settings, hostname, link)
        self._link = link
        name = hostname.encode("ascii", "replace")
        self._destinations = [Destination(endpoint, link, settings, name) for endpoint in endpoints]
        # LMTP answers the message for each recipient, and we have one reply to give.
        self.lmtp = any(endpoint.lmtp for endpoint in endpoints)

    def same_as(self, other: NextHop) -> bool:
        """Whether the other would talk to the same servers in the same way."""
        return self._key == other._key

    def __str__(self) -> str:
        """Return the addresses."""
        return ",".join(map(str, self._destinations))

    def route(self, origin: Origin | None = None) -> Route:
        """Return the way of a client's messages; None for our own."""
        return Route(self, origin)

    @property
    def last_known(self) -> Capabilities | None:
        """What the first server that ever answered offered when it was last asked; None if none did."""
        return next((each.known for each in self._destinations if each.known is not None), None)

    def close(self) -> None:
        """Close what is unused, and what comes back from now on."""
        for destination in self._destinations:
            destination.close()

    # What routes use.

    @property
    def announce(self) -> Announce:
        """How the servers learn who the client is."""
        return self._link.announce

    def candidates(self) -> list[Destination]:
        """Return the servers to try: those that are not passed over, or all where none is left."""
        if len(self._destinations) == 1:
            return self._destinations
        now = asyncio.get_running_loop().time()
        return [each for each in self._destinations if each.avoided_until <= now] or self._destinations

    def pass_over(self, destination: Destination) -> bool:
        """Pass a server over for a while; return whether another one is left to try."""
        now = asyncio.get_running_loop().time()
        destination.avoided_until = now + self.settings.backoff_seconds
        return any(each.avoided_until <= now for each in self._destinations)


class Route:
    """The way of one client's messages.

    Args:
        next_hop: where they go.
        origin: the client; None for ourselves.

    Attributes:
        next_hop: where they go.
        settings: how long the servers may take.
        lmtp: whether a message may have one recipient only.
    """

    __slots__ = ("_announced", "_free", "_origin", "_own", "_serving", "lmtp", "next_hop", "settings")

    def __init__(self, next_hop: NextHop, origin: Origin | None) -> None:
        self.next_hop = next_hop
        self.settings = next_hop.settings
        self.lmtp = next_hop.lmtp
        self._origin = origin
        self._own = next_hop.announce in {Announce.PROXY_V1, Announce.PROXY_V2}
        # Which server each connection belongs to: those in use, and those that wait for this client alone.
        self._serving: dict[NextHopConnection, Destination] = {}
        self._free: dict[NextHopConnection, Destination] = {}
        # What goes before MAIL, and the attributes that it was made for.
        self._announced: tuple[bytes, list[bytes]] | None = None

    def __str__(self) -> str:
        """Return the addresses of the servers."""
        return str(self.next_hop)

    def tell(self, origin: Origin | None) -> None:
        """Let the messages from now on come from this client."""
        if origin != self._origin:
            self._origin = origin
            self._announced = None
            self.close()

    async def capabilities(self) -> Capabilities:
        """Return what the server offers this client, as heard within the last `idle_seconds`, or now.

        Raises:
            NextHopFault: it cannot be asked; `NextHop.last_known` tells what it offered when it could.
        """
        if not self._own:
            destination = self.next_hop.candidates()[0]
            known = destination.fresh
            if known is not None and b"XCLIENT" not in known:
                return known
        connection = await self.acquire()
        self.release(connection)
        return connection.capabilities

    def at_hand(self) -> NextHopConnection | None:
        """Return an unused connection of the server of first choice, if it need not be waited for."""
        destination = self.next_hop.candidates()[0]
        connection = self._unused(destination)
        if connection is None:
            return None
        self._serving[connection] = destination
        if connection.tells is Announce.XCLIENT and connection.origin != self._origin:
            self.release(connection)
            return None
        return connection

    async def acquire(self, *, fresh: bool = False) -> NextHopConnection:
        """Return a connection without a transaction, an unused one if there is one and none freshly made is wanted.

        Raises:
            NextHopFault: none can be made.
        """
        faults: list[str] = []
        candidates = self.next_hop.candidates()
        for destination in candidates:
            try:
                connection = None if fresh else await self._reused(destination)
                if connection is None:
                    connection = await destination.connect(self._origin)
                    if connection.tells is Announce.XCLIENT:
                        await destination.introduce(connection, self._origin)
            except ClientFault:
                raise
            except NextHopFault as fault:
                faults.append(f"{destination}: {fault}")
                if len(candidates) == 1:
                    raise
                self.next_hop.pass_over(destination)
            else:
                self._serving[connection] = destination
                return connection
        raise NextHopFault("; ".join(faults))

    def server(self, connection: NextHopConnection) -> str:
        """Return the address of the server that a connection in use belongs to."""
        return str(self._serving[connection])

    def release(self, connection: NextHopConnection) -> None:
        """Take a connection back that has no transaction open."""
        destination = self._serving.pop(connection)
        bound = connection.origin is not None and connection.tells is not Announce.XCLIENT
        if (self._own or bound) and connection.usable:
            destination.known = destination.known or connection.capabilities
            self._free[connection] = destination
        else:
            destination.keep(connection)

    def failed(self, connection: NextHopConnection, fault: NextHopFault) -> bool:
        """Cut a connection that broke before its server took anything; return whether to try again.

        One that was used before may have been closed meanwhile, which no server announces. Where a new one breaks, the
        server is passed over, if there is another; but not for a fault that is one client's.
        """
        connection.abort()
        destination = self._serving.pop(connection)
        if isinstance(fault, ClientFault):
            return connection.reused
        return connection.reused or self.next_hop.pass_over(destination)

    def drop(self, connection: NextHopConnection, *, politely: bool = False) -> None:
        """Give a connection up that has a transaction open; with QUIT, if politely and if nothing is under way.

        Where it broke by itself the server is passed over: the client that tries again is to meet one that serves.
        """
        destination = self._serving.pop(connection, None)
        if destination is not None and connection.broken:
            self.next_hop.pass_over(destination)
        if politely and connection.usable:
            connection.close()
        else:
            connection.abort()

    def close(self) -> None:
        """Close what only this client was served with."""
        for connection in self._free:
            connection.close()
        self._free.clear()

    def prelude(self, connection: NextHopConnection, identifier: str) -> list[bytes]:
        """Return the commands that go before each MAIL: those that say with XFORWARD who the client is.

        Args:
            connection: a connection in use.
            identifier: our name for the message, where the client has told none.
        """
        if self._origin is None or connection.tells is not Announce.XFORWARD:
            return []
        offered = connection.capabilities.keywords[b"XFORWARD"]
        if self._origin.ident or b"IDENT" not in offered.upper().split():
            if self._announced is None or self._announced[0] != offered:
                self._announced = offered, xforward_commands(self._origin, offered.split())
            return self._announced[1]
        return xforward_commands(replace(self._origin, ident=identifier), offered.split())

    async def _reused(self, destination: Destination) -> NextHopConnection | None:
        connection = self._unused(destination)
        if connection is not None and connection.tells is Announce.XCLIENT:
            try:
                await destination.introduce(connection, self._origin)
            except NextHopFault:
                return None  # it may have been closed meanwhile, which no server announces
        return connection

    def _unused(self, destination: Destination) -> NextHopConnection | None:
        for connection in [each for each, server in self._free.items() if server is destination]:
            del self._free[connection]
            if connection.usable:
                connection.reused = True
                return connection
        return None if self._own else destination.take()
