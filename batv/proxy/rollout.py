"""The rollout in a running service: what is evidence is counted, domains are moved on, dispositions are held down.

What is counted goes to the file of the rollout now and then, where all processes and all commands meet. A file that
cannot be read or written leaves every domain where it is: nothing is withheld because something is broken.

What a probe of the loop sent, and what it brought back, is no evidence; how it ended is heard of by a file of its own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from batv.errors import BatvError
from batv.observe.event import Direction, TransactionEnded
from batv.probe import Loop
from batv.rescue import ANSWERED
from batv.rollout import Evidence, Phase, Progress, capped, classed, probed, walked
from batv.store.probe import ProbeStore
from batv.store.rollout import RolloutStore
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batv.config import Settings
    from batv.day import Day
    from batv.observe.event import Event
    from batv.policy import Policy
    from batv.probe import Outcome

__all__ = ["Counted", "Rollout"]


class Counted(NamedTuple):
    """What was counted of each domain, and which domains were seen to sign for the first time."""

    seen: dict[str, Evidence]
    signed: set[str]


class Rollout:
    """Where the domains stand, as this process knows it.

    Args:
        settings: the settings; they name the domains, the plan and the folder.

    Attributes:
        progress: where each domain stands, by its name in the settings.
        unheard: why it is not known how the last probe ended; None if it is.
    """

    def __init__(self, settings: Settings) -> None:
        self._plan = settings.rollout.plan
        self._names = settings.automatic
        self._policy = settings.policy
        self._store = RolloutStore(Path(settings.state.directory))
        self._prober = settings.probe.sender
        self._probes = ProbeStore(Path(settings.state.directory))
        self._seen: dict[str, Evidence] = {}
        self._signed: set[str] = set()
        self._fingerprint: tuple[object, ...] | None = None
        self.progress: dict[str, Progress] = {}
        self.unheard: BatvError | None = None

    @property
    def wanted(self) -> bool:
        """Whether any domain is to be switched on step by step."""
        return bool(self._names)

    def take_over(self, before: Rollout) -> None:
        """Go on where another one was, after a reload: what it has counted counts, and what it knew is known."""
        self.give_back(before.take())
        names = set(self._names.values())
        self.progress = {name: each for name, each in before.progress.items() if name in names}

    def observe(self, event: Event) -> None:
        """Count what is evidence in an event."""
        if not isinstance(event, TransactionEnded):
            return
        if event.direction is Direction.OUTBOUND:
            name = self._evidence_for(event.reverse_path)
            signed = any(outcome.verdict is Verdict.SIGNED for outcome in event.recipients)
            if name is not None and signed and self._never_signed(name):
                self._signed.add(name)
        elif event.null_sender:  # a bounce with a sender is no evidence: most are automatic replies
            for outcome in event.recipients:
                name = self._evidence_for(outcome.forward_path)
                if name is not None and outcome.disposition is not Disposition.DEFER:  # that one comes again
                    self._count(name, outcome.verdict, answers=ANSWERED in outcome.reason)

    def take(self) -> Counted:
        """Return what was counted, and begin to count anew."""
        counted = Counted(self._seen, self._signed)
        self._seen, self._signed = {}, set()
        return counted

    def give_back(self, counted: Counted) -> None:
        """Count again what could not be written down."""
        for name, evidence in counted.seen.items():
            self._seen[name] = self._seen.get(name, Evidence()) + evidence
        self._signed |= counted.signed

    def look(self, counted: Counted, day: Day, lifetime: Callable[[str], int]) -> list[tuple[str, Progress]]:
        """Write down what was counted, move the domains, and return those that have moved. Waits for the disk.

        Args:
            counted: what was counted since the last time.
            day: today.
            lifetime: returns the days for which a tag of a domain is good.

        Raises:
            BatvError: the file cannot be read or written; every domain stays where it is.
        """

        def changed(found: Mapping[str, Progress]) -> dict[str, Progress]:
            after = dict(found)
            for name in names:
                progress = found.get(name) or Progress(Phase.OBSERVE, day)
                if name in counted.signed and progress.first_signed is None:
                    progress = replace(progress, first_signed=day)
                progress = replace(progress, evidence=progress.evidence + counted.seen.get(name, Evidence()))
                progress = self._probed(name, progress, outcome, day)
                after[name] = walked(progress, self._plan, day, lifetime(name))
            return after

        names = set(self._names.values())
        before = self.progress
        # What is written after this look at it is seen at the next one.
        probes = self._probes.fingerprint()
        outcome = self._last_outcome()
        found = self._store.change(changed)
        self._fingerprint = (self._store.fingerprint(), probes)
        self.progress = {name: found[name] for name in names}
        return [
            (name, each)
            for name, each in self.progress.items()
            if name not in before or before[name].phase is not each.phase
        ]

    @property
    def stale(self) -> bool:
        """Whether somebody else has changed the file, or a probe has ended, since it was last looked at."""
        return bool(self._names) and (self._store.fingerprint(), self._probes.fingerprint()) != self._fingerprint

    def applied(self, policy: Policy) -> Policy:
        """Return what is wanted for all domains as far as they have come; those of which nothing is known look on."""
        if not self._names:
            return policy
        domains = dict(policy.domains)
        for spelling, name in self._names.items():
            progress = self.progress.get(name)
            phase = progress.phase if progress is not None else Phase.OBSERVE
            limited = domains[spelling].limited(partial(capped, phase=phase))
            domains[spelling] = replace(limited, looks_on=phase is not Phase.ENFORCE)
        return replace(policy, domains=domains)

    def _last_outcome(self) -> Outcome | None:
        """Return how the last probe ended; None too where that cannot be read: what it did to a domain stands."""
        self.unheard = None
        if self._prober is None:
            return None
        try:
            return self._probes.read().outcome
        except BatvError as error:
            self.unheard = error
            return None

    def _probed(self, name: str, progress: Progress, outcome: Outcome | None, day: Day) -> Progress:
        if self._prober is None or self._name(str(self._prober)) != name:
            return replace(progress, broken=False)  # nobody would ever find the loop whole again
        if outcome is None or outcome.loop is Loop.INCONCLUSIVE or self._name(outcome.sender) != name:
            return progress
        return probed(progress, day, outcome.ended, outcome.reason if outcome.loop is Loop.BROKEN else "")

    def _count(self, name: str, verdict: Verdict, *, answers: bool) -> None:
        domain = self._policy.for_domain(name.encode())
        if domain is None or (answers and domain.rescue):
            return  # in the last phase it would pass
        evidence = classed(verdict, domain.disposition(verdict), ours=answers)
        if evidence is not None:
            self._seen[name] = self._seen.get(name, Evidence()) + evidence

    def _evidence_for(self, path: str) -> str | None:
        """Return the name of the domain for which mail of a path, or a bounce to it, is evidence; None if for none."""
        if self._prober is not None and self._prober.word_in(path) is not None:
            return None
        return self._name(path)

    def _never_signed(self, name: str) -> bool:
        progress = self.progress.get(name)
        return progress is None or progress.first_signed is None

    def _name(self, path: str) -> str | None:
        """Return the name of the domain of a path in the settings, if it is switched on step by step."""
        found = self._policy.name_for(path.rpartition("@")[2].rstrip(">").encode())
        return self._names.get(found) if found is not None else None
