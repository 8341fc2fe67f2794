"""The listener's side of a session: the one subclass of aiosmtpd's SMTP.

aiosmtpd gives the frame: the protocol object that the event loop calls, its session, its timer, later STARTTLS and
the PROXY protocol. Reading commands, the message, replies and errors are done here, because the stock ones keep a
message in memory, parse addresses and parameters into something else, share limits between sessions, and answer an
error of ours with 500. What a command means is the Conversation's matter.

Rules:

1. A command ends with CRLF and holds no control character; anything else is refused, never repaired.
2. After DATA nothing may have been sent before our 354: octets that have would be read as message by us and as
   commands by a peer that refuses DATA, or the other way round.
3. Replies to commands that the client sent together go out together, none before it is known, and none is kept for
   more than a second: a client that hears nothing from a slow next hop would give up, each time it tries.
4. An error of ours is `451 4.3.0` with a bland text; the session goes on.
5. A client that is gone before the final dot leaves no message; one that is gone after it changes nothing.

`PRIVATE_NAMES` lists what is used of aiosmtpd beyond its documentation; a test holds it against the installed release.

Source: RFC 5321 sections 4.1, 4.3 and 4.5; RFC 2920 section 3.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, cast

from aiosmtpd.smtp import SMTP, Envelope, Session

from batv.errors import BatvError
from batv.observe.event import Level, Notice, printable
from batv.smtp.data import DataScanner
from batv.smtp.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batv.config import SmtpSettings
    from batv.observe.event import Observer

__all__ = ["PRIVATE_NAMES", "UNIX_CLIENT", "ClientConnection", "Conversation", "Door"]

PRIVATE_NAMES: Final = (
    "_cb_client_connected",
    "_handle_client",
    "_handler_coroutine",
    "_original_transport",
    "_reader",
    "_reset_timeout",
    "_timeout_cb",
    "_timeout_duration",
    "_timeout_handle",
    "_tls_protocol",
    "_writer",
)
"""Attributes of aiosmtpd's SMTP that are overridden or set here though it does not document them."""

UNIX_CLIENT: Final = "unix"
"""What stands for the address of a client on a Unix socket."""

_CHUNK_OCTETS: Final = 65_536
_REPLY_GROUP_OCTETS: Final = 16_384
_GROUPING_SECONDS: Final = 1.0
"""For how long a reply waits for others to go out with it."""

_CLOSING_SECONDS: Final = 5.0
"""Seconds for which a last reply may take to be sent, before the connection is cut."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

_SYNTAX: Final = Reply.of(500, "5.5.2 Syntax error")
_UNKNOWN: Final = Reply.of(500, "5.5.1 Command unrecognized")
_NOT_OFFERED: Final = Reply.of(502, "5.5.1 Command not implemented")
_ARGUMENT: Final = Reply.of(501, "5.5.4 Syntax error in arguments")
_EARLY: Final = Reply.of(503, "5.5.1 Data before the reply to DATA")
_BYE: Final = Reply.of(221, "2.0.0 Bye")
_OK: Final = Reply.of(250, "2.0.0 Ok")
_LATER: Final = Reply.of(451, "4.3.0 Temporary failure, try again later")
_TIMEOUT: Final = Reply.of(421, "4.4.2 Timeout")
_IDLING: Final = Reply.of(421, "4.7.0 Too many commands without a message")
_CROWDED: Final = Reply.of(421, "4.7.0 Too many connections")
_SHUTTING_DOWN: Final = Reply.of(421, "4.3.2 Shutting down")

_START_CONTENT: Final = 354


class Conversation(Protocol):
    """What a session of the proxy offers to the door."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    async def hello(self, name: bytes, *, extended: bool) -> Reply:
        """Answer EHLO, or HELO where not extended."""

    async def mail(self, argument: bytes) -> Reply:
        """Answer MAIL; the argument is what follows the verb."""

    async def rcpt(self, argument: bytes) -> Reply:
        """Answer RCPT; the argument is what follows the verb."""

    async def data(self) -> Reply:
        """Answer DATA; 354 lets the content come."""

    async def content(self, octets: bytes, scanner: DataScanner) -> None:
        """Take the next octets of the message, harmless ones, and wait while they cannot be taken."""

    async def end_of_content(self, scanner: DataScanner) -> Reply:
        """Answer the message."""

    async def reset(self) -> Reply:
        """Answer RSET."""

    def fault(self, error: Exception) -> None:
        """Give up the transaction: an error of ours came out of one of the calls."""

    def gone(self, cause: str) -> None:
        """End the session: the client is gone, or is sent away. A message under way is given up."""


class Door:
    """What the connections of one listener share: limits, counts, and how a conversation is begun.

    Args:
        hostname: what we call ourselves.
        settings: limits on clients.
        observer: told of what goes wrong.
        converse: begins a conversation for a client's address, or returns the reply with which it is sent away.
    """

    def __init__(
        self,
        hostname: str,
        settings: SmtpSettings,
        observer: Observer,
        converse: Callable[[str], Conversation | Reply],
    ) -> None:
        self.hostname = hostname
        self.settings = settings
        self.observer = observer
        self.converse = converse
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self._by_client: Counter[str] = Counter()
        self._empty = asyncio.Event()

    def connection(self) -> ClientConnection:
        """Return a protocol object for a connection that is about to be made."""
        return ClientConnection(self, asyncio.get_running_loop())

    def admit(self, connection: ClientConnection, address: str) -> Reply | None:
        """Count a connection; return the reply with which it is sent away if there are too many."""
        self.connections.add(connection)
        self._empty.clear()
        self._by_client[address] += 1
        if self.draining:
            return _SHUTTING_DOWN
        limit = self.settings.max_connections_per_client or self.settings.max_connections
        if len(self.connections) > self.settings.max_connections or self._by_client[address] > limit:
            return _CROWDED
        return None

    def leave(self, connection: ClientConnection, address: str) -> None:
        """Count a connection no more."""
        self.connections.discard(connection)
        self._by_client[address] -= 1
        if not self._by_client[address]:
            del self._by_client[address]
        if not self.connections:
            self._empty.set()

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


class ClientConnection(SMTP):
    """One client.

    aiosmtpd's constructor looks through all methods of the handler and of itself, for each connection, and asks the
    resolver for a name; what it sets and is used afterwards is set here instead.
    """

    _VERBS: ClassVar[dict[bytes, str]] = {
        verb.encode("ascii"): f"smtp_{verb}"
        for verb in (
            "EHLO",
            "HELO",
            "MAIL",
            "RCPT",
            "DATA",
            "RSET",
            "NOOP",
            "QUIT",
            "VRFY",
            "EXPN",
            "HELP",
            "STARTTLS",
            "AUTH",
        )
    }

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        reader = asyncio.StreamReader(limit=_CHUNK_OCTETS, loop=loop)
        asyncio.StreamReaderProtocol.__init__(self, reader, self._cb_client_connected, loop=loop)
        self.hostname = door.hostname
        self.session: Session | None = None
        self.envelope: Envelope | None = None
        self.transport: asyncio.BaseTransport | None = None
        self.tls_context = None
        self._original_transport = None
        self._tls_protocol = None
        self._timeout_handle: asyncio.TimerHandle | None = None
        self._abort_handle: asyncio.TimerHandle | None = None
        self._timeout_duration = door.settings.command_seconds
        self._handler_coroutine: asyncio.Task[None] | None = None
        self._door = door
        self._address = ""
        self._pending = b""
        self._replies: list[bytes] = []
        self._grouping: asyncio.TimerHandle | None = None
        self._refused_recipients = 0
        self._idle_commands = 0
        self._conversation: Conversation | None = None
        self._reading_command = False
        self._lost = False

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session."""
        peer = transport.get_extra_info("peername")
        # An address that is not there any more is nobody's, whatever the settings allow.
        family = transport.get_extra_info("socket").family
        self._address = UNIX_CLIENT if family == socket.AF_UNIX else str(peer[0]) if peer else ""
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """End the reading. The session itself goes on: a message after its final dot is still being answered."""
        self._lost = True
        self._disarm()
        self._replies.clear()
        if self._grouping is not None:
            self._grouping.cancel()
        if self._abort_handle is not None:
            self._abort_handle.cancel()
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None

    def eof_received(self) -> bool | None:
        """Let the session read to the end of what came: a client may close its half after the final dot."""
        return asyncio.StreamReaderProtocol.eof_received(self)

    # The timer: it runs while the client has to do something, never while the next hop has.

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timeout_handle = self.loop.call_later(seconds, self._timeout_cb)

    def _disarm(self) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
            self._timeout_handle = None

    def _reset_timeout(self, duration: float | None = None) -> None:
        self._arm(duration or self._timeout_duration)

    def _timeout_cb(self) -> None:
        self._send_away(_TIMEOUT)

    def _send_away(self, reply: Reply) -> None:
        transport = cast("asyncio.WriteTransport | None", self.transport)
        if transport is not None and not transport.is_closing():
            transport.write(reply.octets)
            self._close()

    # The session.

    def drain(self) -> None:
        """Send the client away if it has no transaction; else that happens when it has ended."""
        if self._reading_command and not (self._conversation is not None and self._conversation.in_transaction):
            self._send_away(_SHUTTING_DOWN)

    def cut(self) -> asyncio.Task[None] | None:
        """Send the client away and end the session now; return the task that ends with it."""
        self._send_away(_SHUTTING_DOWN)
        task: asyncio.Task[None] | None = self._handler_coroutine
        if task is not None:
            task.cancel()
        return task

    async def _handle_client(self) -> None:
        refusal = self._door.admit(self, self._address)
        cause = "client gone"
        try:
            conversation = self._door.converse(self._address) if refusal is None else refusal
            if isinstance(conversation, Reply):
                self._send_away(conversation)
                return
            self._conversation = conversation
            self._queue(Reply.of(220, f"{self.hostname} ESMTP"))
            await self._converse(conversation)
        except (ConnectionError, TimeoutError):
            pass
        except asyncio.CancelledError:
            cause = "session ended by us"
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it is, it must not end in silence
            cause = "error of ours"
            self._report(error)
        finally:
            if self._conversation is not None:
                self._conversation.gone(cause)
            self._door.leave(self, self._address)
            self._disarm()
            self._close()

    def _close(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
            # A client that does not read would keep the transport closing for ever.
            self._abort_handle = self.loop.call_later(_CLOSING_SECONDS, self._abort)

    def _abort(self) -> None:
        transport = cast("asyncio.WriteTransport | None", self.transport)
        if transport is not None:
            transport.abort()

    async def _converse(self, conversation: Conversation) -> None:
        while not self._lost:
            line = await self._command()
            if line is None:
                return
            reply = await self._answer(conversation, line)
            if reply is None:
                continue
            self._queue(reply)
            if reply is _BYE or reply is _EARLY:
                await self._flush()
                return
            if self._idle_commands >= self._door.settings.max_idle_commands:
                self._queue(_IDLING)
                await self._flush()
                return
            if self._door.draining and not conversation.in_transaction:
                self._queue(_SHUTTING_DOWN)
                await self._flush()
                return

    async def _answer(self, conversation: Conversation, line: bytes) -> Reply | None:
        self._idle_commands += 1
        if not line.endswith(b"\r") or _CONTROL.search(line, 0, len(line) - 1):
            return _SYNTAX
        verb, _, argument = line[:-1].partition(b" ")
        name = self._VERBS.get(verb.upper())
        if name is None:
            return _UNKNOWN
        handler: Callable[[bytes], Awaitable[Reply | None]] = getattr(self, name)
        try:
            return await handler(argument)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it is, the mail stays with the client
            self._report(error)
            conversation.fault(error)
            return _LATER

    def _report(self, error: Exception) -> None:
        fields: dict[str, object] = {"client": self._address, "error": type(error).__name__, "cause": error}
        if not isinstance(error, BatvError | OSError):
            # The place in the code is for whoever mends it; a traceback would show values.
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            fields["at"] = f"{place.tb_frame.f_code.co_qualname}:{place.tb_lineno}" if place is not None else "?"
            fields["cause"] = printable(str(error).encode("utf-8", "backslashreplace"))[:200]
        self._door.observer(Notice(Level.ERROR, "error in a session", fields))

    async def _command(self) -> bytes | None:
        """Return the next line without its LF; None once the client has gone."""
        limit = self._door.settings.max_command_octets
        too_long = False
        armed = False
        while True:
            line, lf, rest = self._pending.partition(b"\n")
            if lf:
                self._pending = rest
                if armed:
                    self._disarm()
                if too_long or len(line) > limit:
                    return b"\0"  # no command: whatever it was, it is answered as a syntax error
                return line
            if len(self._pending) > limit:
                too_long, self._pending = True, b""
            await self._flush()
            if not armed:
                # One limit for the whole line, so that an octet now and then does not prolong it.
                self._arm(self._door.settings.command_seconds)
                armed = True
            self._reading_command = True
            try:
                octets = await self._reader.read(_CHUNK_OCTETS)
            finally:
                self._reading_command = False
            if not octets:
                return None
            self._pending += octets

    def _queue(self, reply: Reply) -> None:
        self._replies.append(reply.octets)
        if self._pending and self._grouping is None:
            self._grouping = self.loop.call_later(_GROUPING_SECONDS, self._send_replies)

    def _send_replies(self) -> None:
        if self._grouping is not None:
            self._grouping.cancel()
            self._grouping = None
        self._writer.write(b"".join(self._replies))
        self._replies.clear()

    async def _flush(self) -> None:
        if not self._replies:
            return
        self._send_replies()
        self._arm(self._door.settings.command_seconds)
        await self._writer.drain()
        self._disarm()

    # One method a verb, as aiosmtpd has them; each returns the reply to its argument.

    async def smtp_EHLO(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        return await self._hello(argument, extended=True)

    async def smtp_HELO(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        return await self._hello(argument, extended=False)

    async def _hello(self, argument: bytes, *, extended: bool) -> Reply:
        name = argument.strip()
        if not name:
            return _ARGUMENT
        return await self._open_conversation.hello(name, extended=extended)

    async def smtp_MAIL(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        self._refused_recipients = 0
        return await self._open_conversation.mail(argument)

    async def smtp_RCPT(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        conversation = self._open_conversation
        busy = conversation.in_transaction
        reply = await conversation.rcpt(argument)
        if reply.positive:
            self._idle_commands = 0
        elif busy and self._refused_recipients < 2 * self._door.settings.max_recipients:
            # A list with many dead addresses, or more addresses than one transaction takes, is no idling.
            self._refused_recipients += 1
            self._idle_commands -= 1
        if sum(map(len, self._replies)) > _REPLY_GROUP_OCTETS:
            await self._flush()
        return reply

    async def smtp_RSET(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        return await self._open_conversation.reset() if not argument.strip() else _ARGUMENT

    async def smtp_NOOP(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        del argument
        return _OK

    async def smtp_QUIT(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        return _BYE if not argument.strip() else _ARGUMENT

    async def smtp_VRFY(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        del argument
        return _NOT_OFFERED

    # Hidden from clients, or not there: the names of aiosmtpd's methods, none of which may be reached.
    smtp_EXPN = smtp_VRFY  # type: ignore[assignment]  # noqa: N815 -- aiosmtpd's names
    smtp_HELP = smtp_VRFY  # noqa: N815 -- aiosmtpd's names
    smtp_STARTTLS = smtp_VRFY  # noqa: N815 -- aiosmtpd's names
    smtp_AUTH = smtp_VRFY  # noqa: N815 -- aiosmtpd's names

    async def smtp_DATA(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        conversation = self._open_conversation
        if argument.strip():
            return _ARGUMENT
        if self._pending:
            return _EARLY
        reply = await conversation.data()
        if reply.code != _START_CONTENT:
            return reply
        if self._reader._buffer:  # type: ignore[attr-defined]  # noqa: SLF001 -- see rule 2
            return _EARLY
        self._queue(reply)
        await self._flush()
        scanner = DataScanner()
        failed = False
        while not scanner.done:
            self._arm(self._door.settings.data_seconds)
            octets = await self._reader.read(_CHUNK_OCTETS)
            self._disarm()
            if not octets or scanner.octets > 2 * self._door.settings.max_message_octets:
                raise ConnectionResetError("the client closed in the middle of a message, or sent without end")
            harmless = scanner.feed(octets)
            if not failed:
                try:
                    await conversation.content(harmless, scanner)
                except Exception as error:  # noqa: BLE001 -- the rest of the message must not be read as commands
                    failed = True
                    self._report(error)
                    conversation.fault(error)
        self._pending = scanner.rest
        self._idle_commands = 0
        return _LATER if failed else await conversation.end_of_content(scanner)

    @property
    def _open_conversation(self) -> Conversation:
        assert self._conversation is not None  # noqa: S101 -- commands are read only in a conversation
        return self._conversation


# aiosmtpd logs each connection, command and reply; ours is one line a transaction, without what clients say.
logging.getLogger("mail.log").setLevel(logging.ERROR)
