"""A next hop that takes everything and records the octets, and a client that says octets and waits for the reply."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.support.relay import USUAL, Relay, World, merged, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from batv.observe.event import Direction

__all__ = ["EVERYTHING", "Client", "Recorder", "recorded"]

EVERYTHING: Final = (b"SIZE 10240000", b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES")
"""EHLO keywords of a next hop that can do all that a proxy carries."""

_END: Final = b"\r\n.\r\n"


@dataclass
class Recorder:
    """The next hop.

    Attributes:
        offers: its EHLO keywords.
        commands: every command line that it heard but EHLO, RSET and QUIT, line ends included.
        messages: the octets of each message up to and with the `CRLF.CRLF` at which it read the end.
        envelopes: of each message the RCPT lines of its connection since MAIL or RSET, and its first line's last word.
    """

    offers: Sequence[bytes] = EVERYTHING
    commands: list[bytes] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    envelopes: list[tuple[tuple[bytes, ...], bytes]] = field(default_factory=list)

    def clear(self) -> None:
        """Forget what was recorded."""
        self.commands.clear()
        self.messages.clear()
        self.envelopes.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        writer.write(b"220 next.example\r\n")
        recipients: list[bytes] = []
        try:
            while (line := await reader.readline()) != b"":
                verb = line[:4].upper()
                if verb == b"EHLO":
                    keywords = [b"next.example", *self.offers]
                    writer.write(b"".join(b"250-%b\r\n" % keyword for keyword in keywords) + b"250 X-END\r\n")
                elif verb == b"DATA":
                    writer.write(b"354 go\r\n")
                    # The line end of the command before counts for a message that is empty.
                    message = b"\r\n"
                    while not message.endswith(_END):
                        message += await reader.readuntil(b"\n")
                    self.messages.append(message[2:])
                    first_line = message[2:].partition(b"\r\n")[0]
                    self.envelopes.append((tuple(recipients), first_line.rpartition(b" ")[2]))
                    recipients.clear()
                    writer.write(b"250 2.0.0 queued\r\n")
                else:
                    if verb == b"RCPT":
                        recipients.append(line)
                    else:
                        recipients.clear()
                    if verb not in {b"RSET", b"QUIT"}:
                        self.commands.append(line)
                    writer.write(b"250 2.0.0 Ok\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Client:
    """A client of the proxy, greeted and past its EHLO."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def reply(self) -> bytes:
        """Return the next reply, all its lines."""
        lines = b""
        async with asyncio.timeout(10):
            while True:
                line = await self._reader.readline()
                lines += line
                if line[3:4] != b"-":
                    return lines

    async def say(self, octets: bytes) -> bytes:
        """Say a line, and return the reply."""
        self._writer.write(octets + b"\r\n")
        return await self.reply()

    async def pieces(self, pieces: Sequence[bytes]) -> None:
        """Say octets in pieces that the proxy reads one by one."""
        for piece in pieces:
            self._writer.write(piece)
            # Client and proxy share the event loop: with each round it reads what has come.
            for _ in range(3):
                await asyncio.sleep(0)

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


@asynccontextmanager
async def recorded(
    folder: Path,
    direction: Direction,
    changes: Mapping[str, Any] | None = None,
    offers: Sequence[bytes] = EVERYTHING,
    world: World = USUAL,
) -> AsyncIterator[tuple[Client, Recorder, Relay]]:
    """Run a proxy between a client and a next hop that records, until the block ends."""
    recorder = Recorder(offers)
    server = await asyncio.start_server(recorder.serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        # A table of refusals is no attack.
        patient = merged({"smtp": {"max_idle_commands": 100_000}}, changes or {})
        async with running(folder, direction, port, patient, world) as relay:
            client = Client(*await asyncio.open_connection("127.0.0.1", relay.port))
            try:
                await client.reply()
                await client.say(b"EHLO client.example")
                yield client, recorder, relay
            finally:
                client.close()
            assert relay.errors == [] or world is not USUAL
    finally:
        server.close()
