"""Sends a corpus over SMTP, from the addresses that its manifest names.

One client address has one session at a time and sends in the order of the manifest; several addresses send side by
side. Recipients that are asked to come in a transaction of their own (452 4.5.3) do so, as mail servers do.

Source: RFC 5321 sections 3.3, 4.5.2; RFC 2920 (MAIL and RCPT are sent together).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from batv.corpus.manifest import Ending
from batv.errors import ReplyError, UnavailableError
from batv.net.reason import reason
from batv.smtp.reply import Reply, ReplyParser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batv.config import Endpoint
    from batv.corpus.manifest import Corpus, Entry, Recipient

__all__ = ["Sent", "Speed", "replay"]

_SECONDS: Final = 60.0
"""For any reply of the proxy: far longer than it needs on loopback."""

_MESSAGES_A_SESSION: Final = 20
_GONE: Final = Reply(421, (b"4.4.2 The proxy closed the connection",))
_SEPARATELY: Final = b"4.5.3 "


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a corpus is sent.

    Attributes:
        concurrency: sessions at once.
        rate: messages a second; None for as many as go.
    """

    concurrency: int = 12
    rate: float | None = None


@dataclass(slots=True)
class Sent:
    """What the proxy answered to one message.

    Attributes:
        entry: the message's line of the manifest.
        content: its octets; empty for a call-out.
        replies: for each recipient, the reply to RCPT, or to DATA or the message where that was accepted.
    """

    entry: Entry
    content: bytes
    replies: list[Reply] = field(default_factory=list)


async def replay(corpus: Corpus, proxy: Endpoint, speed: Speed, progress: Callable[[int], None]) -> list[Sent]:
    """Send every message of a corpus and return what the proxy answered, in the order of the manifest.

    Args:
        corpus: what to send.
        proxy: where to.
        speed: how fast.
        progress: told how many messages are through.

    Raises:
        UnavailableError: the proxy takes no connection.
        CorpusError: a message's file is gone.
    """
    queues: dict[str, deque[int]] = {}
    for place, entry in enumerate(corpus.entries):
        queues.setdefault(entry.client, deque()).append(place)
    clients = deque(queues)
    found: dict[int, Sent] = {}
    pace = _Pace(speed.rate)

    async def work() -> None:
        while clients:
            client = clients.popleft()
            queue = queues[client]
            session: _Session | None = None
            try:
                for _ in range(_MESSAGES_A_SESSION):
                    if not queue:
                        break
                    await pace.wait()
                    place = queue.popleft()
                    entry = corpus.entries[place]
                    if session is None or not session.fits(entry):
                        if session is not None:
                            await session.quit()
                        session = await _Session.open(proxy, entry)
                    content = corpus.message(entry) if entry.ending is Ending.MESSAGE else b""
                    found[place] = await session.send(entry, content)
                    progress(len(found))
            finally:
                if session is not None:
                    await session.quit()
            if queue:
                clients.append(client)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(speed.concurrency, len(queues))):
                tasks.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    return [found[place] for place in range(len(corpus.entries))]


class _Pace:
    """Lets so many messages a second pass."""

    def __init__(self, rate: float | None) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._next = time.monotonic()

    async def wait(self) -> None:
        """Wait for the next turn."""
        if self._gap:
            now = time.monotonic()
            self._next = max(self._next, now) + self._gap
            await asyncio.sleep(self._next - self._gap - now)


class _Session:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, helo: str) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = ReplyParser()
        self._replies: deque[Reply] = deque()
        self._helo = helo
        self._open = True

    @classmethod
    async def open(cls, proxy: Endpoint, entry: Entry) -> _Session:
        """Connect, and greet as the entry's client."""
        try:
            async with asyncio.timeout(_SECONDS):
                if proxy.path:
                    reader, writer = await asyncio.open_unix_connection(proxy.path)
                else:
                    reader, writer = await asyncio.open_connection(proxy.host, proxy.port, local_addr=(entry.client, 0))
        except OSError as error:
            why = reason(error).lower() or "no answer"
            raise UnavailableError(
                f"the proxy at {proxy} takes no connection: {why}", "start it, or name its address"
            ) from error
        session = cls(reader, writer, entry.helo)
        await session._next()
        await session._say(f"EHLO {entry.helo}")
        return session

    def fits(self, entry: Entry) -> bool:
        """Whether the entry's client is the one that this session greeted as."""
        return self._open and self._helo == entry.helo

    async def send(self, entry: Entry, content: bytes) -> Sent:
        """Send one message, or make one call."""
        sent = Sent(entry, content)
        outcome: dict[int, Reply] = {}
        waiting = list(enumerate(entry.recipients))
        while waiting:
            replies = await self._transaction(entry, [recipient for _, recipient in waiting], content)
            apart = []
            for (place, recipient), reply in zip(waiting, replies, strict=True):
                if reply.code == 452 and reply.texts[0].startswith(_SEPARATELY) and len(waiting) > 1:  # noqa: PLR2004 -- as the proxy says it
                    apart.append((place, recipient))
                else:
                    outcome[place] = reply
            waiting = apart
        sent.replies = [outcome[place] for place in range(len(entry.recipients))]
        return sent

    async def quit(self) -> None:
        """Take leave and close."""
        if self._open:
            await self._say("QUIT")
        self._open = False
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _transaction(self, entry: Entry, recipients: Sequence[Recipient], content: bytes) -> list[Reply]:
        lines = [f"MAIL FROM:{entry.reverse_path} {entry.parameters}".rstrip()]
        lines += [f"RCPT TO:{recipient.forward_path} {recipient.parameters}".rstrip() for recipient in recipients]
        self._write("".join(f"{line}\r\n" for line in lines).encode())
        mail = await self._next()
        replies = [await self._next() for _ in recipients]
        if not mail.positive:
            await self._say("RSET")
            return [mail] * len(recipients)
        if entry.ending is Ending.QUIT:
            await self.quit()
            return replies
        if entry.ending is Ending.RSET or not any(reply.positive for reply in replies):
            await self._say("RSET")
            return replies
        last = await self._say("DATA")
        if last.intermediate:
            self._write(_on_the_wire(content))
            last = await self._next()
        return [last if reply.positive else reply for reply in replies]

    async def _say(self, line: str) -> Reply:
        self._write(f"{line}\r\n".encode())
        return await self._next()

    def _write(self, octets: bytes) -> None:
        if self._open:
            self._writer.write(octets)

    async def _next(self) -> Reply:
        """Return the next reply; 421 where there is none, and nothing is sent any more."""
        while not self._replies:
            if not self._open:
                return _GONE
            octets = b""
            with suppress(OSError):
                async with asyncio.timeout(_SECONDS):
                    await self._writer.drain()
                    octets = await self._reader.read(65_536)
            try:
                self._replies.extend(self._parser.feed(octets))
            except ReplyError:
                octets = b""
            if not octets:
                self._open = False
        return self._replies.popleft()


def _on_the_wire(content: bytes) -> bytes:
    """Return a message with dots stuffed, and its end."""
    octets = b"." + content if content.startswith(b".") else content
    octets = octets.replace(b"\r\n.", b"\r\n..")
    return octets + (b".\r\n" if octets.endswith(b"\r\n") or not octets else b"\r\n.\r\n")
