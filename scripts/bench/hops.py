"""The hops that are measured, each with an smtp-sink of its own behind it, on free ports of loopback."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import time
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, TypeAlias

from batv.address import Mailbox
from batv.day import Day
from batv.keyring import Key, KeyRing, Secret
from batv.signing import sign_with
from batv.store.rings import RingStore
from scripts.bench.meter import memory_mib
from scripts.bench.programs import CONNECTIONS, HOST, MissingToolError, exim, running, sink, tool
from tests.support.mta import Postfix, ServiceTable, free_ports, greeted
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["HOPS", "OURS", "Hop", "require"]

_SENDER: Final = "joe@example.com"
_RECIPIENT: Final = "bob@peer.example"
_DRAIN_SECONDS: Final = 300
_END_OF_FILE_OCTETS: Final = 4096
_MANY_DOMAINS: Final = 10_000
_RINGS: Final = 10
_EXIM_USER: Final = 64991  # as scripts/mta/fetch-exim numbers it where the system has none

# Exim's usual limits would refuse connections, and leave messages in the queue after the tenth of a session.
_EXIM_SETTINGS: Final = f"""\
exim_path = {{program}}
exim_user = {_EXIM_USER}
exim_group = {_EXIM_USER}
primary_hostname = relay.example
spool_directory = {{folder}}/spool
log_file_path = {{folder}}/log/%slog
log_selector = +return_path_on_delivery
local_interfaces = {HOST}
daemon_smtp_ports = {{port}}
tls_advertise_hosts =
host_lookup =
rfc1413_hosts =
smtp_accept_max = {CONNECTIONS}
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 1024
message_size_limit = 0
deliver_drop_privilege = true
acl_smtp_rcpt = accept
begin routers
sink:
  driver = manualroute
  domains = *
  route_list = * {HOST}
  self = send
  transport = signed
begin transports
signed:
  driver = smtp
  allow_localhost = true
  port = {{sink}}
  return_path = ${{{{prvs{{{{$return_path}}}}{{{{the published secret of a bench}}}}{{{{0}}}}}}}}
"""


@dataclass(frozen=True, slots=True)
class Hop:
    """What stands between the load and smtp-sink.

    Attributes:
        name: what the tables and the command line call it.
        port: where it listens.
        pid: its uppermost process; None where nothing stands between.
        beside: the process of its smtp-sink, where the hop leaves processes to themselves so that they cannot be
            counted; None where they can.
        senders: whom MAIL FROM names, in turns; smtp-source names the first only.
        recipient: whom RCPT TO names.
        settle: returns when everything that was taken has gone on, and has been treated as it should.
    """

    name: str
    port: int
    pid: int | None = None
    beside: int | None = None
    senders: tuple[str, ...] = (_SENDER,)
    recipient: str = _RECIPIENT
    settle: Callable[[], None] = lambda: None

    def memory_mib(self) -> float | None:
        """Return the memory that it takes now, in MiB, if that is known."""
        return round(memory_mib(self.pid), 1) if self.pid is not None and self.beside is None else None


_Opener: TypeAlias = "Callable[[Path], AbstractContextManager[Hop]]"


def require(names: Sequence[str]) -> None:
    """Look whether everything is here that these hops need.

    Raises:
        MissingToolError: something is not.
    """
    tool("smtp-source", "postfix")
    tool("smtp-sink", "postfix")
    if "haproxy" in names:
        tool("haproxy", "haproxy, or leave this hop out with --hops")
    if (of_root := sorted({"postfix", "postfix-filter", "exim"} & set(names))) and os.geteuid() != 0:
        raise MissingToolError(f"only root starts {', '.join(of_root)}: run this as root, or name others with --hops")
    if "exim" in names:
        exim()
    if set(OURS) & set(names) and find_spec("uvloop") is None:
        raise MissingToolError("there is no uvloop: run scripts/venv --test")


@contextmanager
def _direct(folder: Path) -> Iterator[Hop]:
    with sink(folder) as end:
        yield Hop("direct", end.port)


@contextmanager
def _haproxy(folder: Path) -> Iterator[Hop]:
    with sink(folder) as end:
        port = free_ports(1)[0]
        config = folder / "haproxy.cfg"
        config.write_text(
            f"global\n  nbthread 1\n  maxconn {CONNECTIONS}\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n"
            f"listen smtp\n  bind {HOST}:{port}\n  server sink {HOST}:{end.port}\n"
        )
        with running([tool("haproxy", "haproxy"), "-db", "-f", config], folder, port) as pid:
            yield Hop("haproxy", port, pid)


@contextmanager
def _aiosmtpd(folder: Path) -> Iterator[Hop]:
    with sink(folder) as end:
        port = free_ports(1)[0]
        command = [sys.executable, "-m", "scripts.bench.aiosmtpd_proxy", str(port), str(end.port)]
        with running(command, folder, port) as pid:
            yield Hop("aiosmtpd", port, pid)


@contextmanager
def _postfix(folder: Path) -> Iterator[Hop]:
    with sink(folder) as end, _postfix_instance(folder, "", [f"relayhost = [{HOST}]:{end.port}"]) as found:
        port, pid, home = found

        def settle() -> None:
            until(lambda: not _queued(home / "queue"), "empty queue of Postfix", _DRAIN_SECONDS)

        yield Hop("postfix", port, pid, settle=settle)


@contextmanager
def _postfix_filter(folder: Path) -> Iterator[Hop]:
    with sink(folder) as end:
        option = f"  -o smtpd_proxy_filter={HOST}:{end.port}\n"
        with _postfix_instance(folder, option, []) as (port, pid, _):
            yield Hop("postfix-filter", port, pid)


@contextmanager
def _postfix_instance(folder: Path, options: str, settings: list[str]) -> Iterator[tuple[int, int, Path]]:
    """Run a Postfix that takes mail for everybody; give its port, its uppermost process and its folder."""
    port = free_ports(1)[0]
    home = folder / "postfix"
    services = ServiceTable.shipped()
    # One smtpd serves one connection: with the usual limit of 100 of them, further connections would wait.
    services.put(f"{HOST}:{port} inet n - n - {CONNECTIONS} smtpd\n{options}")
    # It pauses for a second when more comes than goes: in a short measurement, that is a matter of luck.
    base = [f"mynetworks = {HOST}/32", "message_size_limit = 0", "in_flow_delay = 0s"]
    with Postfix(home, "relay.example", [*base, *settings], services, {}):
        until(lambda: greeted(HOST, port), "answer of Postfix")
        yield port, int((home / "queue/pid/master.pid").read_text()), home


def _queued(queue: Path) -> bool:
    return any(
        files
        for name in ("maildrop", "incoming", "active", "deferred")
        for _, _, files in os.walk(queue / name)  # a file may go while it is looked for
    )


@contextmanager
def _exim(folder: Path) -> Iterator[Hop]:
    with sink(folder) as end:
        port = free_ports(1)[0]
        program = exim()
        for name in ("spool", "log"):
            (folder / name).mkdir()
            os.chown(folder / name, _EXIM_USER, _EXIM_USER)
        (folder / "exim.conf").write_text(
            _EXIM_SETTINGS.format(program=program, folder=folder, port=port, sink=end.port)
        )
        command: list[str | Path] = [program, "-C", f"{folder}/exim.conf", "-bdf", "-oP", f"{folder}/exim.pid"]
        with running(command, folder, port) as pid:

            def settle() -> None:
                until(lambda: not any((folder / "spool/input").iterdir()), "empty queue of Exim", _DRAIN_SECONDS)
                until(lambda: "P=<prvs=0" in _end(folder / "log/mainlog"), "message that Exim has signed")

            yield Hop("exim", port, pid, beside=end.pid, settle=settle)


@contextmanager
def _outbound(folder: Path) -> Iterator[Hop]:
    with _proxy(folder, "outbound", "signed") as (port, pid, _, settle):
        yield Hop("outbound", port, pid, settle=settle)


@contextmanager
def _outbound_ledger(folder: Path) -> Iterator[Hop]:
    with _proxy(folder, "outbound", "signed", options="[ledger]\nenabled = true\n") as (port, pid, _, settle):

        def noted() -> bool:
            for path in (folder / "var/ledger").glob("*.sqlite3"):
                with closing(sqlite3.connect(path)) as connection:
                    return connection.execute("SELECT 1 FROM sent LIMIT 1").fetchone() is not None
            return False

        def look() -> None:
            settle()
            until(noted, "row in the ledger")

        yield Hop("outbound-ledger", port, pid, settle=look)


@contextmanager
def _outbound_10000(folder: Path) -> Iterator[Hop]:
    domains = tuple(f"d{number:04}.example" for number in range(_MANY_DOMAINS))
    senders = [f"joe@{domain}" for domain in domains]
    random.Random(1).shuffle(senders)
    with _proxy(folder, "outbound", "signed", domains, _RINGS) as (port, pid, _, settle):
        yield Hop("outbound-10000", port, pid, senders=tuple(senders), settle=settle)


@contextmanager
def _inbound(folder: Path) -> Iterator[Hop]:
    with _proxy(folder, "inbound", "valid") as (port, pid, tagged, settle):
        yield Hop("inbound", port, pid, senders=("",), recipient=tagged, settle=settle)


@contextmanager
def _proxy(  # noqa: PLR0913, PLR0917 -- what hops differ in
    folder: Path,
    side: str,
    verdict: str,
    domains: Sequence[str] = ("example.com",),
    rings: int = 1,
    options: str = "",
) -> Iterator[tuple[int, int, str, Callable[[], None]]]:
    """Run one of our proxies.

    Gives its port, its process, an address with a tag of the default ring, and what looks for the verdict.

    Args:
        folder: where everything of it goes.
        side: which of the two.
        verdict: what the journal must say of each message.
        domains: those that are signed and judged.
        rings: how many key rings there are: the default one, and those of the first domains.
        options: more tables of the settings.
    """
    with sink(folder) as end:
        port, unused = free_ports(2)
        ports = {"outbound": unused, "inbound": unused, side: port}
        tables = [f'[{name}]\nlisten = ["{HOST}:{ports[name]}"]\nnext_hop = "{HOST}:{end.port}"\n' for name in ports]
        tables += [f'[domains."{domain}"]\n' for domain in domains]
        (folder / "batv.toml").write_text("".join(tables) + options)
        today = Day.at(time.time())
        default = _new_key(folder, None, today)
        for domain in domains[: rings - 1]:
            _new_key(folder, domain.encode(), today)
        tagged = sign_with(Mailbox.parse(_SENDER.encode()), default, today).octets.decode()
        command = [sys.executable, "-m", "batv.cli", "--config", "batv.toml", "serve", side]
        with running(command, folder, port) as pid:
            yield port, pid, tagged, lambda: _look(folder / "var/journal.jsonl", verdict)


def _new_key(folder: Path, domain: bytes | None, today: Day) -> Key:
    """Make a ring with one key that signs."""
    key = Key(0, Secret(os.urandom(32)), today)
    RingStore(folder / "keys").change(domain, lambda _: KeyRing(today).with_newcomer(key, today))
    return key


def _look(journal: Path, verdict: str) -> None:
    """Look whether the newest record has this verdict: a proxy that let everything pass would be fast."""
    record = json.loads(_end(journal).splitlines()[-1])
    if record["verdict"] != verdict or not record["reply"].startswith("250"):
        raise AssertionError(f"the journal says {record}, but the verdict should be {verdict}")


def _end(log: Path) -> str:
    """Return the last lines of a file."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END_OF_FILE_OCTETS))
        return file.read().decode()


HOPS: Final[dict[str, _Opener]] = {
    "direct": _direct,
    "haproxy": _haproxy,
    "aiosmtpd": _aiosmtpd,
    "postfix-filter": _postfix_filter,
    "postfix": _postfix,
    "exim": _exim,
    "inbound": _inbound,
    "outbound": _outbound,
    "outbound-ledger": _outbound_ledger,
    "outbound-10000": _outbound_10000,
}
"""What starts each hop in a folder, for as long as the context lasts, by its name."""

OURS: Final = ("inbound", "outbound", "outbound-ledger", "outbound-10000")
"""The hops that are proxies of ours."""
