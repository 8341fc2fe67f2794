"""A session: every line has its reply, the same one however the octets come, and no word of the client's is in it.

The proxies are the real ones, on loopback, before a next hop that takes everything and records it.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.net import server
from batv.observe.event import Direction
from batv.proxy import service, session, transaction
from batv.smtp.origin import XCLIENT_ATTRIBUTES, XFORWARD_ATTRIBUTES
from batv.smtp.reply import Reply
from scripts.fuzzing.pieces import by_chance
from tests.support import reference
from tests.support.recorder import EVERYTHING, Recorder, recorded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.support.relay import Relay

__all__ = ["checking"]

_SECONDS: Final = 60.0
_LONGEST_LINE: Final = 4096
_END: Final = b"\r\n.\r\n"

_OURS: Final = frozenset(
    text
    for module in (server, service, session, transaction)
    for reply in vars(module).values()
    if isinstance(reply, Reply)
    for text in reply.texts
)
_SAID: Final = _OURS | {
    b"proxy.example",
    b"proxy.example ESMTP",
    b"PIPELINING",
    b" ".join((b"XCLIENT", *XCLIENT_ATTRIBUTES)),
    b" ".join((b"XFORWARD", *XFORWARD_ATTRIBUTES)),
    *EVERYTHING,
    b"2.0.0 Ok",  # the next hop's
    b"2.0.0 queued",
    b"go",
}
"""The text of every reply line that there is: what is not among them has come from the client, or from an error."""


class _Client:
    """One connection to a proxy, greeted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.replies: list[bytes] = []

    async def reply(self) -> bytes:
        """Return the next reply, all its lines; nothing if the connection has ended."""
        lines = b""
        while True:
            line = await self._reader.readline()
            lines += line
            if line[3:4] != b"-":
                break
        if lines:
            self.replies.append(lines)
        return lines

    async def say(self, octets: bytes) -> bytes:
        """Say octets, and return the reply."""
        await self.tell(octets)
        return await self.reply()

    async def tell(self, octets: bytes) -> None:
        """Say octets in pieces."""
        for piece in by_chance(octets):
            self._writer.write(piece)
            # Client and proxy share the event loop: with each round it reads what has come.
            for _ in range(2):
                await asyncio.sleep(0)

    async def end(self) -> None:
        """Say that nothing more comes, and hear all that is still said."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        while await self.reply():
            pass


@asynccontextmanager
async def _connected(relay: Relay) -> AsyncIterator[_Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    client = _Client(reader, writer)
    try:
        async with asyncio.timeout(_SECONDS):
            assert (await client.reply()).startswith(b"220 ")
            yield client
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class _Proxies:
    """Both proxies, and what is checked of them."""

    def __init__(self, relays: dict[Direction, tuple[Relay, Recorder]]) -> None:
        self._relays = relays

    async def check(self, octets: bytes) -> None:
        """Say octets to each proxy, line by line and at once."""
        for relay, recorder in self._relays.values():
            recorder.clear()
            by_line, at_once = await self._line_by_line(octets, relay, recorder)
            self._check_next_hop(recorder)
            recorder.clear()
            replies = await self._at_once(at_once, relay)
            assert replies == by_line[: len(replies)], "the pieces matter"
            assert len(replies) == 1 + at_once.count(b"\n"), "a line without a reply, or a reply without a line"
            self._check_next_hop(recorder)
            assert relay.errors == []
            relay.events.clear()

    async def _line_by_line(self, octets: bytes, relay: Relay, recorder: Recorder) -> tuple[list[bytes], bytes]:
        """Return the replies, and those of the octets that may be said without waiting for a reply among them."""
        at_once: bytes | None = None
        said = 0
        async with _connected(relay) as client:
            left = octets
            while b"\n" in left:
                line, _, left = left.partition(b"\n")
                said += len(line) + 1
                verb = reference.command(line) if len(line) <= _LONGEST_LINE else None
                reply = await client.say(line + b"\n")
                self._check_reply(reply, verb)
                if verb in {b"DATA", b"QUIT"} and at_once is None:
                    at_once = octets[:said]
                if reply.startswith(b"221 "):
                    left = b""
                if reply.startswith(b"354 "):
                    content = left if reference.scanned(left).message is not None else left + _END
                    wanted = reference.scanned(content)
                    left = wanted.rest
                    self._check_reply(await client.say(content.removesuffix(wanted.rest)), verb)
                    assert wanted.message is not None
                    self._check_message(wanted.message, relay, recorder)
            await client.tell(left)
            await client.end()
            return client.replies, octets if at_once is None else at_once

    @staticmethod
    async def _at_once(octets: bytes, relay: Relay) -> list[bytes]:
        async with _connected(relay) as client:
            await client.tell(octets)
            await client.end()
            return client.replies

    @staticmethod
    def _check_reply(reply: bytes, verb: bytes | None) -> None:
        found, broken = reference.replies(reply)
        assert not broken
        assert len(found) == 1, f"no reply: {reply!r}"
        _, texts = found[0]
        for text in texts:
            assert text in _SAID or (text[:5] == b"SIZE " and text[5:].isdigit()), f"not ours: {text!r}"
        assert (texts[0] == b"5.5.2 Syntax error") == (verb is None)

    def _check_message(self, message: bytes, relay: Relay, recorder: Recorder) -> None:
        """Assert that a message went on as it should; the inbound proxy may keep it, or mark it."""
        if relay is self._relays[Direction.OUTBOUND][0]:
            assert recorder.messages[-1] == message + b".\r\n"
        for sent in recorder.messages:
            assert sent.count(b"\r") == sent.count(b"\n") == sent.count(b"\r\n")
            assert (b"\r\n" + sent).find(_END) == len(sent) - 3

    @staticmethod
    def _check_next_hop(recorder: Recorder) -> None:
        """Assert that the next hop heard what the grammar has, and nothing else."""
        for line in recorder.commands:
            assert line.endswith(b"\r\n")
            verb = reference.command(line[:-1])
            argument = line[5:-2]
            if verb == b"MAIL":
                assert reference.mail(argument) is not None, line
            elif verb == b"RCPT":
                assert reference.rcpt(argument) is not None, line
            else:
                assert verb in {b"DATA", b"XCLIENT", b"XFORWARD", b"NOOP"}, line


@asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[_Proxies]:
    peers = ["127.0.0.1/32"]
    # A machine that is slow is no next hop that is silent.
    patience = dict.fromkeys(("connect_seconds", "command_seconds", "data_seconds", "message_seconds"), _SECONDS)
    hop = {"next_hop": patience}
    inbound, outbound = folder / "inbound", folder / "outbound"
    inbound.mkdir()
    outbound.mkdir()
    async with (
        recorded(inbound, Direction.INBOUND, hop | {"inbound": {"xclient_from": peers}}) as first,
        recorded(outbound, Direction.OUTBOUND, hop | {"outbound": {"xforward_from": peers}}) as second,
    ):
        yield _Proxies({Direction.INBOUND: (first[2], first[1]), Direction.OUTBOUND: (second[2], second[1])})


@contextmanager
def checking() -> Iterator[Callable[[bytes], None]]:
    """Return what checks octets that a client says once it is greeted."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        serving = _serving(Path(folder))
        proxies = runner.run(serving.__aenter__())
        try:
            yield lambda octets: runner.run(proxies.check(octets))
        finally:
            runner.run(serving.__aexit__(None, None, None))
