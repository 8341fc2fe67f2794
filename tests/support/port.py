"""Ports for servers that have to be told where to listen."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from typing import Final

__all__ = ["free_port"]

_PORTS_FOR_SERVERS: Final = range(20_000, 32_000)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of a loopback address on which nobody listens now, and which no other call returns.

    No call in another process of this machine either, for as long as this process runs. The port lies below those that
    Linux gives to clients, so that no connection of another test takes it before its server.

    Args:
        host: the address, as digits.

    Raises:
        AssertionError: every port is taken.
    """
    for port in random.SystemRandom().sample(_PORTS_FOR_SERVERS, len(_PORTS_FOR_SERVERS)):
        with socket.socket(socket.AF_UNIX) as claim, socket.socket() as probe, suppress(OSError):
            # An abstract name belongs to one socket at a time, and the end of the process gives it back. It is claimed
            # before the port is probed: a probe is in the way of a server that starts at this moment.
            claim.bind(f"\0batv-test-port-{port}")
            probe.bind((host, port))
            claim.detach()
            return port
    raise AssertionError("no free port")
