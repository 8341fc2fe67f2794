"""Rollout: a domain goes forward by its days, never withholds too early, and goes back when something is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batv.config import parse
from batv.day import Day
from batv.proxy.rollout import Rollout
from batv.rollout import PHASES, Evidence, OnLoss, Phase, Plan, Progress, capped, classed, probed, walked
from batv.verdict import Disposition, Verdict
from tests.support.event import EVENT, OUTCOME

if TYPE_CHECKING:
    from pathlib import Path

BEGUN: Final = Day.from_iso("2026-11-23")
LIFETIME: Final = 7


def phases(plan: Plan, days: int, losses: dict[int, int] | None = None, *, signs_after: int = 0) -> list[Phase]:
    """Return the phase of each day of a domain that begins on the first."""
    progress, found = Progress(Phase.OBSERVE, BEGUN), []
    for number in range(days):
        day = BEGUN + number
        if number == signs_after:
            progress = replace(progress, first_signed=day)
        lost = Evidence(genuine=(losses or {}).get(number, 0))
        progress = walked(replace(progress, evidence=progress.evidence + lost), plan, day, LIFETIME)
        found.append(progress.phase)
    return found


def test_each_phase_has_its_days() -> None:
    """A week each, and then what the settings say."""
    found = phases(Plan(), 30)
    assert [found.index(phase) for phase in PHASES] == [0, 7, 14, 21]


def test_nothing_is_withheld_before_what_went_out_untagged_has_had_its_time() -> None:
    """One lifetime and a day after the first signature, however short the phases are."""
    found = phases(Plan(observe_days=1, mark_days=1, quarantine_days=1), 40, signs_after=10)
    assert found.index(Phase.QUARANTINE) == 10 + LIFETIME + 1
    assert found.index(Phase.MARK) == 1


def test_a_domain_that_never_signs_never_withholds() -> None:
    """All its bounces are untagged: it would lose each of them."""
    assert set(phases(Plan(), 400, signs_after=1000)) == {Phase.OBSERVE, Phase.MARK}


def test_a_loss_leads_back_and_the_days_begin_anew() -> None:
    """A route that was forgotten sends a bounce that the next phase would withhold."""
    found = phases(Plan(), 40, {15: 1})
    assert found[14:16] == [Phase.QUARANTINE, Phase.MARK]
    assert found.index(Phase.QUARANTINE, 16) == 15 + 7


def test_a_loss_while_looking_on_makes_it_look_on_for_longer() -> None:
    """Mail that was under way when signing began comes back in the first days."""
    assert phases(Plan(), 20, {3: 2, 5: 1}).index(Phase.MARK) == 5 + 7


def test_a_loss_can_stop_the_roll_out_where_it_is() -> None:
    """For who wants to decide it himself."""
    assert set(phases(Plan(on_loss=OnLoss.STOP), 400, {15: 1})[15:]) == {Phase.QUARANTINE}


def test_what_is_held_does_not_move() -> None:
    """`batv rollout hold` is the administrator's word."""
    held = Progress(Phase.MARK, BEGUN, BEGUN, held=True, evidence=Evidence(genuine=9))
    assert walked(held, Plan(), BEGUN + 1000, LIFETIME) == held
    assert held.waits_until(Plan(), LIFETIME) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Phase.OBSERVE, Phase.OBSERVE),
        (Phase.MARK, Phase.MARK),
        (Phase.QUARANTINE, Phase.MARK),
        (Phase.ENFORCE, Phase.MARK),
    ],
)
def test_a_broken_loop_withholds_nothing(before: Phase, after: Phase) -> None:
    """Genuine bounces come by it without a good tag: marked they arrive."""
    found = probed(Progress(before, BEGUN, BEGUN, evidence=Evidence(0, 5, 5)), BEGUN + 9, 1.0, "nothing came home")
    assert (found.phase, found.broken, found.probe) == (after, True, 1.0)
    if before is not after:
        assert (found.since, found.evidence) == (BEGUN + 9, Evidence())
        assert found.reason == "a probe found the loop broken: nothing came home"
    else:
        assert (found.since, found.evidence, found.reason) == (BEGUN, Evidence(0, 5, 5), "begins")


def test_it_goes_on_when_a_probe_has_found_the_loop_whole_and_not_before() -> None:
    """However many days pass; those of the phase count from the step back."""
    broken = probed(Progress(Phase.ENFORCE, BEGUN, BEGUN + -30), BEGUN, 1.0, "lost")
    assert broken.waits_until(Plan(), LIFETIME) is None
    assert walked(broken, Plan(), BEGUN + 400, LIFETIME).phase is Phase.MARK
    whole = probed(broken, BEGUN + 1, 2.0, "")
    assert whole.waits_until(Plan(), LIFETIME) == BEGUN + 7
    assert walked(whole, Plan(), BEGUN + 6, LIFETIME).phase is Phase.MARK
    assert walked(whole, Plan(), BEGUN + 7, LIFETIME).phase is Phase.QUARANTINE


def test_a_probe_is_heard_once() -> None:
    """What the administrator says after it stands, until the next probe."""
    broken = probed(Progress(Phase.ENFORCE, BEGUN), BEGUN, 1.0, "lost")
    by_hand = broken.moved(Phase.ENFORCE, BEGUN, "moved by hand")
    assert probed(by_hand, BEGUN + 1, 1.0, "lost") == by_hand
    assert probed(by_hand, BEGUN + 1, 2.0, "lost").phase is Phase.MARK


def test_a_domain_that_is_held_stays_where_it_is_when_its_loop_breaks() -> None:
    """`batv rollout hold` is the administrator's word; it is known all the same that the loop is broken."""
    held = Progress(Phase.ENFORCE, BEGUN, held=True)
    assert probed(held, BEGUN, 1.0, "lost") == replace(held, probe=1.0, broken=True)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "disposition", [Disposition.PASS, Disposition.MARK, Disposition.QUARANTINE, Disposition.DISCARD, Disposition.REJECT]
)
def test_a_phase_never_makes_a_disposition_worse(phase: Phase, disposition: Disposition) -> None:
    """What the settings say is the most that is ever done."""
    order = [Disposition.PASS, Disposition.MARK, Disposition.QUARANTINE, disposition]
    found = capped(disposition, phase)
    assert found is (disposition if phase is Phase.ENFORCE else min(order[PHASES.index(phase)], disposition, key=rank))


def rank(disposition: Disposition) -> int:
    """Return how much a disposition keeps from the recipient."""
    return ["pass", "mark", "quarantine", "discard", "reject"].index(disposition.value)


@pytest.mark.parametrize(
    ("verdict", "disposition", "ours", "evidence"),
    [
        (Verdict.UNTAGGED, Disposition.DISCARD, False, Evidence(unknown=1)),
        (Verdict.UNTAGGED, Disposition.DISCARD, True, Evidence(genuine=1)),
        (Verdict.UNTAGGED, Disposition.QUARANTINE, True, Evidence(unknown=1)),
        (Verdict.EXPIRED, Disposition.REJECT, False, Evidence(genuine=1)),
        (Verdict.EXPIRED, Disposition.QUARANTINE, False, None),
        (Verdict.BAD_SIGNATURE, Disposition.DISCARD, True, Evidence(forged=1)),
        (Verdict.UNKNOWN_KEY, Disposition.DISCARD, False, Evidence(forged=1)),
        (Verdict.VALID, Disposition.DISCARD, False, None),
        (Verdict.NOT_A_BOUNCE, Disposition.DISCARD, False, None),
    ],
)
def test_what_a_bounce_is_evidence_of(
    verdict: Verdict,
    disposition: Disposition,
    ours: bool,  # noqa: FBT001 -- a column of the table
    evidence: Evidence | None,
) -> None:
    """A late bounce was signed by us; a false tag tells of a forger; without a tag nothing is known by itself."""
    assert classed(verdict, disposition, ours=ours) == evidence


def test_a_bounce_that_comes_again_is_counted_once(tmp_path: Path) -> None:
    """A recipient who is put off has the same bounce a moment later, in a transaction of its own."""
    rollout = Rollout(parse('[domains."example.com"]\nrollout = "auto"\n', "batv.toml", str(tmp_path)))
    put_off = OUTCOME._replace(disposition=Disposition.DEFER, reply="452 4.5.3 Send to this recipient in a transaction")
    rollout.observe(EVENT._replace(recipients=(OUTCOME, put_off)))
    assert rollout.take().seen == {"example.com": Evidence(unknown=1)}


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 30),
    st.dictionaries(st.integers(0, 119), st.integers(1, 3), max_size=5),
)
def test_withholding_is_always_preceded_by_lifetime_days_of_signing_and_quiet(
    observe: int, mark: int, quarantine: int, signs_after: int, losses: dict[int, int]
) -> None:
    """Whatever the plan and whatever is lost."""
    found = phases(Plan(observe, mark, quarantine), 120, losses, signs_after=signs_after)
    for number, phase in enumerate(found):
        if phase.withholds:
            assert number >= signs_after + LIFETIME + 1
        if number in losses:
            assert phase in {Phase.OBSERVE, PHASES[max(PHASES.index(found[number - 1]) - 1, 0)]} if number else True
