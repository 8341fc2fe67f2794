"""Several processes that serve the same ports: one supervisor, and workers that are a complete service each.

Rules:

1. A port is taken by the supervisor before there is a worker, and held until the end: nobody else gets it while workers
   come and go. The workers listen on it each for itself (SO_REUSEPORT), so that the system divides the connections
   among those that live. A Unix socket is the supervisor's, and all workers accept at it.
2. A worker is forked off a process that has neither a thread nor an event loop, with all modules loaded: what these
   take is in memory once.
3. The first worker must listen before there is a second: what is wrong with the settings is said once, and ends the
   start with the exit status that it has in a service of one process. Later on a worker that dies is replaced.
4. Workers watch a pipe that only the supervisor holds open: they drain when it is gone, however it ended.
"""

from __future__ import annotations

import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batv.config import Endpoint
from batv.errors import UnavailableError
from batv.net.listening import BACKLOG, cannot_listen, open_to_group, refuse_taken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batv.observe.event import Direction

__all__ = ["SharedListeners"]


@dataclass(frozen=True, slots=True)
class _Place:
    """A line of the settings that says where to listen: the same address may stand in several, with port 0."""

    direction: Direction
    endpoint: Endpoint
    tls: bool


class SharedListeners:
    """Where all workers listen.

    Args:
        places: TCP addresses with the ports that the system chose, and sockets that listen at Unix sockets.
    """

    def __init__(self, places: dict[_Place, Endpoint | socket.socket]) -> None:
        self._places = places

    def take(self, direction: Direction, endpoint: Endpoint, *, tls: bool = False) -> Endpoint | socket.socket:
        """Return where to listen for an address of the settings: an address of one's own, or a socket that listens.

        Raises:
            UnavailableError: only the supervisor can open it, and it was not in the settings when that was done.
        """
        place = _Place(direction, endpoint, tls)
        found = self._places.get(place)
        if isinstance(found, socket.socket):
            # Whoever has taken it closes it. What is taken away from the settings and put back is another one.
            del self._places[place]
        if found is not None:
            return found
        if endpoint.path or not endpoint.port:
            raise UnavailableError(
                f"cannot begin to listen on {endpoint} in a reload with several workers", "restart the service"
            )
        return endpoint


class _Holder:
    """The supervisor's part of the listeners."""

    def __init__(self) -> None:
        self._held: dict[_Place, list[socket.socket]] = {}

    def open(self, places: Iterable[_Place]) -> None:
        """Take what is new, and give back what is there no more.

        Raises:
            UnavailableError: an address is taken, or is not ours. What was taken before stays.
        """
        wanted = list(dict.fromkeys(places))
        for place in set(self._held) - set(wanted):
            for held in self._held.pop(place):
                held.close()
        for place in wanted:
            if place not in self._held:
                self._held[place] = _held(place.endpoint)

    def shared(self) -> SharedListeners:
        """Return what a worker that is forked now listens on."""
        return SharedListeners(dict(self._listeners()))

    def addresses(self) -> list[tuple[Direction, Endpoint]]:
        """Return where there is a proxy, with the ports that the system chose."""
        return [
            (place.direction, place.endpoint if place.endpoint.path else _bound(each))
            for place, held in self._held.items()
            for each in held
        ]

    def close(self) -> None:
        """Give everything back, and leave no socket file behind."""
        for place, held in self._held.items():
            for each in held:
                each.close()
            if place.endpoint.path:
                Path(place.endpoint.path).unlink(missing_ok=True)

    def _listeners(self) -> Iterator[tuple[_Place, Endpoint | socket.socket]]:
        for place, held in self._held.items():
            if place.endpoint.path:
                yield place, held[0]
            else:
                yield place, place.endpoint.model_copy(update={"port": _bound(held[0]).port})


def _held(endpoint: Endpoint) -> list[socket.socket]:
    opened: list[socket.socket] = []
    try:
        if endpoint.path:
            opened.append(_unix_listener(endpoint))
            return opened
        port = endpoint.port
        found = socket.getaddrinfo(endpoint.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            opened.append(_port(family, (address[0], port, *address[2:])))
            port = _bound(opened[0]).port
    except (OSError, UnicodeError) as error:  # the latter for what no host can be called
        for each in opened:
            each.close()
        raise cannot_listen(endpoint, error) from error
    return opened


def _port(family: int, address: tuple[object, ...]) -> socket.socket:
    """Return a socket that holds a port without listening: it gets no connection, and keeps others off.

    Bound as a lone listener is, it is refused where anybody listens, another service with workers too. After that
    the port is shared with whoever wants to share it and is the same user, which the workers are.
    """
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended a moment ago do no harm
        held.bind(address)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        held.close()
        raise
    return held


def _unix_listener(endpoint: Endpoint) -> socket.socket:
    refuse_taken(endpoint)
    path = Path(endpoint.path)
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(endpoint.path)
        open_to_group(endpoint)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _bound(held: socket.socket) -> Endpoint:
    name = held.getsockname()
    return Endpoint(host=name[0], port=name[1])
