"""Marks of processes that have notes to write: one that is left behind tells that some may never have been written.

A mark is an empty file on which its process holds a lock, which the kernel releases however the process ends. Who has
written everything removes its mark. One on which nobody holds a lock is that of a process that could not.

Source: flock(2), rename(2).
"""

from __future__ import annotations

import fcntl
import os
import secrets
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Mark", "left_behind"]

_SUFFIX: Final = ".mark"


class Mark:
    """The mark of this process in a folder.

    Args:
        path: the file.
        descriptor: open, with the lock.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make a mark; nobody ever sees it without its lock.

        Raises:
            OSError: it cannot be made.
        """
        path = folder / f"{secrets.token_hex(8)}{_SUFFIX}"
        temporary = path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.rename(path)
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        return cls(path, descriptor)

    def remove(self) -> None:
        """Remove it: everything is written. Raises OSError where the file stays."""
        self._path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Leave it behind: something was not written."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def left_behind(folder: Path) -> list[Path]:
    """Return the marks that processes have left behind in a folder.

    Raises:
        OSError: that cannot be told.
    """
    try:
        return [path for path in folder.iterdir() if path.suffix == _SUFFIX and _is_left(path)]
    except FileNotFoundError:
        return []


def _is_left(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # its process has removed it just now
        return False
    try:
        # Shared: who else looks at the same moment must not be taken for its process.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
