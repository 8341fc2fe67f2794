"""The hops that are measured, each with an smtp-sink of its own behind it, on free ports of loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from batv.address import Mailbox
from batv.day import Day
from batv.keyring import Key, KeyRing, Secret
from batv.signing import sign_with
from batv.store.rings import RingStore
from tests.support.mta import Postfix, ServiceTable, free_ports, greeted
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["HOPS", "Hop", "MissingToolError", "require", "tool"]

_HOST: Final = "127.0.0.1"
_SENDER: Final = "joe@example.com"
_RECIPIENT: Final = "bob@peer.example"
_CHECKOUT: Final = Path(__file__).parents[2]
_PLACES: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_CONNECTIONS: Final = "2000"
_STOP_SECONDS: Final = 30
_DRAIN_SECONDS: Final = 300
_END_OF_JOURNAL_OCTETS: Final = 4096


class MissingToolError(Exception):
    """A program or right that a hop needs is not here."""


@dataclass(frozen=True, slots=True)
class Hop:
    """What stands between smtp-source and smtp-sink.

    Attributes:
        name: what the tables call it.
        port: where it listens.
        pid: its process; None where nothing stands between.
        sender: what MAIL FROM names.
        recipient: what RCPT TO names.
        settle: returns when everything that was taken has gone on, and has been treated as it should.
    """

    name: str
    port: int
    pid: int | None = None
    sender: str = _SENDER
    recipient: str = _RECIPIENT
    settle: Callable[[], None] = lambda: None


_Opener: TypeAlias = "Callable[[Path], AbstractContextManager[Hop]]"


def tool(name: str, package: str) -> Path:
    """Return where a program is.

    Args:
        name: the program.
        package: the Debian package that holds it.

    Raises:
        MissingToolError: it is not here.
    """
    found = shutil.which(name, path=_PLACES)
    if found is None:
        raise MissingToolError(f"there is no {name}: install Debian's {package}")
    return Path(found)


def require(names: Sequence[str]) -> None:
    """Look whether everything is here that these hops need.

    Raises:
        MissingToolError: something is not.
    """
    tool("smtp-source", "postfix")
    tool("smtp-sink", "postfix")
    if "haproxy" in names:
        tool("haproxy", "haproxy, or leave this hop out with --hops")
    if "postfix" in names and os.geteuid() != 0:
        raise MissingToolError("only root starts Postfix: run this as root, or leave this hop out with --hops")
    if {"outbound", "inbound"} & set(names) and find_spec("uvloop") is None:
        raise MissingToolError("there is no uvloop: run scripts/venv --test")


@contextmanager
def _running(command: Iterable[str | Path], folder: Path, port: int) -> Iterator[int]:
    """Run a program that serves a port, and give its process id once it does."""
    program, *arguments = command
    folder.mkdir(exist_ok=True)
    log = folder / f"{Path(program).name}.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [program, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(_CHECKOUT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            until(lambda: process.poll() is not None or greeted(_HOST, port), f"answer of {program}")
            if process.poll() is not None:
                raise MissingToolError(f"{program} does not start: {log.read_text(errors='replace').strip()}")
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            finally:
                process.kill()


@contextmanager
def _sink(folder: Path) -> Iterator[int]:
    """Run smtp-sink, and give its port."""
    port = free_ports(1)[0]
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # as root it must be told
    command: list[str | Path] = [
        tool("smtp-sink", "postfix"),
        *user,
        "-m",
        _CONNECTIONS,
        f"{_HOST}:{port}",
        _CONNECTIONS,
    ]
    with _running(command, folder, port):
        yield port


@contextmanager
def _direct(folder: Path) -> Iterator[Hop]:
    with _sink(folder) as sink:
        yield Hop("direct", sink)


@contextmanager
def _haproxy(folder: Path) -> Iterator[Hop]:
    with _sink(folder) as sink:
        port = free_ports(1)[0]
        config = folder / "haproxy.cfg"
        config.write_text(
            f"global\n  nbthread 1\n  maxconn {_CONNECTIONS}\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n"
            f"listen smtp\n  bind {_HOST}:{port}\n  server sink {_HOST}:{sink}\n"
        )
        with _running([tool("haproxy", "haproxy"), "-db", "-f", config], folder, port) as pid:
            yield Hop("HAProxy", port, pid)


@contextmanager
def _aiosmtpd(folder: Path) -> Iterator[Hop]:
    with _sink(folder) as sink:
        port = free_ports(1)[0]
        command = [sys.executable, "-m", "scripts.bench.aiosmtpd_proxy", str(port), str(sink)]
        with _running(command, folder, port) as pid:
            yield Hop("aiosmtpd Proxy", port, pid)


@contextmanager
def _postfix(folder: Path) -> Iterator[Hop]:
    with _sink(folder) as sink:
        port = free_ports(1)[0]
        home = folder / "postfix"
        services = ServiceTable.shipped()
        services.put(f"{_HOST}:{port} inet n - n - - smtpd\n")
        settings = [f"relayhost = [{_HOST}]:{sink}", f"mynetworks = {_HOST}/32", "message_size_limit = 0"]
        with Postfix(home, "relay.example", settings, services, {}):
            until(lambda: greeted(_HOST, port), "answer of Postfix")
            pid = int((home / "queue/pid/master.pid").read_text())

            def settle() -> None:
                until(lambda: not _queued(home / "queue"), "empty queue of Postfix", _DRAIN_SECONDS)

            yield Hop("Postfix relaying", port, pid, settle=settle)


def _queued(queue: Path) -> bool:
    return any(
        files
        for name in ("maildrop", "incoming", "active", "deferred")
        for _, _, files in os.walk(queue / name)  # a file may go while it is looked for
    )


@contextmanager
def _outbound(folder: Path) -> Iterator[Hop]:
    with _proxy(folder, "outbound", "signed") as (port, pid, _, settle):
        yield Hop("our outbound", port, pid, settle=settle)


@contextmanager
def _inbound(folder: Path) -> Iterator[Hop]:
    with _proxy(folder, "inbound", "valid") as (port, pid, tagged, settle):
        yield Hop("our inbound", port, pid, sender="", recipient=tagged, settle=settle)


@contextmanager
def _proxy(folder: Path, side: str, verdict: str) -> Iterator[tuple[int, int, str, Callable[[], None]]]:
    """Run one of our proxies; give its port, its process, a tagged address, and what looks for the verdict."""
    with _sink(folder) as sink:
        port, unused = free_ports(2)
        ports = {"outbound": unused, "inbound": unused, side: port}
        tables = (f'[{name}]\nlisten = ["{_HOST}:{ports[name]}"]\nnext_hop = "{_HOST}:{sink}"\n' for name in ports)
        (folder / "batv.toml").write_text("".join(tables) + '[domains."example.com"]\n')
        today = Day.at(time.time())
        key = Key(0, Secret(os.urandom(32)), today)
        RingStore(folder / "keys").change(None, lambda _: KeyRing(today).with_newcomer(key, today))
        tagged = sign_with(Mailbox.parse(_SENDER.encode()), key, today).octets.decode()
        command = [sys.executable, "-m", "batv.cli", "--config", "batv.toml", "serve", side]
        with _running(command, folder, port) as pid:
            yield port, pid, tagged, lambda: _look(folder / "var/journal.jsonl", verdict)


def _look(journal: Path, verdict: str) -> None:
    """Look whether the newest record has this verdict: a proxy that let everything pass would be fast."""
    with journal.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END_OF_JOURNAL_OCTETS))
        record = json.loads(file.read().splitlines()[-1])
    if record["verdict"] != verdict or not record["reply"].startswith("250"):
        raise AssertionError(f"the journal says {record}, but the verdict should be {verdict}")


HOPS: Final[dict[str, _Opener]] = {
    "direct": _direct,
    "haproxy": _haproxy,
    "aiosmtpd": _aiosmtpd,
    "postfix": _postfix,
    "outbound": _outbound,
    "inbound": _inbound,
}
"""What starts each hop in a folder, for as long as the context lasts, by the name that the command line has."""
