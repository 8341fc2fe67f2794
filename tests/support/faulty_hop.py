"""A next hop that breaks as it is told to, at any stage of a session, and keeps a record that would survive a crash.

It shares no code with the product, and none with aiosmtpd. What it takes it writes to a file and has synced before it
says so: whoever hears 2yz may rely on the record, as on the queue of an MTA.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from threading import Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

__all__ = ["OFFERS", "Fault", "FaultyHop", "Plan", "Stage", "Taken"]

OFFERS: Final = (b"SIZE 10000000", b"8BITMIME", b"SMTPUTF8", b"DSN")
"""EHLO keywords, unless others are given."""

_OCTETS: Final = 65_536
_END: Final = b"\r\n.\r\n"
_SECONDS: Final = 60.0
_TRICKLE_SECONDS: Final = 0.06
_SMALL_SEGMENT: Final = 1000
"""Octets of a TCP segment: with the loopback's own, the system would buffer megabytes for a peer that reads nothing."""

_ENDLESS_LINES: Final = 100_000
_IDENTITY: Final = re.compile(rb"^Message-ID: <([^@>]*)", re.MULTILINE)


class Stage(Enum):
    """Where in a session the next hop breaks."""

    CONNECT = "connect"
    BANNER = "banner"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    MAIL = "MAIL"
    FIRST_RCPT = "first RCPT"
    LAST_RCPT = "last RCPT"
    DATA = "DATA"
    BODY = "in the message"
    DOT = "final dot"
    RSET = "RSET"
    QUIT = "QUIT"

    def __str__(self) -> str:
        """Return the words for it."""
        return self.value


class Fault(Enum):
    """How the next hop breaks."""

    REFUSED = "refuses connections"
    UNKNOWN_NAME = "has a name that does not resolve"
    BLACKHOLE = "drops the packets"
    SILENCE = "is silent"
    GOES_AWAY = "says 421 and closes"
    LATER = "says 450"
    NEVER = "says 550"
    CLOSE = "closes"
    RESET = "resets"
    HALF_A_LINE = "sends half a line and closes"
    TRICKLE = "sends octet by octet"
    LONG_LINE = "sends a line of 200 KiB"
    ENDLESS = "sends lines without end"
    CODE_000 = "says 000"
    CODE_999 = "says 999"
    CODE_25 = "says 25"
    NO_CODE = "says text alone"
    NO_354 = "says 250 for 354"
    STOPS_READING = "stops reading"
    EARLY_250 = "says 250 before the dot"
    TWICE = "replies twice"
    AFTER_221 = "goes on after 221"
    BARE_LF = "ends a line with LF"
    NUL = "sends NUL"
    EIGHT_BIT = "sends 8-bit text"
    INJECTED = "mixes two codes"

    def __str__(self) -> str:
        """Return the words for it."""
        return self.value

    @property
    def waits(self) -> bool:
        """Whether only a time limit ends it."""
        return self in {Fault.BLACKHOLE, Fault.SILENCE, Fault.TRICKLE, Fault.STOPS_READING}

    @property
    def refuses(self) -> bool:
        """Whether it says that the command, or the message, was not taken."""
        return self in {Fault.GOES_AWAY, Fault.LATER, Fault.NEVER}

    @property
    def harmless(self) -> bool:
        """Whether the reply says what it would have said without the fault."""
        return self in {Fault.TWICE, Fault.EIGHT_BIT}


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes wrong from now on.

    Attributes:
        stage: where.
        fault: how.
        recipients: which RCPT of a transaction is the last.
        stores: whether a message whose dot gets no honest reply is stored all the same.
    """

    stage: Stage
    fault: Fault
    recipients: int = 1
    stores: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """A message on the record.

    Attributes:
        identity: of the message, from its Message-ID.
        recipients: the addresses whose RCPT was answered with 250.
        digest: SHA-256 of the content, dots stuffed as they came, in hex.
        answered: whether the reply to the dot was to be 250.
    """

    identity: str
    recipients: frozenset[bytes]
    digest: str
    answered: bool


class _GoneError(Exception):
    """The connection is over."""


@dataclass(slots=True)
class _Peer:
    """One connection, and what it has told."""

    socket: socket.socket
    buffer: bytes = b""
    tls: bool = False
    mail: bytes = b""
    named: int = 0
    recipients: list[bytes] = field(default_factory=list)

    def read(self) -> None:
        octets = self.socket.recv(_OCTETS)
        if not octets:
            raise _GoneError
        self.buffer += octets

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            self.read()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    def listen_in_silence(self) -> None:
        while True:
            self.read()
            self.buffer = b""


class FaultyHop:
    """Listens on a free port of the loopback for as long as the context lasts.

    Args:
        record: the file for what is taken.
        tls: what STARTTLS is done with; None where it is not offered.
        offers: keywords of its EHLO reply; PIPELINING may be among them.
        seconds: how long it thinks before each reply.

    Attributes:
        offers: as given; a new value counts for the EHLOs that follow.
        struck: set once it has broken as planned.
        ended: set once a connection has ended on which it has broken.
        content: set once octets of a message have come.
        commands: the command lines of all connections.
        held: set once somebody is kept waiting, as `hold` has it.
    """

    def __init__(
        self, record: Path, *, tls: ssl.SSLContext | None = None, offers: Sequence[bytes] = OFFERS, seconds: float = 0
    ) -> None:
        self.offers: Sequence[bytes] = offers
        self.struck = Event()
        self.ended = Event()
        self.content = Event()
        self.commands: list[bytes] = []
        self.port = 0
        self.held = Event()
        self._holds: Stage | None = None
        self._released = Event()
        self._record_path: Final = record
        self._record = os.open(record, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._tls: Final = tls
        self._thinks_seconds: Final = seconds
        self._plan: Plan | None = None
        self._lock: Final = Lock()
        self._closed: Final = Event()
        self._sockets: Final[dict[Thread, socket.socket]] = {}
        self._fillers: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._accepting: Thread | None = None

    def __enter__(self) -> Self:
        """Begin to listen."""
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        """End all connections and stop."""
        self._closed.set()
        self._released.set()
        self.stop_listening()
        self.cut()
        os.close(self._record)

    @property
    def address(self) -> str:
        """Where it listens, as the settings have it."""
        return f"127.0.0.1:{self.port}"

    @property
    def taken(self) -> list[Taken]:
        """What is on the record."""
        return [
            Taken(
                fields["identity"],
                frozenset(recipient.encode("latin-1") for recipient in fields["recipients"]),
                fields["digest"],
                fields["answered"],
            )
            for fields in map(json.loads, self._record_path.read_text(encoding="ascii").splitlines())
        ]

    # What a test tells it.

    def fail(self, plan: Plan) -> None:
        """Break as planned from now on."""
        self.struck.clear()
        self.ended.clear()
        if plan.fault is Fault.REFUSED:
            self.stop_listening()
            self.cut()
            self.struck.set()
        elif plan.fault is Fault.BLACKHOLE:
            self.stop_listening()
            self.cut()
            self._drop_packets()
            self.struck.set()
        self._plan = plan

    def heal(self) -> None:
        """Break no more."""
        plan, self._plan = self._plan, None
        if plan is not None and plan.fault in {Fault.REFUSED, Fault.BLACKHOLE}:
            self.stop_listening()
            self.listen()

    def hold(self, stage: Stage) -> None:
        """Keep the reply of a stage back until `release`; `held` is set once somebody waits for it."""
        self.held.clear()
        self._released.clear()
        self._holds = stage

    def release(self) -> None:
        """Reply to those that were kept waiting, and keep nobody waiting any more."""
        self._holds = None
        self._released.set()

    def forget(self) -> None:
        """Cut all connections and begin a new record."""
        self.cut()
        os.ftruncate(self._record, 0)
        self.commands.clear()
        self.content.clear()

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            threads = list(self._sockets)
            for connection in self._sockets.values():
                # Not the method of a socket in TLS: that one belongs to the thread that reads from it.
                with suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in threads:
            thread.join(_SECONDS)

    def listen(self) -> None:
        """Begin to listen, on the same port as before."""
        self._listener = self._bound(1024)
        self._accepting = Thread(target=self._accept, args=(self._listener,), name="next hop", daemon=True)
        self._accepting.start()

    def stop_listening(self) -> None:
        """Refuse connections from now on."""
        listener, self._listener = self._listener, None
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        if self._accepting is not None:
            self._accepting.join(_SECONDS)
            self._accepting = None

    # The server.

    def _bound(self, backlog: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SMALL_SEGMENT)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _OCTETS)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(backlog)
        self.port = listener.getsockname()[1]
        return listener

    def _drop_packets(self) -> None:
        """Listen with a queue that is full: the system drops what else wants to connect."""
        self._listener = self._bound(0)
        for _ in range(3):
            filler = socket.socket()
            filler.settimeout(0)
            with suppress(BlockingIOError):
                filler.connect(("127.0.0.1", self.port))
            self._fillers.append(filler)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = Thread(target=self._serve, args=(connection,), name="next hop's connection", daemon=True)
            with self._lock:
                self._sockets[thread] = connection
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        peer = _Peer(connection)
        try:
            with suppress(_GoneError, OSError):
                self._converse(peer)
        finally:
            with self._lock:
                self._sockets.pop(current_thread(), None)
                peer.socket.close()
            if self.struck.is_set():
                self.ended.set()

    def _converse(self, peer: _Peer) -> None:  # noqa: PLR0912 -- one case a verb
        self._reply(peer, Stage.BANNER, b"220 hop.example ESMTP\r\n")
        while True:
            line = peer.line()
            self.commands.append(line)
            match line[:4].upper():
                case b"EHLO" | b"HELO":
                    self._hello(peer, extended=line[:1].upper() == b"E")
                case b"STAR" if self._tls is not None and not peer.tls:
                    if self._reply(peer, Stage.STARTTLS, b"220 2.0.0 go ahead\r\n"):
                        self._encrypt(peer)
                case b"MAIL":
                    if peer.mail:
                        self._reply(peer, None, b"503 5.5.1 nested MAIL\r\n")
                    elif self._reply(peer, Stage.MAIL, b"250 2.1.0 sender noted\r\n"):
                        peer.mail, peer.named, peer.recipients = line, 0, []
                case b"RCPT" if peer.mail:
                    peer.named += 1
                    stage = Stage.FIRST_RCPT if peer.named == 1 else None
                    if self._plan is not None and self._plan.stage is Stage.LAST_RCPT:
                        stage = Stage.LAST_RCPT if peer.named == self._plan.recipients else None
                    if self._reply(peer, stage, b"250 2.1.5 recipient noted\r\n"):
                        peer.recipients.append(line[8:].strip(b"<>"))
                case b"DATA" if peer.recipients:
                    if self._reply(peer, Stage.DATA, b"354 go on\r\n"):
                        self._message(peer)
                        peer.mail = b""
                case b"RSET":
                    peer.mail = b""
                    self._reply(peer, Stage.RSET, b"250 2.0.0 forgotten\r\n")
                case b"QUIT":
                    self._reply(peer, Stage.QUIT, b"221 2.0.0 bye\r\n")
                    return
                case _:
                    self._reply(peer, None, b"503 5.5.1 what?\r\n")

    def _hello(self, peer: _Peer, *, extended: bool) -> None:
        peer.mail = b""
        offers = [*([b"STARTTLS"] if self._tls is not None and not peer.tls else []), *self.offers] if extended else []
        lines = [b"hop.example", *offers]
        reply = b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1]
        self._reply(peer, Stage.EHLO, reply)

    def _encrypt(self, peer: _Peer) -> None:
        assert self._tls is not None
        peer.buffer = b""
        peer.socket.getpeername()  # wrap_socket would leave its socket open where the peer is gone
        peer.socket = self._tls.wrap_socket(peer.socket, server_side=True)
        peer.tls = True
        with self._lock:
            self._sockets[current_thread()] = peer.socket

    def _message(self, peer: _Peer) -> None:
        # The line end of DATA counts, for a message that is empty.
        content = bytearray(b"\r\n")
        content += peer.buffer
        answered = False
        while True:
            if len(content) > 2:
                self.content.set()
                if not answered and self._plan is not None and self._plan.stage is Stage.BODY:
                    answered = True
                    self._reply(peer, Stage.BODY, b"250 2.0.0 taken already\r\n")
                if self._holds is Stage.BODY:
                    self._wait()
            end = content.find(_END)
            if end >= 0:
                break
            octets = peer.socket.recv(_OCTETS)
            if not octets:
                raise _GoneError
            content += octets
        peer.buffer = bytes(content[end + len(_END) :])
        if answered:
            return
        plan = self._plan if self._plan is not None and self._plan.stage is Stage.DOT else None
        honest = plan is None or plan.fault.harmless
        if honest or (plan is not None and plan.stores and not plan.fault.refuses):
            self._store(bytes(content[2 : end + 2]), peer, answered=honest)
        self._reply(peer, Stage.DOT, b"250 2.0.0 taken\r\n")

    def _store(self, content: bytes, peer: _Peer, *, answered: bool) -> None:
        found = _IDENTITY.search(content)
        fields = {
            "identity": found[1].decode() if found else "",
            "recipients": [recipient.decode("latin-1") for recipient in peer.recipients],
            "digest": hashlib.sha256(content).hexdigest(),
            "answered": answered,
        }
        # A reply may be relied on: not before the disk has the record.
        os.write(self._record, json.dumps(fields).encode() + b"\n")
        os.fsync(self._record)

    def _wait(self) -> None:
        self.held.set()
        self._released.wait(_SECONDS)

    def _reply(self, peer: _Peer, stage: Stage | None, octets: bytes) -> bool:
        """Reply, or break; return whether the peer may count on what it was to be told."""
        if stage is not None and self._holds is stage and stage is not Stage.BODY:
            self._wait()
        if self._thinks_seconds:
            self._closed.wait(self._thinks_seconds)
        plan = self._plan
        if plan is None or stage is None or plan.stage is not stage:
            peer.socket.sendall(octets)
            return True
        self.struck.set()
        self._break(peer, plan.fault, octets)
        return plan.fault.harmless

    def _break(self, peer: _Peer, fault: Fault, octets: bytes) -> None:  # noqa: PLR0912 -- one case a fault
        code = octets[:3]
        match fault:
            case Fault.SILENCE:
                peer.listen_in_silence()
            case Fault.STOPS_READING:
                if code == b"354":
                    peer.socket.sendall(octets)
                while not _is_gone(peer.socket) and not self._closed.wait(_TRICKLE_SECONDS):
                    pass
                raise _GoneError
            case Fault.TRICKLE:
                for octet in octets:
                    if self._closed.wait(_TRICKLE_SECONDS):
                        raise _GoneError
                    peer.socket.sendall(bytes([octet]))
            case Fault.ENDLESS:
                for _ in range(_ENDLESS_LINES):
                    peer.socket.sendall(code + b"-more of it\r\n")
            case Fault.RESET:
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise _GoneError
            case Fault.CLOSE:
                raise _GoneError
            case Fault.GOES_AWAY | Fault.HALF_A_LINE:
                peer.socket.sendall(_words(fault, octets))
                raise _GoneError
            case _:
                peer.socket.sendall(_words(fault, octets))


def _words(fault: Fault, octets: bytes) -> bytes:
    """Return what is said in the place of a reply."""
    code, line = octets[:3], octets[:-2]
    return {
        Fault.GOES_AWAY: b"421 4.3.2 going away\r\n",
        Fault.LATER: b"450 4.7.1 not now\r\n",
        Fault.NEVER: b"550 5.7.1 not here\r\n",
        Fault.HALF_A_LINE: octets[:2],
        Fault.LONG_LINE: octets[:4] + b"x" * (200 << 10) + b"\r\n",
        Fault.CODE_000: b"000" + octets[3:],
        Fault.CODE_999: b"999" + octets[3:],
        Fault.CODE_25: b"25 fine\r\n",
        Fault.NO_CODE: b"all is well\r\n",
        Fault.NO_354: b"250 2.0.0 go on\r\n",
        Fault.EARLY_250: b"250 2.0.0 taken already\r\n",
        Fault.TWICE: octets + octets,
        Fault.AFTER_221: octets + b"and one thing more\r\n",
        Fault.BARE_LF: line + b"\n",
        Fault.NUL: line + b"\x00\r\n",
        Fault.EIGHT_BIT: line + b" caf\xe9\r\n",
        Fault.INJECTED: code + b"-fine\r\n550 5.0.0 or not\r\n",
    }[fault]


def _is_gone(connection: socket.socket) -> bool:
    """Whether the peer has cut a connection from which nothing is read."""
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state != 1  # TCP_ESTABLISHED
