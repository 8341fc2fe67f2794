"""The next hop of a replay: an SMTP server that takes everything and keeps it, octet for octet.

It knows every user but those whose local part begins with `unknown-user`. What it takes is on its list before the
client hears 250.

Source: RFC 5321; RFC 1870, 2920, 3461, 6152, 6531 for what it offers.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from batv.config import Endpoint
from batv.corpus.classes import UNKNOWN_USER
from batv.errors import UnavailableError
from batv.net.reason import reason

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Sink", "Taken"]

_MAX_OCTETS: Final = 1 << 28
_END: Final = b"\r\n.\r\n"
_EHLO: Final = (
    b"250-sink.example\r\n250-PIPELINING\r\n250-SIZE\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n"
    b"250 ENHANCEDSTATUSCODES\r\n"
)


@dataclass(slots=True)
class Taken:
    """One message that the sink took.

    Attributes:
        mail: the argument of MAIL after `FROM:`: path and parameters.
        recipients: the arguments of RCPT after `TO:` that were accepted; a scorer takes away what it has matched.
        content: the message, dots unstuffed.
    """

    mail: bytes
    recipients: list[bytes] = field(default_factory=list)
    content: bytes = b""


class Sink:
    """Listens for as long as the context lasts.

    Args:
        endpoint: where; port 0 lets the system choose.

    Raises:
        UnavailableError: nobody can listen there.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._wanted = endpoint
        self._server: asyncio.Server | None = None
        self._sessions: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.taken: list[Taken] = []
        self.asked: set[bytes] = set()

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        wanted = self._wanted
        try:
            if wanted.path:
                self._server = await asyncio.start_unix_server(self._serve, wanted.path, limit=_MAX_OCTETS)
            else:
                self._server = await asyncio.start_server(self._serve, wanted.host, wanted.port, limit=_MAX_OCTETS)
        except OSError as error:
            raise UnavailableError(
                f"the sink cannot listen on {wanted}: {reason(error).lower()}", "free that address or name another"
            ) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, and cut what is open."""
        if self._server is not None:
            self._server.close()
        for writer in self._sessions.values():
            writer.transport.abort()
        await asyncio.gather(*self._sessions)

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        if self._server is None or self._wanted.path:
            return self._wanted
        host, port = self._server.sockets[0].getsockname()[:2]
        return Endpoint(host=host, port=port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._sessions[task] = writer
            task.add_done_callback(self._sessions.pop)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._converse(reader, writer)
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 sink.example ESMTP\r\n")
        under_way: Taken | None = None
        while line := await reader.readuntil(b"\r\n"):
            verb = line[:4].upper()
            argument = line[10:-2] if verb == b"MAIL" else line[8:-2]
            match verb:
                case b"EHLO":
                    writer.write(_EHLO)
                case b"MAIL":
                    under_way = Taken(argument)
                    writer.write(b"250 2.1.0 Ok\r\n")
                case b"RCPT":
                    self.asked.add(argument)
                    if under_way is None:
                        writer.write(b"503 5.5.1 No sender\r\n")
                    elif argument.startswith(b"<" + UNKNOWN_USER.encode()):
                        writer.write(b"550 5.1.1 No such user\r\n")
                    else:
                        under_way.recipients.append(argument)
                        writer.write(b"250 2.1.5 Ok\r\n")
                case b"DATA" if under_way is not None and under_way.recipients:
                    writer.write(b"354 Go on\r\n")
                    await writer.drain()
                    under_way.content = await _content(reader)
                    self.taken.append(under_way)
                    under_way = None
                    writer.write(b"250 2.0.0 Taken\r\n")
                case b"RSET" | b"NOOP" | b"HELO":
                    under_way = None
                    writer.write(b"250 2.0.0 Ok\r\n")
                case b"QUIT":
                    writer.write(b"221 2.0.0 Bye\r\n")
                    return
                case _:
                    writer.write(b"503 5.5.1 Not now\r\n")
            await writer.drain()


async def _content(reader: asyncio.StreamReader) -> bytes:
    first = await reader.readuntil(b"\r\n")
    if first == b".\r\n":
        return b""
    # The line end of the first line may begin the end of the message.
    rest = b"\r\n" + await reader.readuntil(b"\r\n")
    while not rest.endswith(_END):
        rest += await reader.readuntil(b".\r\n")
    octets = first[:-2] + rest[: -len(_END) + 2]
    if octets.startswith(b"."):
        octets = octets[1:]
    return octets.replace(b"\r\n.", b"\r\n")
