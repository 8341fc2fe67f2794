"""Whether the clock can be believed.

A wrong day makes every genuine bounce look forged, and signs mail with tags that verify nowhere. Two things tell that
the clock is wrong: it is earlier than a key that exists already, as on a host that starts in 1970; or it goes by more
than a day faster or slower than the counter of seconds that nobody sets. A step of hours is what time servers do, and
is believed.

Rules:

1. A clock that was believed, and jumped, is believed again when it is back where the counter says that it should be.
2. A clock that is earlier than a key is believed again when it is not, whichever way it came there.
3. Whoever knows that it is right says so, and it is believed from there on.

Time zones do not matter: POSIX seconds have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batv.day import SECONDS_A_DAY, Day

if TYPE_CHECKING:
    from batv.keyring import KeyRings

__all__ = ["ClockJudge", "Reading", "Trust", "newest_day"]

_TOLERANCE_SECONDS: Final = SECONDS_A_DAY
"""A tag is good for a day more on both sides, so a clock that is wrong by less harms nothing."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What both clocks say at one moment.

    Attributes:
        posix: seconds since 1970-01-01 UTC, from the clock that is judged.
        steady: seconds of a counter that nobody sets, since whenever.
    """

    posix: float
    steady: float


@dataclass(frozen=True, slots=True)
class Trust:
    """Somebody's word that the clock is right.

    Attributes:
        day: the day that it was by the clock.
        newest: day of the newest key that there was; None without one.
    """

    day: Day
    newest: Day | None


class ClockJudge:
    """Says whether the clock can be believed, each time it is read."""

    def __init__(self) -> None:
        self._sure: Reading | None = None
        self._trust: Trust | None = None

    def doubt(self, now: Reading, newest: Day | None) -> str:
        """Return why the clock cannot be believed, as a clause; empty if it can.

        Args:
            now: what the clocks say.
            newest: day on which the newest key was made; None where there is none.
        """
        if newest is not None and now.posix < self._earliest(newest) - _TOLERANCE_SECONDS:
            return f"the clock says {Day.at(now.posix)}, and there is a key of {newest}"
        if self._sure is not None:
            off = now.posix - self._sure.posix - (now.steady - self._sure.steady)
            if abs(off) > _TOLERANCE_SECONDS:
                days = f"{abs(off) / SECONDS_A_DAY:.1f} days {'forward' if off > 0 else 'back'}"
                return f"the clock says {Day.at(now.posix)}, and has jumped {days}"
        self._sure = now
        return ""

    def trust(self, given: Trust | None, now: Reading | None = None) -> None:
        """Take somebody's word, given at any time, about keys; and about jumps too, where it was given now."""
        self._trust = given
        if now is not None:
            self._sure = now

    def _earliest(self, newest: Day) -> float:
        """Return the time before which the clock cannot be, POSIX seconds."""
        if self._trust is not None and self._trust.newest == newest:
            newest = min(self._trust.day, newest)
        return float(newest.number * SECONDS_A_DAY)


def newest_day(rings: KeyRings) -> Day | None:
    """Return the last day on which something was done to a key, as the rings tell it; days that are planned aside."""
    found = [rings.default, *rings.own.values()]
    days = [ring.created for ring in found if ring is not None]
    for ring in found:
        for key in ring.keys if ring is not None else ():
            days.append(key.created)
            if key.revoked is not None:
                days.append(key.revoked)
    return max(days, default=None)
