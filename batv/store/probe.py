"""The file that says how the last probe of the loop ended: `probe.json` in the state folder.

The command writes it; the service reads it, and with it steps back a domain whose loop is broken.
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Final

from batv.errors import TryAgainError
from batv.probe import Loop, Outcome, Probes
from batv.store.state_file import StateFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["LEAST_SECONDS", "ProbeStore"]

LEAST_SECONDS: Final = 600.0
"""From one probe to the next: another site's server makes a bounce for each."""

_MAX_OCTETS: Final = 65_536


class ProbeStore:
    """Reads and changes the file.

    Args:
        directory: the state folder.
    """

    def __init__(self, directory: Path) -> None:
        remedy = "remove it, and run 'batv probe'"
        self._file = StateFile(directory / "probe.json", _MAX_OCTETS, remedy)
        self.path = self._file.path

    def fingerprint(self) -> tuple[int, ...]:
        """Return what is another when the file is."""
        return self._file.fingerprint()

    def read(self) -> Probes:
        """Return what is remembered.

        Raises:
            ConfigError: the file is damaged.
            UnsafeFileError, IoError: it cannot be read.
        """
        with self._file.table() as table:
            if table is None:
                return Probes()
            outcome = table["outcome"]
            return Probes(
                _finite(table["began"]), _outcome(outcome) if outcome is not None else None, _seconds(table["worked"])
            )

    def begin(self, now: float) -> None:
        """Take note that a probe begins.

        Args:
            now: POSIX seconds.

        Raises:
            TryAgainError: the last one began a short while ago.
            ConfigError, CannotCreateError, UnsafeFileError, IoError: the file cannot be read or written.
        """
        with self._file.locked():
            probes = self.read()
            ago = now - probes.began
            if 0 <= ago < LEAST_SECONDS:
                raise TryAgainError(
                    f"a probe began {ago:.0f} s ago", f"run the next one in {LEAST_SECONDS - ago:.0f} s"
                )
            self._write(replace(probes, began=now))

    def end(self, outcome: Outcome) -> Probes:
        """Take note of how a probe ended, and return what is remembered then.

        Raises:
            TryAgainError: somebody else holds the lock for long.
            ConfigError, CannotCreateError, UnsafeFileError, IoError: the file cannot be read or written.
        """
        with self._file.locked():
            probes = self.read()
            worked = outcome.ended if outcome.loop is Loop.WORKS else probes.worked
            probes = replace(probes, outcome=outcome, worked=worked)
            self._write(probes)
            return probes

    def _write(self, probes: Probes) -> None:
        outcome = probes.outcome
        fields = (
            {
                "loop": outcome.loop.value,
                "reason": outcome.reason,
                "sender": outcome.sender,
                "ended": outcome.ended,
                "bounce_seconds": outcome.bounce_seconds,
            }
            if outcome is not None
            else None
        )
        self._file.write({"began": probes.began, "outcome": fields, "worked": probes.worked})


def _outcome(fields: Mapping[str, object]) -> Outcome:
    return Outcome(
        Loop(fields["loop"]),
        str(fields["reason"]),
        str(fields["sender"]),
        _finite(fields["ended"]),
        _seconds(fields["bounce_seconds"]),
    )


def _seconds(value: object) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: object) -> float:
    seconds = float(str(value))
    if not isfinite(seconds):  # it is neither before nor after any time
        raise ValueError(f"{value} is no time")
    return seconds
