"""System calls of a service that runs: watched, or made to fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["TRACEABLE", "injected", "program", "traced"]

TRACEABLE: Final = "import ctypes; ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0);"
"""What a service runs first that others than its parent may trace, on systems that allow that to parents alone."""


@contextmanager
def traced(pid: int, calls: str, into: Path | str, *options: str | Path) -> Iterator[None]:
    """Write down system calls of a process.

    Args:
        pid: the process.
        calls: names of the calls, with commas between.
        into: the file that has a line for each afterwards.
        options: more of strace's options.
    """
    command = [program("strace"), "-f", "-p", str(pid), "-o", str(into), *map(str, options), "-e", f"trace={calls}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            said = strace.stderr.readline()
            assert "attached" in said or "Requested path" in said, said
            while "attached" not in said:
                said = strace.stderr.readline()
                assert said, "strace has not attached"
            yield
        finally:
            strace.send_signal(signal.SIGTERM)
            strace.stderr.read()


@contextmanager
def injected(pid: int, calls: str, fault: str, path: Path | None = None) -> Iterator[None]:
    """Let system calls of a process fail, or take their time.

    Args:
        pid: the process.
        calls: names of the calls, with commas between.
        fault: as strace's option `inject` has it: `error=EIO`, or `delay_enter=` and microseconds.
        path: the file, or folder, that the calls are about; None for any.
    """
    about = ("-P", path) if path else ()
    with traced(pid, calls, os.devnull, *about, "-e", f"inject={calls}:{fault}"):
        yield


def program(name: str) -> str:
    """Return the path of a program, which must be there."""
    found = shutil.which(name)
    assert found is not None, f"there is no {name}"
    return found
