"""A client that measures each transaction, which smtp-source does not, and one that connects and then does nothing.

It is one thread that speaks over many connections and, like smtp-source, waits for the reply to each command.
"""

from __future__ import annotations

import gc
import socket
import time
from contextlib import ExitStack, contextmanager
from itertools import cycle
from selectors import EVENT_READ, DefaultSelector
from typing import TYPE_CHECKING, Final

from scripts.bench.programs import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.bench.hops import Hop
    from scripts.bench.load import Workload

__all__ = ["DialogueError", "idle_connections", "transactions"]

_SECONDS_AT_MOST: Final = 60
_REPLY_OCTETS: Final = 4096
_CONNECTS_AT_ONCE: Final = 50
_LINE: Final = b"X" * 78 + b"\r\n"


class DialogueError(Exception):
    """A server answered something else than it should, or nothing."""


def transactions(hop: Hop, workload: Workload, seconds: float) -> list[float]:
    """Return how many seconds each transaction took, from MAIL to the reply to the message.

    Args:
        hop: the server; its senders take turns.
        workload: what is sent; each session sends one message after the other.
        seconds: for how long transactions are begun.

    Raises:
        DialogueError: a message was not taken.
        OSError: a connection broke.
    """
    message = b"From: <joe@example.com>\r\nSubject: test\r\n\r\n" + _LINE * (workload.octets // len(_LINE)) + b".\r\n"
    took: list[float] = []
    with ExitStack() as stack, DefaultSelector() as selector:
        for _ in range(workload.sessions):
            talk = _Talk(stack.enter_context(_connected(hop.port)), hop.recipient, message, took)
            talk.greet()
            selector.register(talk.socket, EVENT_READ, talk)
        gc.disable()  # its pauses would count as the server's
        try:
            _converse(selector, cycle(hop.senders), time.perf_counter() + seconds)
        finally:
            gc.enable()
    return took


def _converse(selector: DefaultSelector, senders: Iterator[str], end: float) -> None:
    """Let each connection carry one transaction after the other, until the time is up and all have ended."""
    for key in list(selector.get_map().values()):
        key.data.begin(next(senders))
    while selector.get_map():
        ready = selector.select(_SECONDS_AT_MOST)
        if not ready:
            raise DialogueError(f"the server has not answered for {_SECONDS_AT_MOST} s")
        for key, _ in ready:
            if not key.data.go_on():
                continue
            if time.perf_counter() < end:
                key.data.begin(next(senders))
            else:
                selector.unregister(key.fileobj)


class _Talk:
    """One connection that carries transactions.

    Args:
        connection: connected, nothing read yet.
        recipient: whom RCPT TO names.
        message: the message with the dot that ends it.
        took: gets the seconds of each transaction.
    """

    def __init__(self, connection: socket.socket, recipient: str, message: bytes, took: list[float]) -> None:
        self.socket: Final = connection
        self._rest: Final = (
            (b"RCPT TO:<%b>\r\n" % recipient.encode(), b"250"),
            (b"DATA\r\n", b"250"),
            (message, b"354"),
        )
        self._took: Final = took
        self._step = 0
        self._began = 0.0
        self._said = b""

    def greet(self) -> None:
        """Take the greeting and say EHLO."""
        for command, expected in ((None, b"220"), (b"EHLO client.example\r\n", b"250")):
            if command is not None:
                self.socket.sendall(command)
            while not self._complete():
                pass
            self._check(expected)

    def begin(self, sender: str) -> None:
        """Say MAIL."""
        self._step = 0
        self._began = time.perf_counter()
        self.socket.sendall(b"MAIL FROM:<%b>\r\n" % sender.encode())

    def go_on(self) -> bool:
        """Read what has come and say what follows; return whether that was the end of the transaction."""
        if not self._complete():
            return False
        if self._step == len(self._rest):
            self._took.append(time.perf_counter() - self._began)
            self._check(b"250")
            return True
        following, expected = self._rest[self._step]
        self._check(expected)
        self._step += 1
        self.socket.sendall(following)
        return False

    def _complete(self) -> bool:
        """Read once, and return whether the last line of a reply is there."""
        octets = self.socket.recv(_REPLY_OCTETS)
        if not octets:
            raise DialogueError("the server has closed the connection")
        self._said += octets
        last = self._said.rstrip(b"\r\n").rpartition(b"\n")[2]
        return self._said.endswith(b"\n") and last[3:4] != b"-"

    def _check(self, expected: bytes) -> None:
        if not self._said.startswith(expected):
            raise DialogueError(f"the server says {self._said.decode(errors='replace').strip()}")
        self._said = b""


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[None]:
    """Hold connections over which EHLO was answered and nothing else is said.

    Args:
        port: where the server listens.
        count: how many.

    Raises:
        DialogueError: one of them was refused.
        OSError: a connection broke.
    """
    with ExitStack() as stack:
        for first in range(0, count, _CONNECTS_AT_ONCE):
            # A server that begins a process for each connection begins some at once.
            connections = [
                stack.enter_context(_connected(port)) for _ in range(first, min(first + _CONNECTS_AT_ONCE, count))
            ]
            for connection in connections:
                _Talk(connection, "", b"", []).greet()
        yield


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection((HOST, port), _SECONDS_AT_MOST)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
