"""What every listener needs, whoever accepts at it: a backlog, a socket file for the group, an error with a remedy."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.errors import UnavailableError

if TYPE_CHECKING:
    from batv.config import Endpoint

__all__ = ["BACKLOG", "cannot_listen", "open_to_group", "refuse_taken"]

BACKLOG: Final = 1024
"""Connections that may wait to be accepted."""

_SOCKET_MODE: Final = 0o660
"""Whoever shares our group may connect to a Unix socket."""


def refuse_taken(endpoint: Endpoint) -> None:
    """Find out whether somebody listens on a Unix socket.

    Whoever binds would otherwise take a socket file that is there for one left behind, and put its own in its place.

    Raises:
        OSError: somebody does, EADDRINUSE.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        try:
            client.connect(endpoint.path)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def open_to_group(endpoint: Endpoint) -> None:
    """Let our group connect to a Unix socket."""
    Path(endpoint.path).chmod(_SOCKET_MODE)


def cannot_listen(endpoint: Endpoint, error: OSError | UnicodeError) -> UnavailableError:
    """Return the error to raise where an address cannot be listened on."""
    said = error.strerror if isinstance(error, OSError) else None
    reason = (said or str(error)).rpartition(": ")[2]  # asyncio puts the address before it
    return UnavailableError(
        f"cannot listen on {endpoint}: {reason.lower()}", "stop what listens there, or set another address"
    )
