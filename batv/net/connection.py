"""One connection to a next hop: commands out, replies in, a message in pieces.

Stock clients take the whole message, re-encode line ends, quote addresses anew and drop parameters, so this one is
our own.

Rules:

1. A reply belongs to the oldest command without one. A reply that nobody waits for, octets that are no reply, silence
   beyond a limit: the connection is broken, and everybody who waits on it hears NextHopFault.
2. 421 means that the server goes away, whatever the command was (RFC 5321 section 3.8): a fault too.
3. Nothing but the caller writes the final dot: a connection that is given up in the middle of a message is cut.
4. Nothing that came before TLS is taken for something that came in it (CVE-2011-0411).

Source: RFC 5321 sections 4.2 and 3.8; RFC 2920 section 3.1; RFC 3207 section 4.2.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from traceback import clear_frames
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from batv.errors import ReplyError, UnavailableError
from batv.net.deadline import Deadline
from batv.smtp.extension import Capabilities
from batv.smtp.reply import Reply, ReplyParser

if TYPE_CHECKING:
    import ssl

    from batv.config import Announce
    from batv.net.outbox import Outbox
    from batv.smtp.origin import Origin

__all__ = ["LoginFault", "NextHopConnection", "NextHopFault", "SilenceFault", "TlsFault"]

_RESETS: Final = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which a socket that is closed is reset."""

_GOES_AWAY: Final = 421
_MESSAGE: Final = b"the message"


class NextHopFault(UnavailableError):  # noqa: N818 -- a fault is what the rules call it
    """The next hop is unreachable, silent, broken or gone. The text is for the log alone."""


class SilenceFault(NextHopFault):
    """The next hop has not answered in time: the time that there was is used up."""


class TlsFault(NextHopFault):
    """The next hop and we find no TLS that suits both."""


class IdentityFault(NextHopFault):
    """The next hop cannot be told who the client is as the settings want it: whoever that is, it has to be mended."""


class ClientFault(NextHopFault):
    """The next hop refuses to hear that this is the client: others may be served all the same."""


class LoginFault(NextHopFault):
    """The next hop does not know us: another user, another password, or no mechanism that suits both."""


_Asked: TypeAlias = "tuple[asyncio.Future[Reply], float, bytes]"
"""A command without its reply: who waits, for how many seconds, and what was said."""


class NextHopConnection(asyncio.Protocol):
    """One connection to a next hop.

    Args:
        loop: the event loop.
        greeting_seconds: seconds for the greeting, from now.
        outbox: takes what is said.

    Attributes:
        capabilities: what the server offered in its reply to EHLO.
        reused: whether the connection has served a transaction before, so that the server may have closed it meanwhile.
        burden: errors and RSETs since the last message that the server took.
        origin: the client that XCLIENT told the server of; None for ourselves.
        tls: version and cipher; empty in clear.
        tells: how the server is told who the client is: with XFORWARD or XCLIENT; None if with neither.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, greeting_seconds: float, outbox: Outbox) -> None:
        self.capabilities = Capabilities({})
        self.reused = False
        self.burden = 0
        self.origin: Origin | None = None
        self.tls = ""
        self.tells: Announce | None = None
        self._loop = loop
        self._outbox = outbox
        self._parser = ReplyParser()
        self._fault: NextHopFault | None = None
        self._paused: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline = Deadline(loop, self._silent)
        # The greeting may come before anybody has had time to wait for it.
        self._greeting: asyncio.Future[Reply] = loop.create_future()
        self._waiting: deque[_Asked] = deque([(self._greeting, greeting_seconds, b"the greeting")])
        self._deadline.set(greeting_seconds)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry

    def data_received(self, data: bytes) -> None:
        """Hand each whole reply to whoever waits for it."""
        waiting, heard = self._waiting, False
        try:
            for reply in self._parser.feed(data):
                if reply.code == _GOES_AWAY:
                    self._break(f"goes away: {reply}")
                    return
                if not waiting:
                    self._break(f"unexpected reply: {reply}")
                    return
                (answer, _, line), heard = waiting.popleft(), True
                if line is _MESSAGE:
                    self.burden = 0
                elif reply.code >= 400:  # noqa: PLR2004 -- RFC 5321 section 4.2.1
                    self.burden += 1
                if not answer.done():
                    answer.set_result(reply)
        except ReplyError as error:
            self._break(str(error))
            return
        if not waiting:
            self._deadline.lift()
            if not self._parser.idle:
                self._break("sends what nobody waits for")
        elif heard:  # a server that sends octet by octet has no more time than one that is silent
            self._deadline.set(waiting[0][1])

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
    def now(self) -> float:
        """The event loop's time."""
        return self._loop.time()

    @property
    def usable(self) -> bool:
        """Whether the connection stands and nothing of a reply is under way."""
        return self._fault is None and not self._waiting and self._parser.idle

    @property
    def broken(self) -> bool:
        """Whether the server closed, was silent or said what is no reply; or we have cut the connection."""
        return self._fault is not None

    @property
    def pipelines(self) -> bool:
        """Whether the server takes a command before it has answered the last one."""
        return b"PIPELINING" in self.capabilities

    async def greeting(self) -> Reply:
        """Return the server's first reply.

        Raises:
            NextHopFault: there is none.
        """
        return await self._greeting

    def send(self, line: bytes, seconds: float) -> asyncio.Future[Reply]:
        """Send a command line, without its line end, and return what the reply to it will be.

        The future raises NextHopFault if there is none within so many seconds after the reply before it.

        Raises:
            NextHopFault: the connection is broken already.
        """
        return self._ask(line + b"\r\n", line, seconds)

    async def command(self, line: bytes, seconds: float, *, shown: bytes | None = None) -> Reply:
        """Send a command line, without its line end, and return the reply to it.

        Args:
            line: the command.
            seconds: how long the reply may take.
            shown: what a fault says instead of the line, where that holds a secret.

        Raises:
            NextHopFault: there is none within so many seconds.
        """
        if line == b"RSET":
            self.burden += 1
        return await self._ask(line + b"\r\n", line if shown is None else shown, seconds)

    def end_message(self, octets: bytes, seconds: float) -> asyncio.Future[Reply]:
        """Send the last octets of a message and the final dot, and return what the reply will be.

        The future raises NextHopFault if there is none within so many seconds; the server may have the message then.

        Raises:
            NextHopFault: the connection is broken already.
        """
        return self._ask(octets + b".\r\n", _MESSAGE, seconds)

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

    def tell(self, octets: bytes) -> None:
        """Send octets before the SMTP session to which there is no reply.

        Raises:
            NextHopFault: the connection is broken already.
        """
        self._write(octets)

    async def start_tls(self, context: ssl.SSLContext, name: str | None, seconds: float, *, first: bool) -> None:
        """Go on in TLS.

        Args:
            context: what is demanded of the server.
            name: the name that its certificate must have, if the context verifies one.
            seconds: how long the handshake may take.
            first: whether nothing comes before it, not even a greeting.

        Raises:
            TlsFault: the handshake failed.
            NextHopFault: the connection broke.
        """
        self._raise_fault()
        if not self._parser.idle or self._transport is None or (first and self._greeting.done()):
            raise TlsFault("the next hop sent something in clear before TLS, or after it had agreed to it")
        self._outbox.send(self._transport)
        try:
            transport = await self._loop.start_tls(
                self._transport, self, context, server_hostname=name, ssl_handshake_timeout=seconds
            )
        except (OSError, EOFError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            # They hold what holds it, and buffers, until the collector comes.
            clear_frames(error.__traceback__)
            error.__traceback__ = None
            raise TlsFault(f"the next hop and we have found no TLS: {str(error) or type(error).__name__}") from error
        if transport is None:
            raise TlsFault("the next hop closed the connection during the TLS handshake")
        self._transport = transport
        self.tls = str(transport.get_extra_info("ssl_object").version())
        self._raise_fault()

    def close(self) -> None:
        """Say QUIT and close; no transaction may be open."""
        if self._transport is not None and self._fault is None:
            self._outbox.send(self._transport)
            self._transport.write(b"QUIT\r\n")
            self._transport.close()
            self._break("closed by us")

    def abort(self) -> None:
        """Cut the connection, so that a message under way is never taken for complete."""
        self._break("cut by us")

    def _ask(self, octets: bytes, line: bytes, seconds: float) -> asyncio.Future[Reply]:
        if self._fault is not None:
            raise self._fault
        assert self._transport is not None  # noqa: S101 -- only connected ones are handed out
        self._outbox.put(self._transport, octets)
        reply: asyncio.Future[Reply] = self._loop.create_future()
        if not self._waiting:
            self._deadline.set(seconds)
        self._waiting.append((reply, seconds, line))
        return reply

    def _write(self, octets: bytes) -> None:
        self._raise_fault()
        if self._transport is None:  # pragma: no cover -- only connected ones are handed out
            raise NextHopFault("not connected")
        self._outbox.put(self._transport, octets)

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _silent(self) -> None:
        _, seconds, line = self._waiting[0]
        what = line if line.islower() else line[:4]  # addresses are not for this text
        self._break(f"silent for {seconds:g} s after {what.decode('ascii', 'replace')}", SilenceFault)

    def _break(self, what: str, kind: type[NextHopFault] = NextHopFault) -> None:
        if self._fault is None:
            self._fault = kind(f"the next hop {what}")
        for answer, _, _ in self._waiting:
            if not answer.done():
                answer.set_exception(self._fault)
                answer.exception()  # whoever waited may be gone; the fault is no news then
        self._waiting.clear()
        self._deadline.close()
        self.resume_writing()
        # A server that takes nothing more would hold a closing transport with octets left to write for ever; and the
        # system holds a connection that is not reset for minutes, with all that was to go to such a server.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)
            self._transport.abort()
