"""A client for tests: says octets as they are given and returns replies as they come."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = ["SERVER_NAME", "Heard", "SmtpClient"]

_SECONDS: Final = 60.0
SERVER_NAME: Final = "mx.example.com"
"""What a client in TLS takes the server to be called."""


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
        tls: what TLS is done with from the first octet; None for none.

    Attributes:
        socket: the connection, in clear or in TLS.
    """

    def __init__(self, address: tuple[str, int], *, greet: bool = True, tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection(address, timeout=_SECONDS)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=SERVER_NAME)
        self._file = self.socket.makefile("rb")
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
        except (ConnectionError, ssl.SSLError):
            pass
        return Heard(0, text)

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Say STARTTLS, and go on in TLS; EHLO is not said.

        Raises:
            ssl.SSLError: the handshake failed.
        """
        assert self.say(b"STARTTLS").code == 220
        self.encrypt(context)

    def encrypt(self, context: ssl.SSLContext) -> None:
        """Go on in TLS without a word.

        Raises:
            ssl.SSLError: the handshake failed.
        """
        self._file.close()
        self.socket = context.wrap_socket(self.socket, server_hostname=SERVER_NAME)
        self._file = self.socket.makefile("rb")

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
