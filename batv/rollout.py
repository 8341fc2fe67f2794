"""How a domain is switched on step by step: from looking on to discarding, and back when something would be lost.

A domain begins by looking on. Mail that was sent before it signed carries no tag, and neither does mail by a route that
does not pass the outbound proxy: what such mail brings back must not be withheld. So a step is taken only when its days
are over and nothing genuine would have been lost meanwhile, and no bounce is withheld before whatever was sent
untagged has had its time to come back. And a loop that a probe has found broken withholds nothing: genuine bounces come
by it without a good tag, or not at all.

Source: draft-levine-smtp-batv-01 section 6 (deployment).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from batv.verdict import SEVERITY, Disposition, Verdict
from batv.wording import counted

if TYPE_CHECKING:
    from batv.day import Day

__all__ = ["Evidence", "OnLoss", "Phase", "Plan", "Progress", "capped", "classed", "probed", "walked"]


class Phase(Enum):
    """How far a domain has come."""

    OBSERVE = "observe"  # every bounce passes; what would have been done is on record
    MARK = "mark"  # forged bounces carry a status field
    QUARANTINE = "quarantine"  # forged bounces are kept, and can be released
    ENFORCE = "enforce"  # forged bounces get what the domain's settings say

    @property
    def withholds(self) -> bool:
        """Whether forged bounces do not reach anybody."""
        return self in {Phase.QUARANTINE, Phase.ENFORCE}


PHASES: Final = tuple(Phase)
"""The phases in their order."""


class OnLoss(Enum):
    """What happens when something genuine would have been lost."""

    BACK = "back"  # one phase back
    STOP = "stop"  # no further, until somebody says so


_MOST: Final = {
    Phase.OBSERVE: Disposition.PASS,
    Phase.MARK: Disposition.MARK,
    Phase.QUARANTINE: Disposition.QUARANTINE,
}


def capped(disposition: Disposition, phase: Phase) -> Disposition:
    """Return what a forged bounce gets in a phase: what the settings say, but no more than the phase allows."""
    most = _MOST.get(phase)
    return disposition if most is None or SEVERITY[disposition] <= SEVERITY[most] else most


@dataclass(frozen=True, slots=True)
class Evidence:
    """What has come in for a domain with a null sender and without a good tag.

    Attributes:
        genuine: bounces of mail of ours that the domain's settings would have withheld.
        unknown: bounces without a tag of which nothing is known.
        forged: bounces with a tag that is none of ours.
    """

    genuine: int = 0
    unknown: int = 0
    forged: int = 0

    def __add__(self, other: Evidence) -> Evidence:
        """Return both together."""
        return Evidence(self.genuine + other.genuine, self.unknown + other.unknown, self.forged + other.forged)


def classed(verdict: Verdict, disposition: Disposition, *, ours: bool = False) -> Evidence | None:
    """Return what one bounce is evidence of; None if of nothing.

    Args:
        verdict: what was found out.
        disposition: what the domain's settings would do about it in the last phase.
        ours: whether it is known from elsewhere to be about mail of ours.
    """
    if verdict in {Verdict.BAD_SIGNATURE, Verdict.UNKNOWN_KEY, Verdict.MALFORMED}:
        return Evidence(forged=1)
    if verdict is not Verdict.UNTAGGED and verdict is not Verdict.EXPIRED:
        return None
    # An expired tag was made by one of our keys: a bounce that has come late. In the quarantine it is not lost.
    if (ours or verdict is Verdict.EXPIRED) and SEVERITY[disposition] > SEVERITY[Disposition.QUARANTINE]:
        return Evidence(genuine=1)
    return Evidence(unknown=1) if verdict is Verdict.UNTAGGED else None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a domain is to be switched on.

    Attributes:
        observe_days: days in the first phase.
        mark_days: days in the second.
        quarantine_days: days in the third.
        max_losses: genuine bounces that a phase may have withheld, or would have, before it counts as failed.
        on_loss: what happens then.
    """

    observe_days: int = 7
    mark_days: int = 7
    quarantine_days: int = 7
    max_losses: int = 0
    on_loss: OnLoss = OnLoss.BACK

    def days(self, phase: Phase) -> int | None:
        """Return the days of a phase; None for the last, which does not end."""
        return {
            Phase.OBSERVE: self.observe_days,
            Phase.MARK: self.mark_days,
            Phase.QUARANTINE: self.quarantine_days,
        }.get(phase)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a domain stands.

    Attributes:
        phase: how far it has come.
        since: the day on which the phase began.
        first_signed: the day on which mail of the domain was first signed; None if none was yet.
        held: whether it goes no further by itself.
        evidence: what has come in since the phase began.
        reason: one clause that says why it is where it is.
        probe: when the last probe ended that was heard of, POSIX seconds; 0 if none was.
        broken: whether that one found the loop broken.
    """

    phase: Phase
    since: Day
    first_signed: Day | None = None
    held: bool = False
    evidence: Evidence = Evidence()
    reason: str = "begins"
    probe: float = 0.0
    broken: bool = False

    def moved(self, phase: Phase, day: Day, reason: str) -> Progress:
        """Return where it stands after a move; the phase begins anew even where it is the same."""
        return replace(self, phase=phase, since=day, evidence=Evidence(), reason=reason)

    def forward(self) -> Phase:
        """Return the next phase, the last one after itself."""
        return PHASES[min(PHASES.index(self.phase) + 1, len(PHASES) - 1)]

    def back(self) -> Phase:
        """Return the phase before, the first one before itself."""
        return PHASES[max(PHASES.index(self.phase) - 1, 0)]

    def waits_until(self, plan: Plan, lifetime: int) -> Day | None:
        """Return the day on which the next phase can begin if nothing is lost; None if no day can be told.

        Args:
            plan: how the domain is to be switched on.
            lifetime: days for which a tag of the domain is good, the longest of its keys.
        """
        days = plan.days(self.phase)
        if days is None or self.held:
            return None
        over = self.since + days
        if not self.forward().withholds:
            return over
        if self.first_signed is None or self.broken:
            return None
        safe = self.first_signed + lifetime + 1
        return max(over, safe)


def probed(progress: Progress, day: Day, ended: float, fault: str) -> Progress:
    """Return where a domain stands once a probe of its loop has ended.

    Of a broken loop the domain marks, and goes no further by itself until a probe has found the loop whole. Each probe
    is heard once: what the administrator says after it stands.

    Args:
        progress: where it stood.
        day: today.
        ended: when the probe ended, POSIX seconds.
        fault: why the loop is broken, as a clause; empty if it is not.
    """
    if ended == progress.probe:
        return progress
    heard = replace(progress, probe=ended, broken=bool(fault))
    if fault and progress.phase.withholds and not progress.held:
        return heard.moved(Phase.MARK, day, f"a probe found the loop broken: {fault}")
    return heard


def walked(progress: Progress, plan: Plan, day: Day, lifetime: int) -> Progress:
    """Return where a domain stands on a day, given what has come in.

    Args:
        progress: where it stood.
        plan: how it is to be switched on.
        day: today.
        lifetime: days for which a tag of the domain is good, the longest of its keys.
    """
    if progress.held:
        return progress
    lost = progress.evidence.genuine
    if lost > plan.max_losses:
        reason = f"{counted(lost, 'genuine bounce')} would have been lost in {progress.phase.value}"
        if plan.on_loss is OnLoss.STOP and progress.phase is not Phase.OBSERVE:
            return replace(progress, held=True, reason=reason)
        return progress.moved(progress.back(), day, reason)
    until = progress.waits_until(plan, lifetime)
    if until is None or day < until:
        return progress
    return progress.moved(progress.forward(), day, f"nothing genuine was lost in {progress.phase.value}")
