"""The file in which an administrator says that the clock is right: `clock.json` in the state folder.

It holds nothing secret, and may be read by all: whoever runs the command need not be the service's user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batv.clock import Trust
from batv.day import Day
from batv.store.state_file import StateFile

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TrustStore"]

_MAX_OCTETS: Final = 4096


class TrustStore:
    """Reads and writes the file.

    Args:
        directory: the state folder.
    """

    def __init__(self, directory: Path) -> None:
        remedy = "remove it, or run 'batv clock trust' again"
        self._file = StateFile(directory / "clock.json", _MAX_OCTETS, remedy, mode=0o644)
        self.path = self._file.path

    def fingerprint(self) -> tuple[int, ...]:
        """Return what is another when the file is."""
        return self._file.fingerprint()

    def read(self) -> Trust | None:
        """Return what was said last; None while there is no file.

        Raises:
            ConfigError: the file is damaged.
            UnsafeFileError, IoError: it cannot be read.
        """
        with self._file.table() as table:
            if table is None:
                return None
            newest = table["newest_key"]
            return Trust(Day.from_iso(table["day"]), Day.from_iso(newest) if newest is not None else None)

    def write(self, trust: Trust) -> None:
        """Say it; the folder must exist.

        Raises:
            CannotCreateError, UnsafeFileError, IoError: it is not written.
        """
        newest = trust.newest.iso() if trust.newest is not None else None
        self._file.write({"day": trust.day.iso(), "newest_key": newest})
