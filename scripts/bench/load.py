"""The load: what smtp-source sends through a hop, and what that costs the hop.

CPU seconds and memory are those that the kernel counts for the hop's process and all below it.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from scripts.bench.hops import Hop

__all__ = ["MEBIBYTE", "WORKLOADS", "Figures", "LoadError", "Workload", "enough", "measure", "memory_mib"]

MEBIBYTE: Final = 2**20

_PROC: Final = Path("/proc")
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_RESET_PEAK: Final = "5"
_SECONDS_AT_MOST: Final = 300
_GROWTH: Final = 8.0


class LoadError(Exception):
    """A message was not taken as it should have been."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent.

    Attributes:
        name: the heading of its column.
        octets: size of a message, without its header.
        sessions: sessions at once.
        many: whether a session carries many messages, or one.
    """

    name: str
    octets: int
    sessions: int
    many: bool

    @property
    def large(self) -> bool:
        """Whether octets count, and not messages."""
        return self.octets >= MEBIBYTE


WORKLOADS: Final = (
    *(Workload(f"many, {sessions}", 2048, sessions, many=True) for sessions in (1, 10, 50)),
    *(Workload(f"one, {sessions}", 2048, sessions, many=False) for sessions in (1, 10, 50)),
    Workload("25 MiB x 4", 25 * MEBIBYTE, 4, many=True),
)
"""Small messages, many a session and one a session, and large ones."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one measurement found.

    Attributes:
        messages: how many were sent.
        seconds: from the start of smtp-source to its end, by when each message has its reply.
        rate: messages a second; MiB a second where the workload is large.
        cpu_seconds: of the hop, for 1000 messages; for a GiB where the workload is large; None without a hop.
        peak_mib: the most memory that the hop had during this, in MiB; None without a hop.
    """

    messages: int
    seconds: float
    rate: float
    cpu_seconds: float | None
    peak_mib: float | None


def enough(source: Path, hop: Hop, workload: Workload, seconds: float) -> int:
    """Return how many messages take about so many seconds, having tried; the hop is warm afterwards."""
    messages = workload.sessions if workload.large else 10 * workload.sessions
    while True:
        took = measure(source, hop, workload, messages).seconds
        if took > seconds / 3:
            break
        messages = _whole(messages * min(_GROWTH, seconds / took), workload)
    return _whole(messages * seconds / took, workload)


def _whole(messages: float, workload: Workload) -> int:
    """Return a number of messages that the sessions can share evenly."""
    return max(1, round(messages / workload.sessions)) * workload.sessions


def measure(source: Path, hop: Hop, workload: Workload, messages: int) -> Figures:
    """Send so many messages through a hop.

    Args:
        source: the program smtp-source.
        hop: what stands between it and smtp-sink.
        workload: what is sent.
        messages: how many.

    Raises:
        LoadError: a message was not taken.
    """
    arguments = ["-M", "client.example", "-f", hop.sender, "-t", hop.recipient]
    arguments += ["-s", str(workload.sessions), "-m", str(messages), "-l", str(workload.octets)]
    arguments += ["-d"] if workload.many else []
    meter = None if hop.pid is None else _Meter(hop.pid)
    began = time.perf_counter()
    with subprocess.Popen(
        [source, *arguments, f"127.0.0.1:{hop.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            _wait(process)
        finally:
            process.kill()
        seconds = time.perf_counter() - began
        said = b"" if process.stderr is None else process.stderr.read()
    if process.returncode != 0 or said:
        raise LoadError(f"{hop.name}, {workload.name}: smtp-source says {said.decode(errors='replace').strip()}")
    peak = None if meter is None else round(meter.peak_mib(), 1)
    hop.settle()
    octets = messages * workload.octets
    share = octets / 1024 / MEBIBYTE if workload.large else messages / 1000
    return Figures(
        messages,
        round(seconds, 4),
        round((octets / MEBIBYTE if workload.large else messages) / seconds, 1),
        None if meter is None else round(meter.cpu_seconds() / share, 4),
        peak,
    )


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of smtp-source, and see it at once: the wait of Popen with a limit looks now and then."""
    ended = os.pidfd_open(process.pid)
    try:
        if not select.select([ended], [], [], _SECONDS_AT_MOST)[0]:
            raise LoadError(f"smtp-source has not ended after {_SECONDS_AT_MOST} s")
    finally:
        os.close(ended)
    process.wait()


def memory_mib(pid: int) -> float:
    """Return the memory of a process and all below it, in MiB; what they share is counted once."""
    return sum(_kibibytes(each, "smaps_rollup", "Pss:") for each in _family(pid)) / 1024


class _Meter:
    """CPU time and memory of a process and all below it, from now on.

    Args:
        pid: the uppermost process.
    """

    def __init__(self, pid: int) -> None:
        self._pid: Final = pid
        (_PROC / str(pid) / "clear_refs").write_text(_RESET_PEAK)
        self._before: Final = self._ticks()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds used since the beginning, by processes too that have ended."""
        return (self._ticks() - self._before) / _TICKS_A_SECOND

    def peak_mib(self) -> float:
        """Return the peak of the uppermost process, or what it and all below it have now, if that is more."""
        return max(_kibibytes(self._pid, "status", "VmHWM:") / 1024, memory_mib(self._pid))

    def _ticks(self) -> int:
        # The fields after the name, which may hold blanks: utime, stime, and those of children that were waited for.
        stats = (_read(pid, "stat").rpartition(")")[2].split() for pid in _family(self._pid))
        return sum(sum(map(int, fields[11:15])) for fields in stats)


def _kibibytes(pid: int, name: str, field: str) -> int:
    """Return a field of a file of the kernel about a process; 0 where the process has ended."""
    return next((int(line.split()[1]) for line in _read(pid, name).splitlines() if line.startswith(field)), 0)


def _family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for each in found:  # grows while it is walked
        for task in (_PROC / str(each) / "task").glob("*"):
            found += map(int, _read(each, f"task/{task.name}/children").split())
    return found


def _read(pid: int, name: str) -> str:
    """Return a file of the kernel about a process; an empty one where the process has ended."""
    try:
        return (_PROC / str(pid) / name).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
