"""The listener's side of a session: the one subclass of aiosmtpd's SMTP.

aiosmtpd gives the frame: the protocol object that the event loop calls, its session, the task that serves it, and the
reading of PROXY headers. Commands, the message, replies and errors are read and written here, because the stock ones
keep a message in memory, parse addresses and parameters into something else, share limits between sessions, and answer
an error of ours with 500. What a command means is the Conversation's matter.

Rules:

1. A command ends with CRLF and holds no control character; anything else is refused, never repaired.
2. After DATA nothing may have been sent before our 354: octets that have would be read as message by us and as
   commands by a peer that refuses DATA, or the other way round.
3. Replies to commands that the client sent together go out together, none before it is known, and none is kept for
   more than a second: a client that hears nothing from a slow next hop would give up, each time it tries.
4. An error of ours is `451 4.3.0` with a bland text; the session goes on.
5. A client that is gone before the final dot leaves no message; one that is gone after it changes nothing.
6. What was sent in clear ends with STARTTLS: commands behind it in the buffer are dropped, and the session begins anew
   (CVE-2011-0411).
7. A PROXY header is read from listed peers only, and from those it must come.

`PRIVATE_NAMES` lists what is used of aiosmtpd beyond its documentation; a test holds it against the installed release.

Source: RFC 5321 sections 4.1, 4.3 and 4.5; RFC 2920 section 3; RFC 3207; RFC 8314 section 3.3; HAProxy's
proxy-protocol.txt.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import deque
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from aiosmtpd.proxy_protocol import AF, V2_CMD, get_proxy
from aiosmtpd.smtp import SMTP, Envelope, Session

from batv.access import UNIX_CLIENT, within
from batv.errors import BatvError
from batv.net.deadline import Deadline
from batv.net.inflow import Inflow
from batv.net.tls import certificate_names, describe
from batv.observe.event import Level, Notice, printable
from batv.smtp.data import DataScanner
from batv.smtp.origin import Origin
from batv.smtp.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batv.net.conversation import Conversation
    from batv.net.door import Door

__all__ = ["PRIVATE_NAMES", "SHUTTING_DOWN", "ClientConnection"]

PRIVATE_NAMES: Final = (
    "_handle_client",
    "_handler_coroutine",
    "_original_transport",
    "_reset_timeout",
    "_timeout_cb",
    "_timeout_handle",
    "_tls_protocol",
)
"""Attributes of aiosmtpd's SMTP that are overridden or set here though it does not document them."""

_CHUNK_OCTETS: Final = 65_536
_AHEAD_COMMANDS: Final = 100
"""Recipients that may be said to the next hop before the first is answered; bounds what a reply waits for."""

_HANDSHAKE_SECONDS: Final = 60.0
_PROXY_SECONDS: Final = 30.0
"""For a PROXY header: the load balancer sends it at once."""

_GROUPING_SECONDS: Final = 1.0
"""For how long a reply waits for others to go out with it."""

_REPLY_GROUP_OCTETS: Final = 16_384
_CLOSING_SECONDS: Final = 5.0
"""Seconds for which a last reply may take to be sent, before the connection is cut."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

# aiosmtpd takes TCP44 too, and for a port whatever int() takes: 1_0, or 10 with white space behind it.
_PROXY_LINE = re.compile(rb"PROXY TCP[46](?: [0-9A-Fa-f.:]++){2}(?: (?:0|[1-9][0-9]{0,4})){2}\r\n")

_SYNTAX: Final = Reply.of(500, "5.5.2 Syntax error")
_UNKNOWN: Final = Reply.of(500, "5.5.1 Command unrecognized")
_NOT_OFFERED: Final = Reply.of(502, "5.5.1 Command not implemented")
_ARGUMENT: Final = Reply.of(501, "5.5.4 Syntax error in arguments")
_EARLY: Final = Reply.of(503, "5.5.1 Data before the reply to DATA")
_SEQUENCE: Final = Reply.of(503, "5.5.1 Bad sequence of commands")
_TLS_READY: Final = Reply.of(220, "2.0.0 Ready to start TLS")
_BYE: Final = Reply.of(221, "2.0.0 Bye")
_OK: Final = Reply.of(250, "2.0.0 Ok")
_LATER: Final = Reply.of(451, "4.3.0 Temporary failure, try again later")
_TOO_BIG: Final = Reply.of(552, "5.3.4 Message too big")
_TIMEOUT: Final = Reply.of(421, "4.4.2 Timeout")
_IDLING: Final = Reply.of(421, "4.7.0 Too many commands without a message")
SHUTTING_DOWN: Final = Reply.of(421, "4.3.2 Shutting down")
"""What a client hears while the service ends."""

_START_CONTENT: Final = 354


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
            "XCLIENT",
            "XFORWARD",
        )
    }

    # Python finds methods at once only where an object's dictionary has few entries, as that of the base class has.
    __slots__ = (
        "_address",
        "_asked",
        "_at",
        "_began",
        "_client_is_next",
        "_conversation",
        "_deadline",
        "_door",
        "_encrypted_first",
        "_grouped",
        "_grouping",
        "_heard",
        "_held_up",
        "_idle_commands",
        "_inflow",
        "_lost",
        "_open_conversation",
        "_pending",
        "_refused_recipients",
        "_tls",
    )

    _open_conversation: Conversation
    """The conversation, in which alone commands are read."""

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop, *, encrypted: bool) -> None:
        self.loop = loop
        # No reader: what comes is the inflow's. One would make a circle of references, which keeps what TLS has taken,
        # hundreds of kilobytes, until the collector comes.
        asyncio.StreamReaderProtocol.__init__(self, cast("asyncio.StreamReader", None), None, loop=loop)
        self.hostname = door.hostname
        self.session: Session | None = None
        self.envelope: Envelope | None = None
        self.transport: asyncio.Transport | None = None
        self.tls_context = None
        self._original_transport = None
        self._tls_protocol = None
        self._timeout_handle: asyncio.TimerHandle | None = None
        self._abort_handle: asyncio.TimerHandle | None = None
        self._handler_coroutine: asyncio.Task[None] | None = None
        self._door = door
        self._encrypted_first = encrypted
        self._tls = ""
        self._address = ""
        self._inflow = Inflow(loop)
        self._deadline = Deadline(loop, self._timeout_cb)
        self._held_up: asyncio.Future[None] | None = None
        # What came with the commands read so far, and where in it they end; empty where they end it.
        self._pending = b""
        self._at = 0
        self._asked: deque[tuple[Any, bool | None]] = deque()
        self._grouped = b""
        self._grouping: asyncio.TimerHandle | None = None
        self._refused_recipients = 0
        self._idle_commands = 0
        self._conversation: Conversation | None = None
        self._client_is_next = False
        self._heard = False
        self._began = loop.time()
        self._lost = False

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session."""
        peer = transport.get_extra_info("peername")
        # An address that is not there any more is nobody's, whatever the settings allow.
        family = transport.get_extra_info("socket").family
        self._address = UNIX_CLIENT if family == socket.AF_UNIX else str(peer[0]) if peer else ""
        self._inflow.come_from(cast("asyncio.ReadTransport", transport))
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """End the reading. The session itself goes on: a message after its final dot is still being answered."""
        self._lost = True
        self._deadline.close()
        if self._grouping is not None:
            self._grouping.cancel()
        if self._abort_handle is not None:
            self._abort_handle.cancel()
        self._inflow.end()
        self.resume_writing()
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None

    def data_received(self, data: bytes) -> None:
        """Take octets."""
        self._inflow.feed(data)

    def eof_received(self) -> bool | None:
        """Let the session read to the end of what came: a client may close its half after the final dot."""
        self._inflow.end()
        return not self._tls  # TLS knows no half that is closed

    def pause_writing(self) -> None:
        """Let the session wait until the client has read some of its replies."""
        if self._held_up is None:
            self._held_up = self.loop.create_future()

    def resume_writing(self) -> None:
        """Let the session go on."""
        held_up, self._held_up = self._held_up, None
        if held_up is not None and not held_up.done():
            held_up.set_result(None)

    # The limit on time: it runs while the client has to do something, never while the next hop has.

    def _reset_timeout(self, duration: float | None = None) -> None:
        """Do nothing: aiosmtpd would set a timer here that our own deadline stands for."""

    def _timeout_cb(self) -> None:
        if self._held_up is None and not self._inflow.empty:
            # It has come in this very turn, and is read in the next one: a final dot must not be answered by 421 too.
            self._deadline.set(0)
            return
        if self._conversation is not None:
            self._send_away(_TIMEOUT)
            return
        # A peer that sends no PROXY header would hand on to some client what we say.
        self._complain_of_header("none came in time")
        self._close()

    def _send_away(self, reply: Reply) -> None:
        transport = self.transport
        if transport is not None and not transport.is_closing():
            if self._grouped:
                self._send_group()  # or the client would take this reply for the one to its message
            if self._tls or not self._encrypted_first:
                self._door.outbox.put(transport, reply.octets)
            self._close()

    # The session.

    def drain(self) -> None:
        """Send the client away if it has no transaction; else that happens when it has ended."""
        if self._client_is_next and not (self._conversation is not None and self._conversation.in_transaction):
            self._send_away(SHUTTING_DOWN)

    def cut(self) -> asyncio.Task[None] | None:
        """Send the client away and end the session now; return the task that ends with it."""
        self._send_away(SHUTTING_DOWN)
        task: asyncio.Task[None] | None = self._handler_coroutine
        if task is not None:
            task.cancel()
        return task

    async def _handle_client(self) -> None:
        cause = "client gone"
        counted: str | None = None
        try:
            refusal = self._door.admit(self)
            origin = self._ends()
            if refusal is None and within(self._address, self._door.proxy_protocol_from):
                origin = await self._read_proxy_header(origin)
            if refusal is None:
                counted = self._address
                refusal = self._door.count(counted)
            if refusal is None and self._encrypted_first:
                await self._start_tls(await self._first_octets())
            if refusal is None and self._door.draining:
                refusal = SHUTTING_DOWN
            conversation = self._door.converse(self._address, origin) if refusal is None else refusal
            if isinstance(conversation, Reply):
                self._send_away(conversation)
                return
            self._conversation = self._open_conversation = conversation
            if self._tls:
                self._tell_of_tls(conversation)
            self._say(Reply.of(220, f"{self._door.hostname} ESMTP"))
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
            self._door.leave(self, counted)
            self._deadline.close()
            self._close()

    def _close(self) -> None:
        transport = self.transport
        if transport is not None and not transport.is_closing():
            if self._grouped:
                self._send_group()
            self._door.outbox.send(transport)
            transport.close()
            # A client that does not read would keep the transport closing for ever.
            self._abort_handle = self.loop.call_later(_CLOSING_SECONDS, self._abort)

    def _abort(self) -> None:
        transport = self.transport
        if transport is not None:
            transport.abort()

    # Who the client is.

    def _ends(self) -> Origin:
        """Return both ends of the connection.

        Raises:
            ConnectionResetError: it is gone already, as that of a load balancer that only looks whether we are there.
        """
        if not self._address:
            raise ConnectionResetError("the peer is gone")
        if self.transport is None or self._address == UNIX_CLIENT:
            return Origin()
        peer, own = self.transport.get_extra_info("peername"), self.transport.get_extra_info("sockname")
        if not peer or not own:
            return Origin()
        return Origin(address=str(peer[0]), port=peer[1], destination_address=str(own[0]), destination_port=own[1])

    async def _read_proxy_header(self, ends: Origin) -> Origin:
        """Return both ends of the client's connection, as a load balancer tells them before anything else.

        A header that tells of nobody (a health check) leaves the ends of the connection itself.
        """
        self._deadline.set(min(_PROXY_SECONDS, self._door.settings.command_seconds))
        self._client_is_next = True
        found = await get_proxy(self._inflow)
        self._client_is_next = False
        self._deadline.lift()
        if self._lost:
            # Load balancers look whether we are there, and go.
            raise ConnectionResetError("the peer is gone")
        told = found.command != V2_CMD.LOCAL and found.family in {AF.INET, AF.INET6}
        well_formed = found.src_addr is not None and (found.version != 1 or _PROXY_LINE.fullmatch(found.whole_raw))
        if not found.valid or (told and not well_formed):
            self._complain_of_header(str(found.error) or "it tells no address as it should")
            raise ConnectionResetError("no PROXY header")
        if not told:
            return ends
        self._address = str(found.src_addr)
        return Origin(
            address=self._address,
            port=found.src_port,
            destination_address=str(found.dst_addr),
            destination_port=found.dst_port,
        )

    def _complain_of_header(self, cause: str) -> None:
        fields = {"client": self._address, "cause": printable(cause.encode("utf-8", "backslashreplace"))}
        self._door.observer(Notice(Level.WARNING, "no PROXY header from a peer that must send one", fields))

    async def _first_octets(self) -> bytes:
        """Return what the client begins its handshake with.

        One that closes without a word is a health check: it costs no handshake, and leaves no line in the log.
        """
        self._deadline.set(min(_HANDSHAKE_SECONDS, self._door.settings.command_seconds))
        self._client_is_next = True
        octets = self._take_all() or await self._inflow.read()
        self._client_is_next = False
        self._deadline.lift()
        if not octets:
            raise ConnectionResetError("the client closed the connection before the handshake")
        return octets

    async def _start_tls(self, begun: bytes) -> None:
        """Go on in TLS.

        Args:
            begun: what the client has sent of it already.

        Raises:
            ConnectionError: the handshake failed; the connection is closed.
        """
        context = self._door.tls
        transport = self.transport
        if context is None or transport is None:
            raise ConnectionResetError("no TLS context, or no connection")
        if transport.is_closing() or self._inflow.ended:
            raise self._no_tls("the client closed the connection before the handshake")
        seconds = min(_HANDSHAKE_SECONDS, self._door.settings.command_seconds)
        self._door.outbox.send(transport)
        # What comes before the task has put its protocol in place would come to ours, and be lost.
        transport.pause_reading()
        starting = self.loop.create_task(
            self.loop.start_tls(transport, self, context, server_side=True, ssl_handshake_timeout=seconds)
        )
        if begun:
            # Once the task has put its protocol in place, which has begun with the turn after that.
            self.loop.call_soon(self.loop.call_soon, _feed, transport, begun)
        try:
            encrypted = await starting
        except (OSError, EOFError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            transport.abort()
            # They hold what holds it, and buffers, until the collector comes.
            clear_frames(error.__traceback__)
            error.__traceback__ = None
            raise self._no_tls(str(error)) from error
        if encrypted is None or self._lost:
            raise self._no_tls("")
        self.transport = encrypted
        self._inflow.come_from(encrypted)
        self._tls = describe(encrypted.get_extra_info("ssl_object"))

    def _no_tls(self, cause: str) -> ConnectionError:
        """Log why there is no TLS, and return what ends the session."""
        cause = cause or "the client closed the connection during the handshake"
        fields = {"client": self._address, "cause": printable(cause.encode("utf-8", "backslashreplace"))}
        self._door.observer(Notice(Level.WARNING, "no TLS with a client", fields))
        return ConnectionResetError("no TLS")

    def _tell_of_tls(self, conversation: Conversation) -> None:
        assert self.transport is not None  # noqa: S101 -- TLS was made on it
        conversation.secured(self._tls, certificate_names(self.transport.get_extra_info("ssl_object")))

    # Commands and replies.

    async def _converse(self, conversation: Conversation) -> None:
        while not self._lost:
            line = await self._command()
            if line is None:
                return
            reply = await self._answer(conversation, line)
            if reply is not None:
                self._say(reply)
                if reply is _BYE or reply is _EARLY:
                    return
            if self._asked and self._door.draining:
                await self._settle(conversation)
            over = self.loop.time() - self._began - self._door.settings.session_seconds
            if over > 0 and (not conversation.in_transaction or over > self._door.settings.message_seconds):
                self._say(_TIMEOUT)
                return
            if self._idle_commands >= self._door.settings.max_idle_commands:
                self._say(_IDLING)
                return
            if self._door.draining and not conversation.in_transaction:
                self._say(SHUTTING_DOWN)
                return

    async def _answer(self, conversation: Conversation, line: bytes) -> Reply | None:
        """Return the reply to a command, or None if it has none of its own, or not yet."""
        well_formed = line.endswith(b"\r") and not _CONTROL.search(line, 0, len(line) - 1)
        verb, _, argument = line[:-1].partition(b" ")
        name = self._VERBS.get(verb.upper()) if well_formed else None
        if self._asked and name != "smtp_RCPT":
            await self._settle(conversation)
        self._idle_commands += 1
        if name is None:
            return _UNKNOWN if well_formed else _SYNTAX
        handler: Callable[[bytes], Awaitable[Reply | None]] = getattr(self, name)
        try:
            return await handler(argument)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it is, the mail stays with the client
            self._report(error)
            conversation.fault(error)
            if self._asked:
                await self._settle(conversation)
            return _LATER

    def _ask(self, asked: tuple[Any, bool | None]) -> None:
        """Let a command be settled later; it counts when it is, after those before it."""
        self._asked.append(asked)
        self._idle_commands -= 1

    async def _settle(self, conversation: Conversation) -> None:
        """Give the replies to the commands that were begun, each once it is known."""
        while self._asked:
            asked, busy = self._asked.popleft()
            if isinstance(asked, Reply):
                reply = asked
            else:
                try:
                    reply = await conversation.settle(asked)
                except ConnectionError:
                    raise
                except Exception as error:  # noqa: BLE001 -- whatever it is, the mail stays with the client
                    self._report(error)
                    conversation.fault(error)
                    reply = _LATER
            self._idle_commands += 1
            if busy is not None:
                self._count_recipient(reply, busy=busy)
            self._say(reply)

    def _count_recipient(self, reply: Reply, *, busy: bool) -> None:
        if reply.positive:
            self._idle_commands = 0
        elif busy and self._refused_recipients < 2 * self._door.settings.max_recipients:
            # A list with many dead addresses, or more addresses than one transaction takes, is no idling.
            self._refused_recipients += 1
            self._idle_commands -= 1

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

    def _take_all(self) -> bytes:
        """Return what the client has sent and nobody has read."""
        taken, self._pending, self._at = self._pending[self._at :], b"", 0
        return taken + self._inflow.drain()

    async def _command(self) -> bytes | None:
        """Return the next line without its LF; None once the client has gone."""
        limit = self._door.settings.max_command_octets
        too_long = False
        waited = False
        while True:
            if self._pending and (end := self._pending.find(b"\n", self._at)) >= 0:
                line = self._pending[self._at : end]
                self._at = end + 1
                if self._at == len(self._pending):
                    self._pending, self._at = b"", 0
                if waited:
                    self._deadline.lift()
                self._heard = True
                if too_long or len(line) > limit:
                    return b"\0"  # no command: whatever it was, it is answered as a syntax error
                return line
            if self._pending:
                rest, self._at = self._pending[self._at :], 0
                if len(rest) > limit:
                    too_long, rest = True, b""
                self._pending = rest
            if self._asked or self._grouped:
                await self._say_all()
            if self._held_up is not None:
                await self._reader_catches_up(self._held_up)
            if not waited:
                # One limit for the whole line, so that an octet now and then does not prolong it.
                settings = self._door.settings
                seconds = settings.command_seconds
                self._deadline.set(seconds if self._heard else min(seconds, settings.greeting_seconds))
                waited = True
            coming = self._inflow.coming()
            if coming is not None:
                self._client_is_next = True
                await coming
                self._client_is_next = False
            octets = self._inflow.drain()
            if not octets:
                return None
            self._pending = self._pending + octets if self._pending else octets

    def _say(self, reply: Reply) -> None:
        """Give a reply, together with those to the commands that the client has sent in one go."""
        if not self._grouped and not self._asked and not self._pending:
            self._send(reply.octets)
            return
        self._grouped += reply.octets
        if len(self._grouped) > _REPLY_GROUP_OCTETS:
            self._send_group()
        elif self._grouping is None:
            self._grouping = self.loop.call_later(_GROUPING_SECONDS, self._send_group)

    async def _say_all(self) -> None:
        """Keep back none of the replies to the commands so far."""
        if self._asked:
            await self._settle(self._open_conversation)
        if self._grouped:
            self._send_group()

    def _send_group(self) -> None:
        if self._grouping is not None:
            self._grouping.cancel()
            self._grouping = None
        grouped, self._grouped = self._grouped, b""
        self._send(grouped)

    def _send(self, octets: bytes) -> None:
        if self.transport is not None:
            self._door.outbox.put(self.transport, octets)

    async def _reader_catches_up(self, held_up: asyncio.Future[None]) -> None:
        """Wait until the client has read some of its replies."""
        self._deadline.set(self._door.settings.command_seconds)
        await held_up
        self._deadline.lift()

    # One method a verb, as aiosmtpd has them; each returns the reply to its argument.

    async def smtp_EHLO(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        return await self._hello(argument, extended=True)

    async def smtp_HELO(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        return await self._hello(argument, extended=False)

    async def _hello(self, argument: bytes, *, extended: bool) -> Reply:
        name = argument.strip()
        if not name:
            return _ARGUMENT
        ours = [b"STARTTLS"] if self._door.tls is not None and not self._tls else []
        return await self._open_conversation.hello(name, extended=extended, ours=ours)

    async def smtp_STARTTLS(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        if self._door.tls is None:
            return _NOT_OFFERED
        if argument.strip():
            return _ARGUMENT
        if self._tls:
            return _SEQUENCE
        self._say(_TLS_READY)
        if self._grouped:
            self._send_group()
        self._take_all()
        await self._start_tls(b"")
        self._tell_of_tls(self._open_conversation)
        return None

    async def smtp_XCLIENT(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        return await self._open_conversation.xclient(argument)

    async def smtp_XFORWARD(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        return await self._open_conversation.xforward(argument)

    async def smtp_MAIL(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        self._refused_recipients = 0
        asked = await self._open_conversation.mail(argument)
        if isinstance(asked, Reply):
            return asked
        if self._pending:
            self._ask((asked, None))
            return None
        return await self._open_conversation.settle(asked)

    async def smtp_RCPT(self, argument: bytes) -> Reply | None:  # noqa: D102, N802 -- aiosmtpd's names
        conversation = self._open_conversation
        busy = conversation.in_transaction
        asked = await conversation.rcpt(argument)
        if self._asked or self._pending:
            self._ask((asked, busy))
            if len(self._asked) >= _AHEAD_COMMANDS:
                await self._settle(conversation)
            return None
        reply = asked if isinstance(asked, Reply) else await conversation.settle(asked)
        self._count_recipient(reply, busy=busy)
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
        if not self._inflow.empty:
            return _EARLY
        self._say(reply)
        if self._grouped:
            self._send_group()
        scanner = DataScanner()
        failed = False
        settings = self._door.settings
        until = self.loop.time() + settings.message_seconds
        while not scanner.done:
            left = until - self.loop.time()
            if left <= 0:
                self._send_away(_TIMEOUT)
                raise ConnectionResetError("the message took too long")
            self._deadline.set(min(settings.data_seconds, left))
            octets = await self._inflow.read(_CHUNK_OCTETS)
            self._deadline.lift()
            if scanner.octets > 2 * settings.max_message_octets:
                self._say(_TOO_BIG)  # to be heard by who looks while sending, or it would send again for days
                raise ConnectionResetError("the client sends without end")
            if not octets:
                raise ConnectionResetError("the client closed in the middle of a message")
            harmless = scanner.feed(octets)
            if not failed:
                try:
                    await conversation.content(harmless, scanner)
                except Exception as error:  # noqa: BLE001 -- the rest of the message must not be read as commands
                    failed = True
                    self._report(error)
                    conversation.fault(error)
        octets = harmless = b""  # the answer may be long in coming, and so many others wait for theirs
        self._pending, self._at = scanner.rest, 0
        self._idle_commands = 0
        return _LATER if failed else await conversation.end_of_content(scanner)


def _feed(transport: asyncio.Transport, octets: bytes) -> None:
    """Hand octets to the protocol of a transport as if they had just come."""
    protocol = cast("asyncio.BufferedProtocol", transport.get_protocol())
    while octets:
        room = memoryview(protocol.get_buffer(len(octets)))
        taken = min(len(room), len(octets))
        room[:taken] = octets[:taken]
        protocol.buffer_updated(taken)
        octets = octets[taken:]


# aiosmtpd logs each connection, command and reply; ours is one line a transaction, without what clients say.
for _logger in ("mail.log", "mail.debug"):
    logging.getLogger(_logger).setLevel(logging.ERROR)
