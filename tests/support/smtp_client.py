"""A client for tests: says octets as they are given and returns replies as they come."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = ["Heard", "SmtpClient"]

_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Heard:
    """A reply.

    Attributes:
        code: its three digits; 0 where the connection ended in its place.
        text: its lines, as they came.
    """

    code: int
    text: bytes


class SmtpClient:
    """A connection to a proxy, for as long as the context lasts.

    Args:
        address: host and port.
        greet: whether to read the banner and say EHLO at once.
    """

    def __init__(self, address: tuple[str, int], *, greet: bool = True) -> None:
        self.socket: Final = socket.create_connection(address, timeout=_SECONDS)
        self._file: Final = self.socket.makefile("rb")
        if greet:
            assert self.reply().code == 220
            assert self.say(b"EHLO client.example").code == 250

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._file.close()
        self.socket.close()

    def reply(self) -> Heard:
        """Return the next reply."""
        text = b""
        try:
            while line := self._file.readline():
                text += line
                if line[3:4] != b"-":
                    return Heard(int(line[:3]), text)
        except ConnectionError:
            pass
        return Heard(0, text)

    def send(self, octets: bytes) -> None:
        """Send octets."""
        self.socket.sendall(octets)

    def say(self, line: bytes) -> Heard:
        """Send a command and return its reply."""
        self.send(line + b"\r\n")
        return self.reply()

    def mail(self, sender: bytes, recipients: Sequence[bytes], content: bytes) -> Heard:
        """Send a message; return its reply, or the first one that stands in its way.

        Args:
            sender: address; empty for the null sender.
            recipients: addresses.
            content: octets up to the final dot, dots stuffed.
        """
        heard = self.say(b"MAIL FROM:<" + sender + b">")
        if heard.code != 250:
            return heard
        for recipient in recipients:
            heard = self.say(b"RCPT TO:<" + recipient + b">")
            if heard.code != 250:
                self.say(b"RSET")
                return heard
        heard = self.say(b"DATA")
        if heard.code != 354:
            return heard
        return self.say(content + b".")
