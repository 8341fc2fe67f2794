"""A small JSON file in the state folder, by which commands and running services tell each other what stands.

What root writes belongs to the owner of the folder, so that the service can go on with it.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from batv.errors import ConfigError, DayError
from batv.store.files import Owner, locked, read_bounded, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["StateFile"]

_VERSION: Final = 1


class StateFile:
    """Reads and writes the file.

    Args:
        path: the file; its folder must exist before anything is written.
        limit: most octets that are read.
        remedy: what to do about a damaged file.
        mode: permission bits.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, limit: int, remedy: str, mode: int = 0o600) -> None:
        self.path = path
        self._limit = limit
        self._remedy = remedy
        self._mode = mode

    def fingerprint(self) -> tuple[int, ...]:
        """Return what is another when the file is."""
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    @contextmanager
    def table(self) -> Iterator[dict[str, Any] | None]:
        """Give what the file holds to a block that reads it; None while there is no file.

        Raises:
            ConfigError: the file is damaged: it is no such table, or the block could not make out what is in it.
            UnsafeFileError, IoError: it cannot be read.
        """
        try:
            octets = read_bounded(self.path, self._limit)
        except FileNotFoundError:
            yield None
            return
        try:
            found = json.loads(octets)
            if found["version"] != _VERSION:
                raise ConfigError(f"{self.path} has version {found['version']}, not {_VERSION}", "use a newer batv")
            yield found
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, DayError) as error:
            raise ConfigError(f"{self.path} is damaged", self._remedy) from error

    def write(self, table: Mapping[str, object]) -> None:
        """Write the file anew.

        Raises:
            CannotCreateError, UnsafeFileError, IoError: it is not written.
        """
        octets = json.dumps({"version": _VERSION, **table}, indent=1).encode()
        write_atomically(self.path, octets, mode=self._mode, owner=self._owner())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from changing the file.

        Raises:
            TryAgainError: somebody else holds the lock for long.
            CannotCreateError, UnsafeFileError, IoError: it cannot be had.
        """
        with locked(self.path.parent, owner=self._owner()):
            yield

    def _owner(self) -> Owner | None:
        """Return whom a new file shall belong to where we are root; None for ourselves."""
        if os.geteuid() != 0:
            return None
        try:
            found = self.path.parent.stat()
        except OSError:
            return None  # whoever writes or locks says what is wrong with the folder
        return Owner(found.st_uid, found.st_gid)
