"""A client that sends a message but for its final dot, and the ways in which a client goes."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.support.service import ServiceProcess
    from tests.support.smtp_client import SmtpClient

__all__ = ["HALF_A_MESSAGE", "begin_message", "closes", "half_closes", "resets"]

HALF_A_MESSAGE: Final = b"Subject: half\r\n\r\n" + b"y" * 200_000 + b"\r\n"
"""What it has sent of the message: more than one write takes."""


def begin_message(client: SmtpClient, service: ServiceProcess, proxy: str) -> None:
    """Send a message but for its final dot: through the inbound proxy, a genuine bounce."""
    bounce = proxy == "inbound"
    recipient = service.tagged(b"joe@example.com") if bounce else b"ann@peer.example"
    assert client.say(b"MAIL FROM:<" + (b"" if bounce else b"joe@example.com") + b">").code == 250
    assert client.say(b"RCPT TO:<" + recipient + b">").code == 250
    assert client.say(b"DATA").code == 354
    client.send(HALF_A_MESSAGE)


def closes(client: SmtpClient) -> None:
    """Close the connection."""
    client.socket.shutdown(socket.SHUT_RDWR)


def half_closes(client: SmtpClient) -> None:
    """Close the sending half, as if nothing more were to come; in TLS, without TLS's own word for the end."""
    client.socket.shutdown(socket.SHUT_WR)


def resets(client: SmtpClient) -> None:
    """Cut the connection, as a client does that crashes."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.__exit__()
