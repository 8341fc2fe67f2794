"""The client of the next hop, and the connections to it that are kept for reuse.

Stock clients take the whole message, re-encode line ends, quote addresses anew and drop parameters, so this one is
our own.

Rules:

1. A reply belongs to the oldest command without one. A reply that nobody waits for, octets that are no reply, silence
   beyond a limit: the connection is broken, and everybody who waits on it hears NextHopFault.
2. 421 means that the server goes away, whatever the command was (RFC 5321 section 3.8): a fault too.
3. A connection goes back for reuse only when no transaction is open on it; else the next user would meet
   `503 nested MAIL command`, or worse, add recipients to another's message. Nor does one that has heard many errors
   since its last message: servers slow such a connection down, and cut it, and that must not meet other people's mail.
4. Nothing but the caller writes the final dot: a connection that is given up in the middle of a message is cut.

Source: RFC 5321 sections 4.2, 4.5.3.2 and 3.8.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from batv.errors import ReplyError, UnavailableError
from batv.smtp.extension import Capabilities
from batv.smtp.reply import Reply, ReplyParser

if TYPE_CHECKING:
    from batv.config import Endpoint, NextHopSettings

__all__ = ["NextHop", "NextHopConnection", "NextHopFault"]

_GOES_AWAY: Final = 421

_MAX_BURDEN: Final = 5
"""Errors and RSETs without a message. Postfix delays from 10 errors on and cuts at 20; Exim cuts at 10 RSETs."""


class NextHopFault(UnavailableError):  # noqa: N818 -- a fault is what the rules call it
    """The next hop is unreachable, silent, broken or gone. The text is for the log alone."""


class NextHopConnection(asyncio.Protocol):
    """One connection to the next hop.

    Attributes:
        capabilities: what the server offered in its reply to EHLO.
        reused: whether the connection has served a transaction before, so that the server may have closed it meanwhile.
        burden: errors and RSETs since the last message that the server took.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.capabilities = Capabilities({})
        self.reused = False
        self.burden = 0
        self._loop = loop
        self._parser = ReplyParser()
        self._fault: NextHopFault | None = None
        self._paused: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        # The greeting may come before anybody has had time to wait for it.
        self._greeting: asyncio.Future[Reply] = loop.create_future()
        self._waiting: deque[asyncio.Future[Reply]] = deque([self._greeting])

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry

    def data_received(self, data: bytes) -> None:
        """Hand each whole reply to whoever waits for it."""
        try:
            for reply in self._parser.feed(data):
                if reply.code == _GOES_AWAY:
                    self._break(f"goes away: {reply}")
                    return
                if not self._waiting:
                    self._break(f"unexpected reply: {reply}")
                    return
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_result(reply)
        except ReplyError as error:
            self._break(str(error))

    def eof_received(self) -> None:
        """Give the connection up: the server has nothing more to say."""
        self._break("closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the connection up."""
        self._break(f"connection lost: {exc}" if exc else "closed the connection")

    def pause_writing(self) -> None:
        """Let writers wait."""
        if self._paused is None:
            self._paused = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let writers go on."""
        paused, self._paused = self._paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    # What callers use.

    @property
    def usable(self) -> bool:
        """Whether the connection stands and nothing of a reply is under way."""
        return self._fault is None and self._parser.idle and not self._waiting

    async def greeting(self, seconds: float) -> Reply:
        """Return the server's first reply.

        Raises:
            NextHopFault: there is none.
        """
        return await self._reply(self._greeting, seconds, "the greeting")

    async def command(self, line: bytes, seconds: float) -> Reply:
        """Send a command line, without its line end, and return the reply to it.

        Raises:
            NextHopFault: there is none within so many seconds.
        """
        reply = await self._reply(self._send(line + b"\r\n"), seconds, line[:4].decode("ascii", "replace"))
        if line == b"RSET" or reply.transient or reply.permanent:
            self.burden += 1
        return reply

    async def end_message(self, octets: bytes, seconds: float) -> Reply:
        """Send the last octets of a message and the final dot, and return the reply.

        Raises:
            NextHopFault: there is none within so many seconds; the server may have the message.
        """
        reply = await self._reply(self._send(octets + b".\r\n"), seconds, "the message")
        self.burden = 0
        return reply

    async def write(self, octets: bytes, seconds: float) -> None:
        """Send octets of a message, and wait until the server has taken enough of what is under way.

        Raises:
            NextHopFault: the connection broke, or that took longer than so many seconds.
        """
        self._write(octets)
        if self._paused is not None:
            timer = self._loop.call_later(seconds, self._break, f"took too little for {seconds:g} s")
            try:
                await asyncio.shield(self._paused)
            finally:
                timer.cancel()
            self._raise_fault()

    def close(self) -> None:
        """Say QUIT and close; no transaction may be open."""
        if self._transport is not None and self._fault is None:
            self._transport.write(b"QUIT\r\n")
            self._transport.close()
            self._break("closed by us")

    def abort(self) -> None:
        """Cut the connection, so that a message under way is never taken for complete."""
        self._break("cut by us")

    def _send(self, octets: bytes) -> asyncio.Future[Reply]:
        waiting: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting.append(waiting)
        self._write(octets)
        return waiting

    def _write(self, octets: bytes) -> None:
        self._raise_fault()
        if self._transport is None:  # pragma: no cover -- connect() hands out connected ones only
            raise NextHopFault("not connected")
        self._transport.write(octets)

    async def _reply(self, waiting: asyncio.Future[Reply], seconds: float, what: str) -> Reply:
        if not waiting.done():
            timer = self._loop.call_later(seconds, self._break, f"silent for {seconds:g} s after {what}")
            try:
                return await waiting
            finally:
                timer.cancel()
        return waiting.result()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _break(self, what: str) -> None:
        if self._fault is None:
            self._fault = NextHopFault(f"the next hop {what}")
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(self._fault)
                waiting.exception()  # whoever waited may be gone; the fault is no news then
        self._waiting.clear()
        self.resume_writing()
        # A server that takes nothing more would hold a closing transport with octets left to write for ever.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.abort()


class NextHop:
    """Connects to the next hop, and keeps unused connections for a while.

    Args:
        endpoint: where it listens.
        settings: how long it may take.
        hostname: what we call ourselves in EHLO.
    """

    def __init__(self, endpoint: Endpoint, settings: NextHopSettings, hostname: str) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self._hostname = hostname.encode("ascii", "replace")
        self._idle: dict[NextHopConnection, asyncio.TimerHandle] = {}
        self._known: Capabilities | None = None
        self._known_until = 0.0
        self._closed = False

    def same_as(self, other: NextHop) -> bool:
        """Whether the other would talk to the same server in the same way."""
        return (self.endpoint, self.settings, self._hostname) == (other.endpoint, other.settings, other._hostname)

    def __str__(self) -> str:
        """Return the address."""
        return str(self.endpoint)

    async def capabilities(self) -> Capabilities:
        """Return what the server offers, as heard within the last `idle_seconds`, or now.

        Raises:
            NextHopFault: it cannot be asked; `last_known` tells what it offered when it could.
        """
        if self._known is not None and asyncio.get_running_loop().time() < self._known_until:
            return self._known
        connection = await self.acquire()
        self.release(connection)
        return connection.capabilities

    @property
    def last_known(self) -> Capabilities | None:
        """What the server offered when it was last asked; None if it never was."""
        return self._known

    async def acquire(self, *, fresh: bool = False) -> NextHopConnection:
        """Return a connection without a transaction, an unused one if there is one and none freshly made is wanted.

        Raises:
            NextHopFault: none can be made.
        """
        while self._idle and not fresh:
            connection, timer = self._idle.popitem()  # the one used last is the likeliest to stand
            timer.cancel()
            if connection.usable:
                connection.reused = True
                return connection
            connection.abort()
        return await self._connect()

    def release(self, connection: NextHopConnection) -> None:
        """Take a connection back that has no transaction open."""
        if not connection.usable:
            connection.abort()
            return
        if self._closed or connection.burden > _MAX_BURDEN:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        self._known, self._known_until = connection.capabilities, loop.time() + self.settings.idle_seconds
        self._idle[connection] = loop.call_later(self.settings.idle_seconds, self._retire, connection)

    def close(self) -> None:
        """Close what is unused, and what comes back from now on."""
        self._closed = True
        for connection, timer in self._idle.items():
            timer.cancel()
            connection.close()
        self._idle.clear()

    def _retire(self, connection: NextHopConnection) -> None:
        if self._idle.pop(connection, None) is not None:
            connection.close()

    async def _connect(self) -> NextHopConnection:
        loop = asyncio.get_running_loop()
        connection = NextHopConnection(loop)
        seconds = self.settings.connect_seconds
        try:
            async with asyncio.timeout(seconds):
                if self.endpoint.path:
                    await loop.create_unix_connection(lambda: connection, self.endpoint.path)
                else:
                    await loop.create_connection(lambda: connection, self.endpoint.host, self.endpoint.port)
        except TimeoutError as error:
            raise NextHopFault(f"the next hop could not be connected to within {seconds:g} s") from error
        except (OSError, UnicodeError) as error:  # the latter for what no host can be called
            raise NextHopFault(f"the next hop cannot be connected to: {error}") from error
        try:
            await self._greet(connection, seconds)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _greet(self, connection: NextHopConnection, seconds: float) -> None:
        greeting = await connection.greeting(seconds)
        if not greeting.positive:
            raise NextHopFault(f"the next hop greeted with {greeting}")
        reply = await connection.command(b"EHLO " + self._hostname, seconds)
        if reply.positive:
            connection.capabilities = Capabilities.of(reply)
            return
        if reply.permanent:
            reply = await connection.command(b"HELO " + self._hostname, seconds)
        if not reply.positive:
            raise NextHopFault(f"the next hop answered our greeting with {reply}")
