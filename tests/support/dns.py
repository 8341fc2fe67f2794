"""Servers of the DNS for tests: dnsmasq with the records of a test, and one that answers as it is told to, or never."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rrset

from tests.support.mta import free_ports
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["DnsServer", "Misbehaving", "dns_server", "failing", "listing", "misbehaving", "silent"]

_HOST: Final = "127.0.0.1"
_STOP_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class DnsServer:
    """A running dnsmasq.

    Attributes:
        address: where it answers, as the settings name it.
        log: its log, with every question.
    """

    address: str
    log: Path

    def questions(self, name: str = "") -> int:
        """Return how many questions it was asked, about one name or about all."""
        asked = re.findall(r" query\[\w+\] (\S+) from", self.log.read_text())
        return len([each for each in asked if each != _READY and name in {"", each}])


_READY: Final = "ready.test"


@contextmanager
def dns_server(folder: Path, records: Sequence[str], ttl: int = 600) -> Iterator[DnsServer]:
    """Run dnsmasq on a loopback port of its own until the block ends.

    Args:
        folder: where its log goes.
        records: options such as `address=/name/127.0.0.2`, or `local=/zone/` for a zone whose other names do not exist.
        ttl: seconds for which its answers may be kept.
    """
    program = shutil.which("dnsmasq", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    assert program is not None
    (port,) = free_ports(1, _HOST)
    log = folder / "dnsmasq.log"
    options = [
        "keep-in-foreground",
        "conf-file=/dev/null",
        f"port={port}",
        f"listen-address={_HOST}",
        "bind-interfaces",
        "no-resolv",
        "no-hosts",
        "pid-file=",
        f"user={os.environ.get('USER', 'root') if os.geteuid() else 'root'}",
        "log-queries",
        "log-facility=-",
        f"local-ttl={ttl}",
        f"address=/{_READY}/127.0.0.1",
        *records,
    ]
    with log.open("wb") as stream:
        process = subprocess.Popen([program, *(f"--{option}" for option in options)], stderr=stream)
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                dns.query.udp(dns.message.make_query(_READY, "A"), _HOST, timeout=1, port=port)
            except (dns.exception.Timeout, OSError):
                return False
            return True

        until(answers, "answer of dnsmasq")
        yield DnsServer(f"{_HOST}:{port}", log)
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


class Misbehaving:
    """A server that answers each datagram with what a function makes of it, or with nothing.

    Attributes:
        address: where it is, as the settings name it.
        asked: set once it was asked something.
        questions: how many questions came.
    """

    def __init__(self, reply: Callable[[bytes], bytes | None]) -> None:
        self._reply: Final = reply
        self._socket: Final = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((_HOST, 0))
        self._thread: Final = Thread(target=self._serve, name="dns", daemon=True)
        self.address: Final = f"{_HOST}:{self._socket.getsockname()[1]}"
        self.asked: Final = Event()
        self.questions = 0
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            octets, peer = self._socket.recvfrom(65_535)
            if not octets:
                return
            self.questions += 1
            self.asked.set()
            reply = self._reply(octets)
            if reply is not None:
                self._socket.sendto(reply, peer)


def silent(_octets: bytes) -> None:
    """Answer nothing."""


def failing(octets: bytes) -> bytes:
    """Answer SERVFAIL."""
    response = dns.message.make_response(dns.message.from_wire(octets))
    response.set_rcode(dns.rcode.SERVFAIL)
    return response.to_wire()


def listing(octets: bytes) -> bytes:
    """Answer that whoever is asked about is listed."""
    response = dns.message.make_response(dns.message.from_wire(octets))
    response.answer.append(dns.rrset.from_text(response.question[0].name, 600, "IN", "A", "127.0.0.2"))
    return response.to_wire()


@contextmanager
def misbehaving(reply: Callable[[bytes], bytes | None]) -> Iterator[Misbehaving]:
    """Run a server that misbehaves until the block ends."""
    server = Misbehaving(reply)
    try:
        yield server
    finally:
        server.close()
