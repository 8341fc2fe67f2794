"""What a client has sent and nobody has read yet.

Takes the place of asyncio's StreamReader, whose buffer, limits and exceptions cost more than the relay of a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

__all__ = ["Inflow"]

_ENOUGH_OCTETS: Final = 65_536
"""Unread octets from which on nothing more is taken from the client; the event loop may hand over more at once."""


_LINE_OCTETS: Final = 107
"""Longest PROXY header of version 1. Source: section 2.1 of HAProxy's proxy-protocol.txt."""


class Inflow:
    """Octets as they come, for one reader; a client that sends faster than it is read is held up.

    Its reading methods are those of the reader that aiosmtpd takes a PROXY header from.
    """

    __slots__ = ("_came", "_ended", "_held_up", "_loop", "_transport", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._came = b""
        self._ended = False
        self._held_up = False
        self._transport: asyncio.ReadTransport | None = None
        self._waiting: asyncio.Future[None] | None = None

    def come_from(self, transport: asyncio.ReadTransport) -> None:
        """Let this be the connection that is held up."""
        self._transport = transport
        self._held_up = False

    def feed(self, octets: bytes) -> None:
        """Take octets."""
        self._came = self._came + octets if self._came else octets
        waiting = self._waiting
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if len(self._came) >= _ENOUGH_OCTETS and self._transport is not None and not self._held_up:
            self._held_up = True
            self._transport.pause_reading()

    def end(self) -> None:
        """Take note that nothing more will come."""
        self._ended = True
        self._wake()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._ended

    @property
    def empty(self) -> bool:
        """Whether everything that came was read."""
        return not self._came

    def coming(self) -> asyncio.Future[None] | None:
        """Return what is done once something has come, or nothing more will; None if that is so already."""
        if self._came or self._ended:
            return None
        waiting = self._waiting = self._loop.create_future()
        return waiting

    async def read(self, n: int = -1) -> bytes:
        """Return what came, at most n octets if n is not negative, as soon as something has; nothing at the end."""
        coming = self.coming()
        if coming is not None:
            await coming
        if n < 0 or n >= len(self._came):
            return self.drain()
        taken, self._came = self._came[:n], self._came[n:]
        if self._held_up and len(self._came) < _ENOUGH_OCTETS:
            self._let_come()
        return taken

    async def readexactly(self, n: int) -> bytes:
        """Return n octets.

        Raises:
            ConnectionResetError: fewer come.
        """
        taken = b""
        while len(taken) < n:
            piece = await self.read(n - len(taken))
            if not piece:
                raise ConnectionResetError("the client closed too early")
            taken += piece
        return taken

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Return the octets up to and with the separator, which must come soon.

        Raises:
            ConnectionResetError: it does not come within the longest line that a PROXY header has.
        """
        taken = b""
        while not taken.endswith(separator):
            if len(taken) >= _LINE_OCTETS:
                raise ConnectionResetError("a line is too long")
            taken += await self.readexactly(1)
        return taken

    def drain(self) -> bytes:
        """Return what came, without waiting."""
        came, self._came = self._came, b""
        if self._held_up:
            self._let_come()
        return came

    def _let_come(self) -> None:
        self._held_up = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
