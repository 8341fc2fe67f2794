"""Disks that are full, broken or slow, under a service that runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TRACEABLE", "SmallDisk", "injected", "may_mount"]

TRACEABLE: Final = "import ctypes; ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0);"
"""What a service runs first that others than its parent may trace, on systems that allow that to parents alone."""

_CHUNK_OCTETS: Final = 4096


def may_mount() -> bool:
    """Whether this process may mount file systems: root may, but for containers."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> 21 & 1)  # CAP_SYS_ADMIN


class SmallDisk:
    """A file system in memory, mounted for as long as the context lasts.

    Args:
        folder: where; it is made.
        octets: its size.
    """

    def __init__(self, folder: Path, octets: int) -> None:
        self.folder: Final = folder
        self._octets: Final = octets
        self._filler: Final = folder / "filler"

    def __enter__(self) -> Self:
        """Mount it."""
        self.folder.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={self._octets},mode=700", "tmpfs", self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        subprocess.run([_program("umount"), self.folder], check=True, timeout=60)

    def fill(self) -> None:
        """Leave no room."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while file.write(b"x" * _CHUNK_OCTETS):
                    pass
            except OSError:
                return

    def empty(self) -> None:
        """Make room again."""
        self._filler.unlink()


@contextmanager
def injected(pid: int, calls: str, fault: str, path: Path | None = None) -> Iterator[None]:
    """Let system calls of a process fail, or take their time.

    Args:
        pid: the process.
        calls: names of the calls, with commas between.
        fault: as strace's option `inject` has it: `error=EIO`, or `delay_enter=` and microseconds.
        path: the file, or folder, that the calls are about; None for any.
    """
    command = [_program("strace"), "-f", "-p", str(pid), "-o", os.devnull, *(["-P", str(path)] if path else [])]
    command += ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]
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


def _mount(*arguments: str | Path) -> None:
    subprocess.run([_program("mount"), *arguments], check=True, timeout=60)


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"there is no {name}"
    return found
