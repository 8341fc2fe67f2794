"""Rule 4: signed on day d, valid from d - 1 through d + lifetime, on no other day of the cycle, across every wrap."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batv.address import Mailbox
from batv.day import CYCLE, Day
from batv.keyring import Key, KeyRing, Secret
from batv.signing import sign_with, verify
from batv.verdict import Verdict

USER = Mailbox.parse(b"user@example.com")
LIFETIMES = [1, 7, 30, 365]
BEGIN = Day(20_000)


def key(lifetime: int) -> Key:
    """Return a key that signs on every day of these tests."""
    return Key(0, Secret(b"secret"), BEGIN, lifetime, BEGIN)


def valid_on(signed_on: Day, lifetime: int, days: range) -> list[int]:
    """Return on which days, counted from that of signing, the tag is valid."""
    ring = KeyRing(BEGIN, (key(lifetime),))
    tagged = sign_with(USER, key(lifetime), signed_on)
    return [n for n in days if verify(tagged, ring, signed_on + n).verdict is Verdict.VALID]


@pytest.mark.parametrize("lifetime", LIFETIMES)
def test_a_tag_of_each_day_of_the_cycle_begins_and_ends_on_its_days(lifetime: int) -> None:
    """Whatever the stamps of the day of signing, of today and of expiry."""
    edges = [-2, -1, 0, lifetime, lifetime + 1]
    ring = KeyRing(BEGIN, (key(lifetime),))
    for number in range(21_000, 21_000 + CYCLE):
        tagged = sign_with(USER, key(lifetime), Day(number))
        good = [n for n in edges if verify(tagged, ring, Day(number + n)).verdict is Verdict.VALID]
        assert good == [-1, 0, lifetime]


@pytest.mark.parametrize("lifetime", LIFETIMES)
@pytest.mark.parametrize(
    "start", [*range(20_990, 21_011, 4), 20_992, 20_993, 20_999, 21_000, 21_001, 21_365, 21_634, 21_635]
)
def test_a_tag_is_valid_on_lifetime_and_two_days_of_the_cycle(start: int, lifetime: int) -> None:
    """A comparison of stamps as numbers takes expired tags for good ones on up to all 1000 days."""
    good = valid_on(Day(start), lifetime, range(-500, 500))
    assert good == list(range(-1, lifetime + 1))
    assert len(good) == lifetime + 2


@settings(max_examples=150, deadline=None)
@given(start=st.integers(20_500, 40_000), lifetime=st.integers(1, 365), ahead=st.integers(-400, 599))
def test_a_tag_of_any_lifetime_is_valid_on_its_days_only(start: int, lifetime: int, ahead: int) -> None:
    """Any day of signing, any lifetime, any day within a cycle."""
    assert bool(valid_on(Day(start), lifetime, range(ahead, ahead + 1))) is (-1 <= ahead <= lifetime)
