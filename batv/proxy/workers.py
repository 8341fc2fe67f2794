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

import asyncio
import gc
import os
import select
import signal
import socket
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.config import Endpoint
from batv.errors import BatvError, UnavailableError
from batv.net.listening import BACKLOG, cannot_listen, open_to_group, refuse_taken
from batv.observe.event import Direction, Level, Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from batv.config import Settings
    from batv.observe.event import Event, Observer

__all__ = ["SharedListeners", "Supervisor", "Worker"]

_FIRST_DELAY_SECONDS: Final = 1.0
_LONGEST_DELAY_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
"""Whoever has lived for so long is replaced after the first delay again."""

_DRAIN_MARGIN_SECONDS: Final = 5.0
"""What a worker may need beyond `drain_seconds`, to close and to write the last lines of its log."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_SOFTWARE: Final = 70
"""EX_SOFTWARE of sysexits(3): the exit status where a worker is killed before it listens."""


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


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker has from its supervisor.

    Attributes:
        number: which it is, from 1.
        listeners: where it listens.
        lifeline: a pipe that comes to its end when the supervisor does.
        report: a pipe to the supervisor.
    """

    number: int
    listeners: SharedListeners
    lifeline: int
    report: int

    def marked(self, observer: Observer) -> Observer:
        """Return an observer that says with every notice which worker it is from."""

        def observe(event: Event) -> None:
            if isinstance(event, Notice):
                event = replace(event, fields={**event.fields, "worker": self.number})
            observer(event)

        return observe

    def listens(self, stop: Callable[[], None]) -> None:
        """Tell the supervisor that this worker listens, and call `stop` when the supervisor has gone."""
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self.lifeline)
            stop()

        loop.add_reader(self.lifeline, gone)
        with suppress(BrokenPipeError):  # the lifeline says it
            os.write(self.report, bytes([self.number]))


@dataclass(slots=True)
class _Post:
    """The place of a worker, whoever has it.

    Attributes:
        number: of the worker, from 1.
        pid: of the process; 0 while there is none.
        listens: whether it has said so.
        reload: whether SIGHUP came before it listened.
        started: when it was, in seconds of the monotonic clock.
        due: when it is to be started; None: it is not.
        delay: seconds until the next one, should this one die.
    """

    number: int
    pid: int = 0
    listens: bool = False
    reload: bool = False
    started: float = 0.0
    due: float | None = None
    delay: float = _FIRST_DELAY_SECONDS

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker, if there is one. The pid is nobody else's before the supervisor has reaped."""
        if self.pid:
            os.kill(self.pid, number)


class Supervisor:
    """Starts workers, and keeps them running.

    Args:
        settings: reads the settings; raises BatvError where they are wrong.
        directions: which proxies the workers run.
        observer: told of workers that come and go; it must need no thread.
    """

    def __init__(self, settings: Callable[[], Settings], directions: Sequence[Direction], observer: Observer) -> None:
        self._read_settings = settings
        self._directions = directions
        self._observer = observer
        self._settings = settings()
        self._posts = [_Post(number + 1) for number in range(self._settings.smtp.workers)]
        self._holder = _Holder()
        self._lifeline = self._report = self._woken = (-1, -1)
        self._ready = False
        self._kill_at: float | None = None
        self._status = 0

    def run(self) -> Worker | int:
        """Serve until SIGTERM or SIGINT. It returns more than once, as a fork does.

        Returns:
            In each worker, at its start: what it has to know; in the supervisor, at the end: the exit status.

        Raises:
            UnavailableError: an address is taken, or is not ours.
        """
        self._holder.open(self._places(self._settings))
        self._lifeline, self._report, self._woken = os.pipe(), os.pipe(), os.pipe()
        for descriptor in (self._report[0], *self._woken):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._woken[1], warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _nothing)
        self._posts[0].due = time.monotonic()
        while self._kill_at is None or self._living():
            worker = self._start_those_due()
            if worker is not None:
                return worker
            self._wait()
            self._hear_signals()
            self._hear_reports()
            self._reap()
            self._kill_those_overdue()
        self._holder.close()
        return self._status

    # The loop.

    def _living(self) -> list[_Post]:
        return [post for post in self._posts if post.pid]

    def _wait(self) -> None:
        """Wait for a signal, for a report, or until something is due."""
        times = [post.due for post in self._posts if post.due is not None]
        if self._kill_at is not None:
            times.append(self._kill_at)
        poll = select.poll()
        poll.register(self._woken[0], select.POLLIN)
        poll.register(self._report[0], select.POLLIN)
        poll.poll(max(0.0, min(times) - time.monotonic()) * 1000 + 1 if times else None)

    def _hear_signals(self) -> None:
        heard = set(_read(self._woken[0]))
        if heard & {signal.SIGTERM, signal.SIGINT}:
            self._stop()
        if signal.SIGHUP in heard:
            self._reload()

    def _hear_reports(self) -> None:
        for number in _read(self._report[0]):
            post = self._posts[number - 1]
            if not post.pid:
                continue
            post.listens = True
            if post.reload:
                post.reload = False
                post.send(signal.SIGHUP)
            if self._ready:
                self._notice(Level.INFO, "worker listens again", worker=number, pid=post.pid)
        if self._ready or self._kill_at is not None or not self._posts[0].listens:
            return
        for post in self._posts:
            if not post.pid and post.due is None:
                post.due = time.monotonic()
        if all(post.listens for post in self._posts):
            self._ready = True
            for place in self._holder.places():
                tls = {"tls": "yes"} if place.tls else {}
                self._notice(Level.INFO, "listening", direction=place.direction, address=place.endpoint, **tls)
            self._notice(Level.INFO, "ready", workers=len(self._posts))

    # Workers.

    def _start_those_due(self) -> Worker | None:
        for post in self._posts:
            if post.due is not None and post.due <= time.monotonic():
                post.due = None
                worker = self._start(post)
                if worker is not None:
                    return worker
        return None

    def _start(self, post: _Post) -> Worker | None:
        """Fork; return what the worker has to know if this process is it."""
        post.started, post.reload = time.monotonic(), False
        # The collector of a worker leaves alone what there is by now, so that it stays in memory only once.
        gc.collect()
        gc.freeze()
        # A signal for the worker is not to be taken by the handlers, which are the supervisor's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            try:
                post.pid = os.fork()
            except OSError as error:
                self._replace(post, {"cause": error.strerror})
                return None
            if post.pid:
                return None
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for descriptor in (self._lifeline[1], self._report[0], *self._woken):
            os.close(descriptor)
        return Worker(post.number, self._holder.handed_over(), self._lifeline[0], self._report[1])

    def _reap(self) -> None:
        for post in self._living():
            pid, status = os.waitpid(post.pid, os.WNOHANG)
            if pid:
                self._ended(post, os.waitstatus_to_exitcode(status))

    def _ended(self, post: _Post, status: int) -> None:
        listened = post.listens
        post.pid, post.listens = 0, False
        if self._kill_at is not None:
            return
        how: dict[str, object] = {"status": status} if status >= 0 else {"signal": signal.Signals(-status).name}
        # While another one serves, there is time to mend what this one cannot start with.
        hopeless = status > 0 and not listened and not self._living()
        if self._ready and not hopeless:
            self._replace(post, how)
            return
        if status <= 0:
            self._notice(Level.ERROR, "worker died in the start", worker=post.number, **how)
        self._status = status if status > 0 else _SOFTWARE
        self._stop()

    def _replace(self, post: _Post, how: dict[str, object]) -> None:
        now = time.monotonic()
        if now - post.started >= _STEADY_SECONDS:
            post.delay = _FIRST_DELAY_SECONDS
        post.due = now + post.delay
        self._notice(Level.ERROR, "worker died", worker=post.number, **how, again_in_seconds=round(post.delay))
        post.delay = min(2 * post.delay, _LONGEST_DELAY_SECONDS)

    # What the administrator asks for.

    def _reload(self) -> None:
        try:
            settings = self._read_settings()
            self._holder.open(self._places(settings))
        except BatvError:
            pass  # the workers find the same, and say so
        else:
            self._settings = settings
            if settings.smtp.workers != len(self._posts):
                self._notice(
                    Level.WARNING, "restart the service to change the number of workers", workers=len(self._posts)
                )
        for post in self._living():
            if post.listens:
                post.send(signal.SIGHUP)
            else:
                post.reload = True

    def _stop(self) -> None:
        if self._kill_at is not None:
            return
        self._kill_at = time.monotonic() + self._settings.smtp.drain_seconds + _DRAIN_MARGIN_SECONDS
        for post in self._posts:
            post.due = None
            post.send(signal.SIGTERM)

    def _kill_those_overdue(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        self._kill_at = time.monotonic() + _DRAIN_MARGIN_SECONDS
        for post in self._living():
            self._notice(Level.ERROR, "worker killed, it did not end", worker=post.number)
            post.send(signal.SIGKILL)

    def _places(self, settings: Settings) -> Iterator[_Place]:
        sections = {Direction.OUTBOUND: settings.outbound, Direction.INBOUND: settings.inbound}
        for direction in self._directions:
            section = sections[direction]
            if section is not None:
                yield from (_Place(direction, endpoint, tls=False) for endpoint in section.listen)
                yield from (_Place(direction, endpoint, tls=True) for endpoint in section.listen_tls)

    def _notice(self, level: Level, what: str, **fields: object) -> None:
        self._observer(Notice(level, what, fields))


def _nothing(*_: object) -> None:
    """Handle a signal: that it came is read from the pipe to which the interpreter writes its number."""


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, select.PIPE_BUF)
    except BlockingIOError:
        return b""


class _Holder:
    """The supervisor's part of the listeners."""

    def __init__(self) -> None:
        self._held: dict[_Place, list[socket.socket]] = {}

    def open(self, places: Iterable[_Place]) -> None:
        """Take what is new, and give back what is there no more.

        Raises:
            UnavailableError: an address is taken, or is not ours; then all stays as it was.
        """
        wanted = list(dict.fromkeys(places))
        taken: dict[_Place, list[socket.socket]] = {}
        try:
            for place in wanted:
                if place not in self._held:
                    taken[place] = _held(place.endpoint)
        except UnavailableError:
            _close(taken)
            raise
        # The file of a socket is taken away by the workers, when they do not listen there any more.
        _close({place: self._held.pop(place) for place in set(self._held) - set(wanted)}, leave_files=True)
        self._held |= taken

    def handed_over(self) -> SharedListeners:
        """Return what the worker listens on that this process has become; the ports are held by the supervisor."""
        listeners = SharedListeners(dict(self._listeners()))
        _close({place: held for place, held in self._held.items() if not place.endpoint.path})
        self._held.clear()
        return listeners

    def places(self) -> list[_Place]:
        """Return where there is a proxy, with the ports that the system chose."""
        return [
            place if place.endpoint.path else replace(place, endpoint=_bound(each))
            for place, held in self._held.items()
            for each in held
        ]

    def close(self) -> None:
        """Give everything back, and leave no socket file behind."""
        _close(self._held)

    def _listeners(self) -> Iterator[tuple[_Place, Endpoint | socket.socket]]:
        for place, held in self._held.items():
            if place.endpoint.path:
                yield place, held[0]
            else:
                yield place, place.endpoint.model_copy(update={"port": _bound(held[0]).port})


def _close(held: dict[_Place, list[socket.socket]], *, leave_files: bool = False) -> None:
    for place, sockets in held.items():
        for each in sockets:
            each.close()
        if place.endpoint.path and not leave_files:
            Path(place.endpoint.path).unlink(missing_ok=True)


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
