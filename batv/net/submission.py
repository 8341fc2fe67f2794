"""Handing one message to an SMTP server, and what the server said to each command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batv.smtp.origin import xforward_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batv.net.next_hop import NextHop
    from batv.smtp.origin import Origin
    from batv.smtp.reply import Reply

__all__ = ["Submission", "submit"]

_START_CONTENT: Final = 354


@dataclass(frozen=True, slots=True)
class Submission:
    """What the server said.

    Attributes:
        sender: its reply to MAIL.
        recipients: its reply to each RCPT; empty if MAIL was refused.
        message: its reply to DATA if that was refused, else to the message; None if it was not offered one.
    """

    sender: Reply
    recipients: tuple[Reply, ...]
    message: Reply | None

    @property
    def last(self) -> Reply:
        """The reply that settled the matter."""
        return self.message or (self.recipients[-1] if self.recipients else self.sender)


async def submit(
    server: NextHop,
    sender: bytes,
    recipients: Sequence[bytes],
    content: bytes | None,
    origin: Origin | None = None,
) -> Submission:
    """Offer a message.

    Args:
        server: who gets it.
        sender: reverse path with its parameters, as they follow `MAIL FROM:`.
        recipients: forward paths with their parameters, as they follow `RCPT TO:`.
        content: the message, with CRLF at each line's end and the last; None asks about the recipients alone.
        origin: whom the server is told with XFORWARD that it comes from, where it offers that; None for nobody.

    Raises:
        NextHopFault: the server is not there or does not answer.
    """
    seconds = server.settings.command_seconds
    connection = await server.route().acquire(fresh=True)
    told = xforward_commands(origin, connection.capabilities.keywords.get(b"XFORWARD", b"").split()) if origin else []
    try:
        for line in told:
            await connection.command(line, seconds)  # who takes no word of us will not let us in for it either
        mail = await connection.command(b"MAIL FROM:" + sender, seconds)
        if not mail.positive:
            connection.close()
            return Submission(mail, (), None)
        replies = [await connection.command(b"RCPT TO:" + recipient, seconds) for recipient in recipients]
        if content is None or not any(reply.positive for reply in replies):
            connection.close()
            return Submission(mail, tuple(replies), None)
        reply = await connection.command(b"DATA", server.settings.data_seconds)
        if reply.code == _START_CONTENT:
            stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
            await connection.write(stuffed, server.settings.data_seconds)
            reply = await connection.command(b".", server.settings.message_seconds)
        connection.close()
    except BaseException:
        connection.abort()
        raise
    return Submission(mail, tuple(replies), reply)
