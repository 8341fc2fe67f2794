"""The load: what is sent through a hop, and what that costs the hop."""

from __future__ import annotations

import os
import select
import subprocess
import time
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import TYPE_CHECKING, Final

from scripts.bench.client import DialogueError, idle_connections, transactions
from scripts.bench.meter import Meter
from scripts.bench.programs import HOST

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.bench.hops import Hop

__all__ = [
    "IDLE",
    "IDLE_CONNECTIONS",
    "MEBIBYTE",
    "TAGS",
    "WORKLOADS",
    "Figures",
    "LoadError",
    "Workload",
    "enough",
    "idle_mib",
    "latency",
    "measure",
    "takes",
]

MEBIBYTE: Final = 2**20

IDLE_CONNECTIONS: Final = 1000
"""How many connections are held that do nothing."""

IDLE: Final = f"idle-{IDLE_CONNECTIONS}"
"""Name of the workload that is connections that do nothing."""

TAGS: Final = "tags"
"""Name of the workload that needs no hop."""

_SECONDS_AT_MOST: Final = 300
_GROWTH: Final = 8.0
_PERCENT: Final = 100


class LoadError(Exception):
    """A message was not taken as it should have been."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent.

    Attributes:
        name: the heading of its column, and what the command line calls it.
        octets: size of a message, without its header.
        sessions: sessions at once.
        many: whether a session carries many messages, or one.
        timed: whether each transaction is measured, by a client of ours in the place of smtp-source.
    """

    name: str
    octets: int
    sessions: int
    many: bool = True
    timed: bool = False

    @property
    def large(self) -> bool:
        """Whether octets count, and not messages."""
        return self.octets >= MEBIBYTE


WORKLOADS: Final = (
    *(Workload(f"many-{sessions}", 2048, sessions) for sessions in (1, 10, 50, 200)),
    *(Workload(f"one-{sessions}", 2048, sessions, many=False) for sessions in (1, 10, 50, 200)),
    Workload("large-4", 25 * MEBIBYTE, 4),
    *(Workload(f"latency-{sessions}", 2048, sessions, timed=True) for sessions in (1, 10)),
)
"""Small messages, many a session and one a session; large ones; and small ones of which each is measured."""

# Exim begins some processes for each message, so that 200 sessions would take most of the time of the whole run. What
# Postfix takes for a connection that does nothing is the same with a filter and without. The many domains are there for
# one comparison.
_NOT_TAKEN: Final = {"exim": {"many-200", "one-200", IDLE}, "postfix-filter": {IDLE}, "direct": {IDLE}}
_ONLY_TAKEN: Final = {"outbound-10000": {"many-10", "many-50", "latency-10"}}


def takes(hop: str, workload: str) -> bool:
    """Whether a hop is measured with a workload, each given by its name."""
    return workload not in _NOT_TAKEN.get(hop, ()) and workload in _ONLY_TAKEN.get(hop, (workload,))


@dataclass(frozen=True, slots=True)
class Figures:
    """What one measurement found.

    Attributes:
        messages: how many were sent.
        seconds: from the beginning until each message had its reply, and the hop had passed it on.
        rate: messages a second; MiB a second where the workload is large.
        cpu_seconds: of the hop, for 1000 messages; for a GiB where the workload is large; None without a hop.
        peak_mib: the most memory that the hop had during this, in MiB; None where that is not known.
        p50_ms: median of the milliseconds of a transaction; None where smtp-source sent.
        p99_ms: the milliseconds that one transaction of a hundred took longer than; None where smtp-source sent.
    """

    messages: int
    seconds: float
    rate: float
    cpu_seconds: float | None
    peak_mib: float | None
    p50_ms: float | None = None
    p99_ms: float | None = None


def enough(source: Path, hop: Hop, workload: Workload, seconds: float) -> int:
    """Return how many messages take about so many seconds, having tried; the hop is warm afterwards."""
    messages = workload.sessions
    measure(source, hop, workload, messages)  # the first time, processes are begun and connections made
    while True:
        took = measure(source, hop, workload, messages).seconds
        if took > seconds / 3:
            break
        messages = _whole(messages * min(_GROWTH, seconds / took), workload)
    found = _whole(messages * seconds / took, workload)
    # Too few messages would measure how a hop begins: what disturbed the one try must not make them so few.
    return max(found, _whole(found * seconds / measure(source, hop, workload, found).seconds, workload))


def _whole(messages: float, workload: Workload) -> int:
    """Return a number of messages that the sessions can share evenly."""
    return max(1, round(messages / workload.sessions)) * workload.sessions


def measure(source: Path, hop: Hop, workload: Workload, messages: int) -> Figures:
    """Send so many messages through a hop with smtp-source.

    Args:
        source: the program smtp-source.
        hop: what stands between it and smtp-sink.
        workload: what is sent.
        messages: how many.

    Raises:
        LoadError: a message was not taken.
    """
    arguments = ["-M", "client.example", "-f", hop.senders[0], "-t", hop.recipient]
    arguments += ["-s", str(workload.sessions), "-m", str(messages), "-l", str(workload.octets)]
    arguments += ["-d"] if workload.many else []
    meter = None if hop.pid is None else Meter(hop.pid, hop.beside)
    began = time.perf_counter()
    with subprocess.Popen(
        [source, *arguments, f"{HOST}:{hop.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            _wait(process)
        finally:
            process.kill()
        said = b"" if process.stderr is None else process.stderr.read()
    if process.returncode != 0 or said:
        raise LoadError(f"{hop.name}, {workload.name}: smtp-source says {said.decode(errors='replace').strip()}")
    return _figures(hop, workload, meter, messages, began)


def latency(hop: Hop, workload: Workload, seconds: float) -> Figures:
    """Send messages through a hop for so many seconds, and measure each transaction.

    Raises:
        LoadError: a message was not taken.
    """
    meter = None if hop.pid is None else Meter(hop.pid, hop.beside)
    began = time.perf_counter()
    try:
        took = transactions(hop, workload, seconds)
    except (DialogueError, OSError) as error:
        raise LoadError(f"{hop.name}, {workload.name}: {error}") from error
    figures = _figures(hop, workload, meter, len(took), began)
    found = quantiles(took, n=_PERCENT, method="inclusive")
    p50_ms, p99_ms = (round(1000 * found[percent - 1], 3) for percent in (50, 99))
    return replace(figures, p50_ms=p50_ms, p99_ms=p99_ms)


def _figures(hop: Hop, workload: Workload, meter: Meter | None, messages: int, began: float) -> Figures:
    """Return what was found, once the hop has settled."""
    hop.settle()
    seconds = time.perf_counter() - began
    octets = messages * workload.octets
    share = octets / 1024 / MEBIBYTE if workload.large else messages / 1000
    return Figures(
        messages,
        round(seconds, 4),
        round((octets / MEBIBYTE if workload.large else messages) / seconds, 1),
        None if meter is None else round(meter.cpu_seconds() / share, 4),
        None if meter is None or hop.beside is not None else round(meter.peak_mib(), 1),
    )


def idle_mib(hop: Hop) -> float:
    """Return how much more memory a hop takes with connections that do nothing, in MiB for all of them.

    Raises:
        LoadError: the hop did not take them all.
    """
    empty = hop.memory_mib()
    try:
        with idle_connections(hop.port, IDLE_CONNECTIONS):
            full = hop.memory_mib()
    except (DialogueError, OSError) as error:
        raise LoadError(f"{hop.name}, {IDLE}: {error}") from error
    if empty is None or full is None:
        raise LoadError(f"{hop.name}, {IDLE}: its memory is not known")
    return round(full - empty, 2)


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of smtp-source, and see it at once: the wait of Popen with a limit looks now and then."""
    ended = os.pidfd_open(process.pid)
    try:
        if not select.select([ended], [], [], _SECONDS_AT_MOST)[0]:
            raise LoadError(f"smtp-source has not ended after {_SECONDS_AT_MOST} s")
    finally:
        os.close(ended)
    process.wait()
