"""A next hop for tests: records every octet that it hears, and fails where and how it is told to.

It is a server of its own, in a thread of its own, and shares no code with the product: what it says it got is what
went over the wire. A message is on its record before its reply is sent, so whoever has the reply may look it up.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from threading import Event, Thread
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine, Sequence
    from typing import Self

__all__ = [
    "CLOSE",
    "RESET",
    "SILENCE",
    "TLS_READY",
    "Answer",
    "Connection",
    "Failure",
    "Message",
    "RecordingNextHop",
    "Stage",
]

_CHUNK_OCTETS: Final = 65_536
_END: Final = b"\r\n.\r\n"
TLS_READY: Final = b"220 2.0.0 go ahead\r\n"
"""The reply to STARTTLS of a server that is ready."""
_OFFERS: Final = (b"8BITMIME", b"SMTPUTF8", b"DSN")


class Stage(Enum):
    """Where in a session the next hop can fail."""

    BANNER = "banner"
    EHLO = "EHLO"
    MAIL = "MAIL"
    FIRST_RCPT = "first RCPT"
    LAST_RCPT = "last RCPT"
    DATA = "DATA"
    BODY = "in the message"
    DOT = "final dot"
    RSET = "RSET"

    def __str__(self) -> str:
        """Return the words for it."""
        return self.value


@dataclass(frozen=True, slots=True)
class Answer:
    """A failure that says something.

    Attributes:
        octets: what is said in the place of the reply.
        then_close: whether the connection is closed after it.
    """

    octets: bytes
    then_close: bool = False

    def __str__(self) -> str:
        """Return what is said, and whether that is all."""
        return ascii(self.octets)[2:-1] + (" and closes" if self.then_close else "")

    @property
    def refuses(self) -> bool:
        """Whether this is a reply that says that the message was not taken."""
        return self.octets[:1] in {b"4", b"5"} and self.octets.endswith(b"\r\n")


class _Wordless(Enum):
    SILENCE = "is silent"
    CLOSE = "closes"
    RESET = "resets"

    def __str__(self) -> str:
        return self.value


SILENCE: Final = _Wordless.SILENCE
"""Reads on, and says nothing more."""
CLOSE: Final = _Wordless.CLOSE
"""Closes the connection."""
RESET: Final = _Wordless.RESET
"""Closes the connection with a TCP reset."""

Failure = Answer | _Wordless


@dataclass(frozen=True, slots=True)
class Message:
    """A message that the next hop has taken.

    Attributes:
        mail: the argument of MAIL.
        recipients: the argument of each RCPT that was answered with 250.
        content: the octets between 354 and the final dot, dots stuffed as they came; empty if they are not kept.
        octets: how many those were.
        digest: their SHA-256, in hex.
    """

    mail: bytes
    recipients: tuple[bytes, ...]
    content: bytes
    octets: int
    digest: str


@dataclass(slots=True)
class Connection:
    """What one connection has sent.

    Attributes:
        commands: the command lines, in their order.
        content_octets: octets of messages, dots included.
        dots: final dots.
        tls: version of TLS; empty in clear.
        in_clear: how many of the commands came before TLS.
        ended: whether the peer has closed or cut it.
    """

    commands: list[bytes] = field(default_factory=list)
    content_octets: int = 0
    dots: int = 0
    tls: str = ""
    in_clear: int = 0
    ended: bool = False


class _GoneError(Exception):
    """The connection is over."""


class RecordingNextHop:
    """Listens on a free port of the loopback for as long as the context lasts.

    Args:
        keep: whether the content of messages is kept; else only its digest is.
        rejects: local parts whose recipients get 550.
        offers: keywords of its EHLO reply.

    Attributes:
        tls: what TLS is done with; None where STARTTLS is not offered.
        tls_first: whether TLS begins with the first octet; for connections from the next `listen` on.
        tls_answer: what STARTTLS is answered with; where that is empty, the connection is closed.
        tls_shakes: whether the handshake is answered after that.
        messages: those taken, in their order.
        connections: all there were, in their order.
        strangers: attributes as XCLIENT and XFORWARD have them, whose clients are refused.
        dots: set once a final dot has come; may be cleared.
        content: set once octets of a message have come; may be cleared.
    """

    def __init__(
        self, *, keep: bool = True, rejects: frozenset[bytes] = frozenset(), offers: Sequence[bytes] = _OFFERS
    ) -> None:
        self.messages: list[Message] = []
        self.connections: list[Connection] = []
        self.dots = Event()
        self.content = Event()
        self.rejects: Final = rejects
        self.keep: Final = keep
        self.offers: Final = tuple(offers)
        self.tls: ssl.SSLContext | None = None
        self.tls_first = False
        self.tls_answer = TLS_READY
        self.tls_shakes = True
        self.strangers: frozenset[bytes] = frozenset()
        self.failing: tuple[Stage, Failure] | None = None
        self.recipients_expected = 1
        self._loop: Final = asyncio.new_event_loop()
        self._thread: Final = Thread(target=self._loop.run_forever, name="next hop", daemon=True)
        self._sessions: set[asyncio.Task[None]] = set()
        self._reads = asyncio.Event()
        self._answers = asyncio.Event()
        self._reads.set()
        self._answers.set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        """End all connections and stop."""
        self.stop_listening()
        self._do(self._end_sessions())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        """Where it listens, as the settings have it."""
        return f"127.0.0.1:{self.port}"

    @property
    def commands(self) -> list[bytes]:
        """The command lines of all connections, without the greetings."""
        return [
            command
            for connection in self.connections
            for command in connection.commands
            if command[:4].upper() not in {b"EHLO", b"QUIT"}
        ]

    @property
    def listening(self) -> bool:
        """Whether it takes connections."""
        return self._server is not None

    # What a test tells it.

    def fail(self, stage: Stage, failure: Failure, recipients: int = 1) -> None:
        """Fail at that stage from now on; `recipients` says which RCPT is the last."""
        self.recipients_expected = recipients
        self.failing = (stage, failure)

    def heal(self) -> None:
        """Fail no more."""
        self.failing = None

    def forget(self) -> None:
        """Close all connections and begin a new record."""
        self._do(self._end_sessions())
        self.messages.clear()
        self.connections.clear()
        self.dots.clear()
        self.content.clear()

    def listen(self) -> None:
        """Begin to listen, on the same port as before."""
        self._do(self._listen())

    def stop_listening(self) -> None:
        """Refuse connections, and cut those there are."""
        self._do(self._stop_listening())

    def hold_reading(self) -> None:
        """Take nothing more of messages until `go_on`."""
        self._loop.call_soon_threadsafe(self._reads.clear)

    def hold_answer(self) -> None:
        """Keep back the reply to a message until `go_on`."""
        self._loop.call_soon_threadsafe(self._answers.clear)

    def go_on(self) -> None:
        """Read and answer again."""
        self._loop.call_soon_threadsafe(self._reads.set)
        self._loop.call_soon_threadsafe(self._answers.set)

    # The server.

    def _do(self, what: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _listen(self) -> None:
        context = self.tls if self.tls_first else None
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, limit=_CHUNK_OCTETS, ssl=context
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._end_sessions()

    async def _end_sessions(self) -> None:
        for session in self._sessions:
            session.cancel()
        if self._sessions:
            await asyncio.wait(self._sessions)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        connection = Connection(tls=_version(writer))
        self.connections.append(connection)
        try:
            with suppress(_GoneError, ConnectionError, asyncio.CancelledError):
                await self._converse(connection, reader, writer)
        finally:
            connection.ended = True
            self._sessions.discard(task)
            writer.transport.abort()

    async def _converse(  # noqa: PLR0912 -- one case a verb
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def reply(stage: Stage | None, octets: bytes) -> bool:
            return await self._reply(stage, octets, reader, writer)

        await reply(Stage.BANNER, b"220 hop.example ESMTP\r\n")
        mail, named, taken = b"", 0, list[bytes]()
        while True:
            line = await reader.readline()
            if not line.endswith(b"\r\n"):
                raise _GoneError
            line = line[:-2]
            connection.commands.append(line)
            match line[:4].upper():
                case b"EHLO":
                    offers = [*([b"STARTTLS"] if self.tls is not None and not connection.tls else []), *self.offers]
                    lines = [b"250-%b\r\n" % line for line in (b"hop.example", *offers[:-1])]
                    await reply(Stage.EHLO, b"%b250 %b\r\n" % (b"".join(lines), offers[-1]))
                case b"STAR" if self.tls is not None:
                    if not self.tls_answer:
                        raise _GoneError
                    await reply(None, self.tls_answer)
                    if self.tls_answer.startswith(b"2"):
                        await self._start_tls(connection, reader, writer)
                        mail, named, taken = b"", 0, []
                case b"MAIL":
                    if mail:
                        await reply(None, b"503 5.5.1 nested MAIL\r\n")
                    elif await reply(Stage.MAIL, b"250 2.1.0 sender noted\r\n"):
                        mail, named, taken = line[10:], 0, []
                case b"RCPT" if mail:
                    named += 1
                    stage = Stage.FIRST_RCPT if named == 1 else None
                    if named == self.recipients_expected and self._fails_at(Stage.LAST_RCPT):
                        stage = Stage.LAST_RCPT
                    if any(line[8:].startswith(b"<" + local + b"@") for local in self.rejects):
                        await reply(stage, b"550 5.1.1 no such user here\r\n")
                    elif await reply(stage, b"250 2.1.5 recipient noted\r\n"):
                        taken.append(line[8:])
                case b"DATA" if taken:
                    if await reply(Stage.DATA, b"354 go on\r\n"):
                        await self._message(connection, mail, tuple(taken), reader, writer)
                        mail, taken = b"", []
                case b"RSET":
                    await reply(Stage.RSET, b"250 2.0.0 forgotten\r\n")
                    mail, taken = b"", []
                case b"XFOR" | b"XCLI":
                    await reply(None, self._told_of_client(line))
                case b"QUIT":
                    await reply(None, b"221 2.0.0 bye\r\n")
                    raise _GoneError
                case _:
                    await reply(None, b"503 5.5.1 what?\r\n")

    def _told_of_client(self, line: bytes) -> bytes:
        """Return the reply to XFORWARD or XCLIENT."""
        verb, *attributes = line.split()
        if not any(offer.startswith(verb + b" ") for offer in self.offers):
            return b"503 5.5.1 what?\r\n"
        if self.strangers.intersection(attributes):
            return b"550 5.7.1 not of that client\r\n"
        return b"220 hop.example ESMTP\r\n" if verb == b"XCLIENT" else b"250 2.0.0 Ok\r\n"

    async def _start_tls(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not self.tls_shakes:
            while await reader.read(_CHUNK_OCTETS):
                pass
            raise _GoneError
        assert self.tls is not None
        await writer.start_tls(self.tls)
        connection.tls, connection.in_clear = _version(writer), len(connection.commands)

    async def _message(
        self,
        connection: Connection,
        mail: bytes,
        recipients: tuple[bytes, ...],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        content, digest, octets = bytearray(), hashlib.sha256(), 0
        held = b"\r\n"  # what may be the beginning of the end; the line end of DATA counts
        answered = False
        while True:
            await self._reads.wait()
            chunk = await reader.read(_CHUNK_OCTETS)
            if not chunk:
                raise _GoneError
            connection.content_octets += len(chunk)
            self.content.set()
            answered = answered or not await self._reply(Stage.BODY, b"", reader, writer)
            piece = held + chunk
            end = piece.find(_END)
            piece, held = (piece[: end + 2], b"") if end >= 0 else (piece[:-4], piece[-4:])
            if octets < 2:  # the line end of DATA is none of the message's
                skipped = min(2 - octets, len(piece))
                octets += skipped
                piece = piece[skipped:]
            octets += len(piece)
            digest.update(piece)
            if self.keep:
                content += piece
            if end >= 0:
                break
        connection.dots += 1
        if answered:
            return
        if not (self._fails_at(Stage.DOT) and isinstance(self._failure, Answer) and self._failure.refuses):
            self.messages.append(Message(mail, recipients, bytes(content), octets - 2, digest.hexdigest()))
        self.dots.set()
        await self._answers.wait()
        await self._reply(Stage.DOT, b"250 2.0.0 taken as %d\r\n" % len(self.messages), reader, writer)

    def _fails_at(self, stage: Stage) -> bool:
        return self.failing is not None and self.failing[0] is stage

    @property
    def _failure(self) -> Failure | None:
        return self.failing[1] if self.failing is not None else None

    async def _reply(
        self, stage: Stage | None, octets: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send a reply, or fail; return whether the reply was the one that was to be sent."""
        failure = self._failure if stage is not None and self._fails_at(stage) else None
        if isinstance(failure, Answer):
            octets = failure.octets
        if failure is None or isinstance(failure, Answer):
            writer.write(octets)
            await writer.drain()
            if failure is not None and failure.then_close:
                writer.close()
                await writer.wait_closed()
                raise _GoneError
            return failure is None
        if failure is SILENCE:
            while await reader.read(_CHUNK_OCTETS):
                pass
        if failure is RESET:
            peer = cast("socket.socket", writer.get_extra_info("socket"))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _GoneError


def _version(writer: asyncio.StreamWriter) -> str:
    """Return the version of TLS that a connection has; empty in clear."""
    tls = writer.get_extra_info("ssl_object")
    return str(tls.version()) if tls is not None else ""
