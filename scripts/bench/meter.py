"""CPU time and memory of a process and all below it, as the kernel counts them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["Meter", "memory_mib"]

_PROC: Final = Path("/proc")
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_RESET_PEAK: Final = "5"


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process, in MiB, or that of it and all below it, if that is more.

    What several processes share counts in full for the one process, and in parts for all of them. So the memory of a
    single process can be compared with its peak, of which the kernel keeps no other figure.
    """
    return max(_kibibytes(pid, "status", "VmRSS:"), _shares(pid)) / 1024


class Meter:
    """CPU time and memory of a process and all below it, from now on.

    Args:
        pid: the uppermost process.
        beside: a process whose CPU time does not count, where some of those below `pid` end unseen: the kernel forgets
            the time of a process whose parent does not want to hear of its end. Then what counts is the CPU time of the
            whole machine, less that of this process, of ours and of those that we waited for.
    """

    def __init__(self, pid: int, beside: int | None = None) -> None:
        self._pid: Final = pid
        self._beside: Final = beside
        (_PROC / str(pid) / "clear_refs").write_text(_RESET_PEAK)
        self._before: Final = self._ticks()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds used since the beginning, by processes too that have ended."""
        return (self._ticks() - self._before) / _TICKS_A_SECOND

    def peak_mib(self) -> float:
        """Return the peak of the uppermost process, or what it and all below it have now, if that is more."""
        return max(_kibibytes(self._pid, "status", "VmHWM:"), _shares(self._pid)) / 1024

    def _ticks(self) -> int:
        if self._beside is None:
            return sum(_ticks(pid) for pid in _family(self._pid))
        # Of all CPUs: user, nice, system, idle, iowait, irq, softirq.
        spent = [int(field) for field in (_PROC / "stat").read_text().split(maxsplit=8)[1:8]]
        return sum(spent) - sum(spent[3:5]) - _ticks(self._beside) - _ticks(os.getpid())


def _ticks(pid: int) -> int:
    """Return the CPU time of a process and of its ended children for which it waited."""
    # The fields after the name, which may hold blanks: utime, stime, and those of children that were waited for.
    return sum(map(int, _read(pid, "stat").rpartition(")")[2].split()[11:15]))


def _shares(pid: int) -> int:
    """Return the memory of a process and all below it, in KiB; what they share is counted once."""
    return sum(_kibibytes(each, "smaps_rollup", "Pss:") for each in _family(pid))


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
