"""The file that says how far each domain has been switched on: `rollout.json` in the state folder.

Several processes change it, each with what it has seen; each change is made under a lock, on what the file holds then.
What root writes belongs to the owner of the folder, so that the service can go on with it.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from batv.day import Day
from batv.errors import ConfigError, DayError
from batv.rollout import Evidence, Phase, Progress
from batv.store.files import Owner, locked, read_bounded, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["RolloutStore"]

_VERSION: Final = 1
_MAX_OCTETS: Final = 16 << 20
"""About 300 octets a domain: for more domains than anybody has."""


class RolloutStore:
    """Reads and changes the file.

    Args:
        directory: the state folder; it must exist.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "rollout.json"

    def fingerprint(self) -> tuple[int, ...]:
        """Return what is another when the file is."""
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> dict[str, Progress]:
        """Return where each domain stands; nothing while there is no file.

        Raises:
            ConfigError: the file is damaged.
            UnsafeFileError, IoError: it cannot be read.
        """
        try:
            octets = read_bounded(self.path, _MAX_OCTETS)
        except FileNotFoundError:
            return {}
        try:
            table = json.loads(octets)
            if table["version"] != _VERSION:
                raise ConfigError(f"{self.path} has version {table['version']}, not {_VERSION}", "use a newer batv")
            return {str(domain): _progress(fields) for domain, fields in table["domains"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, DayError) as error:
            remedy = "move it away: each domain then begins by looking on"
            raise ConfigError(f"{self.path} is damaged", remedy) from error

    def change(self, change: Callable[[Mapping[str, Progress]], Mapping[str, Progress]]) -> dict[str, Progress]:
        """Change what the file holds, and return what it holds then.

        Args:
            change: returns what it is to hold, given what it holds.

        Raises:
            ConfigError: the file is damaged.
            TryAgainError: somebody else holds the lock for long.
            UnsafeFileError, IoError: it cannot be read or written.
        """
        folder = self.path.parent
        owner = _owner(folder) if os.geteuid() == 0 else None
        with locked(folder, owner=owner):
            found = self.read()
            wanted = dict(change(found))
            if wanted != found:
                table = {"version": _VERSION, "domains": {name: _fields(wanted[name]) for name in sorted(wanted)}}
                write_atomically(self.path, json.dumps(table, indent=1).encode(), owner=owner)
            return wanted


def _owner(folder: Path) -> Owner | None:
    try:
        found = folder.stat()
    except OSError:
        return None  # locking says what is wrong with it
    return Owner(found.st_uid, found.st_gid)


def _fields(progress: Progress) -> dict[str, object]:
    evidence = progress.evidence
    return {
        "phase": progress.phase.value,
        "since": progress.since.iso(),
        "first_signed": progress.first_signed.iso() if progress.first_signed is not None else None,
        "held": progress.held,
        "genuine": evidence.genuine,
        "unknown": evidence.unknown,
        "forged": evidence.forged,
        "reason": progress.reason,
    }


def _progress(fields: Mapping[str, object]) -> Progress:
    first_signed = fields["first_signed"]
    return Progress(
        Phase(fields["phase"]),
        Day.from_iso(str(fields["since"])),
        Day.from_iso(str(first_signed)) if first_signed is not None else None,
        held=bool(fields["held"]),
        evidence=Evidence(*(int(str(fields[name])) for name in ("genuine", "unknown", "forged"))),
        reason=str(fields["reason"]),
    )
