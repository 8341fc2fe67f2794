"""A clock that cannot be right is not believed, and one that can be is."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from batv.clock import ClockJudge, Reading, Trust, newest_day
from batv.day import Day
from batv.keyring import Key, KeyRing, KeyRings, Secret

_DAY: Final = 86_400.0
_KEY_DAY: Final = Day.from_iso("2026-11-23")
_START: Final = _KEY_DAY.number * _DAY + 100


def _judge(*, begun: float = _START) -> ClockJudge:
    """Return a judge that has read the clock once, with the counter at 0."""
    judge = ClockJudge()
    judge.doubt(Reading(begun, 0.0), _KEY_DAY)
    return judge


@pytest.mark.parametrize("days", [-400, -1.01, 1.01, 400])
def test_a_clock_that_jumps_by_more_than_a_day_is_not_believed(days: float) -> None:
    """And is again as soon as it is back where the seconds since then have brought it."""
    begun = _START + 500 * _DAY
    judge = _judge(begun=begun)
    wrong = judge.doubt(Reading(begun + days * _DAY + 10, 10.0), _KEY_DAY)
    assert f"has jumped {abs(days):.1f} days {'forward' if days > 0 else 'back'}" in wrong
    assert judge.doubt(Reading(begun + days * _DAY + 3 * _DAY, 3 * _DAY), _KEY_DAY)
    assert judge.doubt(Reading(begun + 3 * _DAY + 30, 3 * _DAY), _KEY_DAY) == ""


@pytest.mark.parametrize("hours", [-23, -1, 1, 23])
def test_a_step_of_hours_is_believed(hours: int) -> None:
    """Time servers do that, and several times in a row; tags are good for a day more on both sides."""
    judge = _judge(begun=_START + 10 * _DAY)
    for step in range(1, 4):
        assert judge.doubt(Reading(_START + 10 * _DAY + step * hours * 3600, 10.0 * step), _KEY_DAY) == ""


def test_a_clock_that_runs_along_is_believed_for_ever() -> None:
    """Whatever the day: across a thousand of them, and with the counter of a machine that has slept meanwhile."""
    judge = _judge()
    for day in range(1, 1100):
        assert judge.doubt(Reading(_START + day * _DAY + day % 7, day * _DAY), _KEY_DAY) == ""


def test_1970_is_not_believed_and_needs_nobody_when_it_ends() -> None:
    """A host without a battery starts there, and a time server ends it with a jump of decades."""
    judge = ClockJudge()
    assert "1970-01-01, and there is a key of 2026-11-23" in judge.doubt(Reading(30.0, 30.0), _KEY_DAY)
    assert judge.doubt(Reading(_START, 31.0), _KEY_DAY) == ""
    assert judge.doubt(Reading(40.0, 40.0), _KEY_DAY)


def test_a_key_of_tomorrow_is_no_reason_for_doubt() -> None:
    """It was made on a host whose clock is early, where it is past midnight in UTC already."""
    day_before = (_KEY_DAY.number - 1) * _DAY
    assert ClockJudge().doubt(Reading(day_before, 0.0), _KEY_DAY) == ""
    assert ClockJudge().doubt(Reading(day_before - 1, 0.0), _KEY_DAY)


def test_without_a_key_only_jumps_are_told() -> None:
    """There is nothing then that must be past."""
    judge = ClockJudge()
    assert judge.doubt(Reading(0.0, 0.0), None) == ""
    assert judge.doubt(Reading(2 * _DAY, 0.0), None)


def test_whoever_knows_better_is_believed_until_the_next_jump() -> None:
    """The machine has slept in a way that no counter saw: the clock is right, and the counter is not."""
    judge = _judge()
    now = Reading(_START + 30 * _DAY, 60.0)
    assert judge.doubt(now, _KEY_DAY)
    judge.trust(Trust(Day.at(now.posix), _KEY_DAY), now)
    assert judge.doubt(replace(now, steady=61.0), _KEY_DAY) == ""
    assert judge.doubt(Reading(_START, 62.0), _KEY_DAY)


def test_a_key_that_was_made_by_a_wrong_clock_can_be_passed_over() -> None:
    """The word holds for the keys that there were: the next key from the future is told of again."""
    judge = ClockJudge()
    now = Reading(_START - 300 * _DAY, 0.0)
    assert judge.doubt(now, _KEY_DAY)
    judge.trust(Trust(Day.at(now.posix), _KEY_DAY))
    assert judge.doubt(now, _KEY_DAY) == ""
    assert judge.doubt(replace(now, posix=now.posix - 2 * _DAY), _KEY_DAY)
    assert judge.doubt(now, _KEY_DAY + 1)


def test_the_newest_day_of_the_rings_is_one_that_is_past() -> None:
    """A rotation that is planned says nothing about the clock; a key that was made or revoked does."""
    begun = Day.from_iso("2026-01-01")
    key = Key(0, Secret(b"x" * 32), begun, signs_from=begun, retired=begun + 700)
    assert newest_day(KeyRings(None)) is None
    assert newest_day(KeyRings(KeyRing(begun, (key,)))) == begun
    later = replace(key, number=1, created=begun + 5, signs_from=begun + 700, retired=None)
    assert newest_day(KeyRings(KeyRing(begun, (key, later)))) == begun + 5
    revoked = KeyRing(begun, (replace(key, revoked=begun + 9),))
    assert newest_day(KeyRings(None, {b"example.com": revoked})) == begun + 9
