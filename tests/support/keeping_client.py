"""A client that keeps a message until it hears 2yz or 5yz to it, as every MTA does, and remembers what it was told."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.support.smtp_client import SmtpClient

__all__ = ["Attempt", "Letter", "attempt"]

_TEXT: Final = b"Subject: caf\xc3\xa9\r\n\r\n..dot\r\nspaces  \r\n"


@dataclass(frozen=True, slots=True)
class Letter:
    """A message with an identity, by which it is found again.

    Attributes:
        identity: what its Message-ID begins with.
        octets: of padding.
    """

    identity: str
    octets: int = 1000

    @property
    def content(self) -> bytes:
        """Its octets up to the final dot: an accent, a dot-stuffed line, trailing spaces."""
        return b"Message-ID: <%b@client.example>\r\n" % self.identity.encode() + _TEXT + b"x" * self.octets + b"\r\n"

    @property
    def digest(self) -> str:
        """SHA-256 of its octets, in hex."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(slots=True)
class Attempt:
    """What a client was told of a message.

    Attributes:
        accepted: recipients with whom it need not be concerned any more.
        refused: recipients to whose senders it returns the message.
        heard: each reply with the verb that it was to.
    """

    accepted: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    heard: list[tuple[str, int]] = field(default_factory=list)

    @property
    def codes(self) -> list[int]:
        """The codes of the replies."""
        return [code for _, code in self.heard]


def _nothing() -> None:
    pass


def attempt(  # noqa: PLR0913 -- an envelope, and how it is said
    client: SmtpClient,
    letter: Letter,
    sender: bytes,
    paths: Mapping[bytes, bytes],
    *,
    parameters: bytes = b"",
    pipelined: bool = False,
    halfway: Callable[[], None] = _nothing,
) -> Attempt:
    """Send a message, and return what became of it.

    Args:
        client: past its EHLO, without a transaction.
        letter: the message.
        sender: reverse path, without its brackets.
        paths: the forward path for each recipient, without its brackets.
        parameters: those of MAIL, each with a space before it.
        pipelined: whether MAIL, RCPT and DATA are said without waiting for replies.
        halfway: called when half of the message is sent.
    """
    made = Attempt()
    lines = [
        b"MAIL FROM:<%b>%b\r\n" % (sender, parameters),
        *(b"RCPT TO:<%b>\r\n" % path for path in paths.values()),
        b"DATA\r\n",
    ]
    with suppress(ConnectionError):
        if pipelined:
            client.send(b"".join(lines))
        taken = _go_ahead(client, made, lines, list(paths), pipelined=pipelined)
        if taken:
            content = letter.content
            half = len(content) // 2
            client.send(content[:half])
            halfway()
            client.send(content[half:] + b".\r\n")
            if _hear(client, made, "dot", taken) == 250:
                made.accepted = taken
    return made


def _go_ahead(
    client: SmtpClient, made: Attempt, lines: Sequence[bytes], recipients: Sequence[bytes], *, pipelined: bool
) -> set[bytes]:
    """Come as far as 354, and return the recipients that the message has then; none where there is no 354."""
    if not pipelined:
        client.send(lines[0])
    mail = _hear(client, made, "MAIL", set(recipients))
    if mail != 250 and not pipelined:
        return set()
    taken = set()
    for recipient, line in zip(recipients, lines[1:-1], strict=True):
        if not pipelined:
            client.send(line)
        if _hear(client, made, "RCPT", {recipient} if mail == 250 else set()) == 250:
            taken.add(recipient)
    if not pipelined:
        if not taken:
            client.say(b"RSET")
            return set()
        client.send(lines[-1])
    if _hear(client, made, "DATA", taken) != 354:
        if taken:
            client.say(b"RSET")
        return set()
    if not taken:  # RFC 2920 section 3.1: a server may say 354 where it has taken no recipient
        client.send(b".\r\n")
        _hear(client, made, "dot", set())
    return taken


def _hear(client: SmtpClient, made: Attempt, verb: str, recipients: set[bytes]) -> int:
    """Hear a reply, and take note of those whom it refuses.

    Raises:
        ConnectionAbortedError: there is none.
    """
    code = client.reply().code
    made.heard.append((verb, code))
    if not code:
        raise ConnectionAbortedError
    if code >= 500:
        made.refused |= recipients
    return code
