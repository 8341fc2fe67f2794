"""Rule 4: signed on day d, valid from d - 1 through d + lifetime, on no other day of the cycle, across every wrap.

With a step, an address keeps one tag for so many days: valid from the day before the first of them through lifetime
days after the last, and on no other day either.
"""

from __future__ import annotations

from itertools import pairwise

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


def key(lifetime: int, step: int = 1) -> Key:
    """Return a key that signs on every day of these tests."""
    return Key(0, Secret(b"secret"), BEGIN, lifetime, BEGIN, step=step)


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


STEPS = [(7, 2), (7, 7), (7, 30), (1, 90), (30, 3), (365, 90)]


@pytest.mark.parametrize(("lifetime", "step"), STEPS)
def test_an_address_keeps_one_tag_for_as_many_days_as_the_step_says(lifetime: int, step: int) -> None:
    """Greylisting asks a sender only once whom it has seen before; no state is kept for that."""
    tags = [sign_with(USER, key(lifetime, step), Day(number)).octets for number in range(21_000, 21_000 + CYCLE)]
    changes = [number for number in range(1, CYCLE) if tags[number] != tags[number - 1]]
    assert all(after - before == step for before, after in pairwise(changes))
    # Of all the days of a cycle that have the same tag, none lies elsewhere.
    assert len(set(tags)) == len(changes) + 1


@pytest.mark.parametrize(("lifetime", "step"), STEPS)
@pytest.mark.parametrize("start", [20_900, 20_989, 20_999, 21_000, 21_001, 21_500, 21_634])
def test_a_tag_with_a_step_is_valid_from_its_first_day_on_and_for_its_lifetime(
    start: int, lifetime: int, step: int
) -> None:
    """Whichever of its days it was made on, across the wrap, and on no other day of the cycle."""
    signer = key(lifetime, step)
    ring = KeyRing(BEGIN, (signer,))
    tagged = sign_with(USER, signer, Day(start))
    first = next(n for n in range(start, start - 200, -1) if sign_with(USER, signer, Day(n - 1)) != tagged)
    good = [n for n in range(start - 500, start + 500) if verify(tagged, ring, Day(n)).verdict is Verdict.VALID]
    assert good == list(range(first - 1, first + step - 1 + lifetime + 1))
    assert first <= start < first + step
    assert set(range(start - 1, start + lifetime + 1)) <= set(good)


@settings(max_examples=150, deadline=None)
@given(
    start=st.integers(20_500, 40_000),
    lifetime=st.integers(1, 365),
    step=st.integers(1, 90),
    ahead=st.integers(-400, 599),
)
def test_a_step_shortens_no_lifetime_and_lengthens_it_by_less_than_itself(
    start: int, lifetime: int, step: int, ahead: int
) -> None:
    """Whoever counts on the lifetime gets it; a harvested tag is good for hardly longer."""
    signer = key(lifetime, step)
    ring = KeyRing(BEGIN, (signer,))
    valid = verify(sign_with(USER, signer, Day(start)), ring, Day(start + ahead)).verdict is Verdict.VALID
    if -1 <= ahead <= lifetime:
        assert valid
    if ahead < -step or ahead >= lifetime + step:
        assert not valid


@pytest.mark.parametrize(("lifetime", "step"), STEPS)
def test_a_key_waits_for_the_last_tag_that_a_step_has_lengthened(lifetime: int, step: int) -> None:
    """A key that goes too soon takes live tags with it."""
    for number in range(21_000, 21_000 + step):
        retired = Day(number + 1)
        signer = Key(0, Secret(b"secret"), BEGIN, lifetime, BEGIN, retired, step=step)
        tagged = sign_with(USER, signer, Day(number))
        last = max(
            n
            for n in range(number, number + 500)
            if verify(tagged, KeyRing(BEGIN, (key(lifetime, step),)), Day(n)).verdict is Verdict.VALID
        )
        assert verify(tagged, KeyRing(BEGIN, (signer,)), Day(last)).verdict is Verdict.VALID
        assert not signer.free(Day(last))
