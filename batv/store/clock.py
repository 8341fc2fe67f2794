"""The file in which an administrator says that the clock is right: `clock.json` in the state folder.

It holds nothing secret, and may be read by all: whoever runs the command need not be the service's user.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from batv.clock import Trust
from batv.day import Day
from batv.errors import ConfigError, DayError
from batv.store.files import Owner, read_bounded, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TrustStore"]

_VERSION: Final = 1
_MAX_OCTETS: Final = 4096


class TrustStore:
    """Reads and writes the file.

    Args:
        directory: the state folder.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "clock.json"

    def fingerprint(self) -> tuple[int, ...]:
        """Return what is another when the file is."""
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> Trust | None:
        """Return what was said last; None while there is no file.

        Raises:
            ConfigError: the file is damaged.
            UnsafeFileError, IoError: it cannot be read.
        """
        try:
            octets = read_bounded(self.path, _MAX_OCTETS)
        except FileNotFoundError:
            return None
        try:
            table = json.loads(octets)
            if table["version"] != _VERSION:
                raise ConfigError(f"{self.path} has version {table['version']}, not {_VERSION}", "use a newer batv")
            newest = table["newest_key"]
            return Trust(Day.from_iso(table["day"]), Day.from_iso(newest) if newest is not None else None)
        except (ValueError, KeyError, TypeError, DayError) as error:
            raise ConfigError(f"{self.path} is damaged", "remove it, or run 'batv clock trust' again") from error

    def write(self, trust: Trust) -> None:
        """Say it; the folder must exist.

        Raises:
            CannotCreateError, UnsafeFileError, IoError: it is not written.
        """
        newest = trust.newest.iso() if trust.newest is not None else None
        table = {"version": _VERSION, "day": trust.day.iso(), "newest_key": newest}
        owner = None
        if os.geteuid() == 0:
            folder = self.path.parent.stat() if self.path.parent.is_dir() else None
            owner = Owner(folder.st_uid, folder.st_gid) if folder is not None else None
        write_atomically(self.path, json.dumps(table).encode(), mode=0o644, owner=owner)
