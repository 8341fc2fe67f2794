"""The file that says how far each domain has been switched on: `rollout.json` in the state folder.

Several processes change it, each with what it has seen; each change is made under a lock, on what the file holds then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batv.day import Day
from batv.rollout import Evidence, Phase, Progress
from batv.store.state_file import StateFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["RolloutStore"]

_MAX_OCTETS: Final = 16 << 20
"""About 300 octets a domain: for more domains than anybody has."""


class RolloutStore:
    """Reads and changes the file.

    Args:
        directory: the state folder; it must exist.
    """

    def __init__(self, directory: Path) -> None:
        remedy = "move it away: each domain then begins by looking on"
        self._file = StateFile(directory / "rollout.json", _MAX_OCTETS, remedy)
        self.path = self._file.path

    def fingerprint(self) -> tuple[int, ...]:
        """Return what is another when the file is."""
        return self._file.fingerprint()

    def read(self) -> dict[str, Progress]:
        """Return where each domain stands; nothing while there is no file.

        Raises:
            ConfigError: the file is damaged.
            UnsafeFileError, IoError: it cannot be read.
        """
        with self._file.table() as table:
            found = table["domains"] if table is not None else {}
            return {str(domain): _progress(fields) for domain, fields in found.items()}

    def change(self, change: Callable[[Mapping[str, Progress]], Mapping[str, Progress]]) -> dict[str, Progress]:
        """Change what the file holds, and return what it holds then.

        Args:
            change: returns what it is to hold, given what it holds.

        Raises:
            ConfigError: the file is damaged.
            TryAgainError: somebody else holds the lock for long.
            UnsafeFileError, IoError: it cannot be read or written.
        """
        with self._file.locked():
            found = self.read()
            wanted = dict(change(found))
            if wanted != found:
                self._file.write({"domains": {name: _fields(wanted[name]) for name in sorted(wanted)}})
            return wanted


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
        "probe": progress.probe,
        "broken": progress.broken,
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
        # Files that were written before there were probes have none.
        probe=float(str(fields.get("probe", 0.0))),
        broken=bool(fields.get("broken", False)),
    )
