"""PROXY headers: the client is whom the header names, and without a good one nobody is served."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from batv.config import SmtpSettings
from batv.net.door import Door
from batv.smtp.reply import Reply
from scripts.fuzzing.pieces import by_chance
from tests.support import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batv.observe.event import Event
    from batv.smtp.origin import Origin

__all__ = ["checking"]

_HERE: Final = "127.0.0.1"
_SEEN: Final = Reply.of(421, "4.3.2 Seen")
_SECONDS: Final = 60.0


class _LoadBalancer:
    """Connects to a door that takes it for a load balancer, and sees whom the door takes for the client."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, Origin]] = []
        self._notices: list[Event] = []
        self._door = Door("proxy.example", SmtpSettings(), self._notices.append, self._converse)
        self._door.proxy_protocol_from = [ip_network(f"{_HERE}/32")]

    def _converse(self, address: str, origin: Origin) -> Reply:
        self._seen.append((address, origin))
        return _SEEN

    async def begin(self) -> asyncio.Server:
        """Let the door listen."""
        return await asyncio.get_running_loop().create_server(self._door.connection, _HERE, 0)

    async def check(self, octets: bytes, port: int) -> None:
        """Send octets to the door, and nothing after them."""
        self._seen.clear()
        self._notices.clear()
        wanted = reference.proxy_header(octets)
        async with asyncio.timeout(_SECONDS):
            heard = await self._hear(octets, port)
            await self._door.emptied()
        if wanted is None:
            assert self._seen == [], "somebody is served"
            assert heard == b"", "something is said to nobody knows whom"
            return
        ends, _ = wanted
        assert len(self._seen) == 1, f"nobody is served: {self._notices}"
        assert self._notices == []
        address, origin = self._seen[0]
        if ends == reference.Ends():
            assert (address, origin.address) == (_HERE, _HERE)
        else:
            found = (origin.address, origin.port, origin.destination_address, origin.destination_port)
            assert found == ends
            assert address == ends.address

    async def _hear(self, octets: bytes, port: int) -> bytes:
        reader, writer = await asyncio.open_connection(_HERE, port)
        heard = b""
        # What nobody has read is lost with a reset once the door has closed.
        with suppress(OSError):
            for piece in by_chance(octets):
                writer.write(piece)
                await asyncio.sleep(0)
            if writer.can_write_eof():
                writer.write_eof()
            heard = await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return heard


@contextmanager
def checking() -> Iterator[Callable[[bytes], None]]:
    """Return what checks octets that a load balancer sends first of all."""
    with asyncio.Runner() as runner:
        balancer = _LoadBalancer()
        server = runner.run(balancer.begin())
        port = server.sockets[0].getsockname()[1]
        yield lambda octets: runner.run(balancer.check(octets, port))
        server.close()
        runner.run(server.wait_closed())
