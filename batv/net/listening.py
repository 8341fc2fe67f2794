"""What every listener needs, whoever accepts at it: a backlog, a socket file for the group, an error with a remedy."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.errors import UnavailableError
from batv.net.reason import reason

if TYPE_CHECKING:
    import asyncio

    from batv.config import Endpoint

__all__ = ["ACCEPTED_AT_ONCE", "BACKLOG", "cannot_listen", "open_to_group", "refuse_taken", "set_bounds"]

BACKLOG: Final = 1024
"""Connections that may wait to be accepted."""

ACCEPTED_AT_ONCE: Final = 4
"""Connections that are accepted before those accepted are looked at: each takes a file, and files may be few. asyncio
calls this the backlog, and goes on trying so many times where there are none left."""

_REPLY_OCTETS: Final = 65_536
"""Of replies that a client has not read, in the kernel, which doubles it; without a limit it keeps megabytes."""

_SOCKET_MODE: Final = 0o660
"""Whoever shares our group may connect to a Unix socket."""


def set_bounds(server: asyncio.Server) -> None:
    """Set what event loops cannot be told: how many connections may wait, and how many octets of replies."""
    for each in server.sockets:
        # What event loops hand out does not let either be set. Connections have the buffer from their listener.
        with socket.socket(fileno=os.dup(each.fileno())) as listener:
            listener.listen(BACKLOG)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REPLY_OCTETS)


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
    return UnavailableError(
        f"cannot listen on {endpoint}: {reason(error).lower()}", "stop what listens there, or set another address"
    )
