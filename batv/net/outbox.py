"""Octets that go out when a turn of the event loop is over.

In one turn many sessions are served. To write for each at once would wake its peer each time, which costs more than
all else that is done for a command; written one after the other, the first peer is still at work when the last octets
leave. What is said on one connection in the same turn goes out in one piece, too.
"""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["Outbox"]

_AT_ONCE_OCTETS: Final = 16_384
"""From here on octets are not kept waiting: the event loop is to tell when there are too many for the peer."""


class Outbox:
    """Keeps what is written to connections until the event loop has done what it was about to do."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[asyncio.WriteTransport, bytes] = {}

    def put(self, transport: asyncio.WriteTransport, octets: bytes) -> None:
        """Write octets to a connection, soon, and after all that was written to it before."""
        waiting = self._waiting
        before = waiting.get(transport)
        if before is not None:
            octets = before + octets
        elif not waiting:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.flush)
        waiting[transport] = octets
        if len(octets) > _AT_ONCE_OCTETS:
            self.send(transport)

    def send(self, transport: asyncio.WriteTransport) -> None:
        """Write what waits for one connection; to be called before it is closed, or written to in another way."""
        octets = self._waiting.pop(transport, None)
        if octets is not None and not transport.is_closing():
            transport.write(octets)

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, {}
        for transport, octets in waiting.items():
            if not transport.is_closing():
                transport.write(octets)
