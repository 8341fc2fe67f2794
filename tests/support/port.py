"""Ports for servers that have to be told where to listen."""

from __future__ import annotations

import secrets
import socket

__all__ = ["free_port"]


def free_port() -> int:
    """Return a port of loopback that nobody listens on, below those that the system gives to clients."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
