"""Disks that are full, broken or slow, under a service that runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final, Self

from tests.support.tracing import program

__all__ = ["SmallDisk", "may_mount"]

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
        subprocess.run([program("umount"), self.folder], check=True, timeout=60)

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


def _mount(*arguments: str | Path) -> None:
    subprocess.run([program("mount"), *arguments], check=True, timeout=60)
