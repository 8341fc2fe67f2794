"""Keys and rings: what a key may do on a day, and the rules that every change keeps."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from batv.day import Day
from batv.errors import KeyRingDataError, KeyRingRuleError, NoSigningKeyError
from batv.keyring import (
    DEFAULT_LIFETIME_DAYS,
    KEY_NUMBERS,
    MAX_LIFETIME_DAYS,
    WEAK_SECRET_OCTETS,
    Key,
    KeyRing,
    KeyRings,
    Role,
    Secret,
)

if TYPE_CHECKING:
    from collections.abc import Callable

D = Day.from_iso("2026-11-23")


def key(  # noqa: PLR0913 -- one for each field of a key
    number: int = 0,
    signs_from: int | None = None,
    retired: int | None = None,
    revoked: int | None = None,
    *,
    lifetime: int = 7,
    created: int = 0,
) -> Key:
    """Return a key; days are counted from D."""
    days = [None if each is None else D + each for each in (signs_from, retired, revoked)]
    return Key(number, Secret(b"secret %d" % number), D + created, lifetime, *days)


def ring(*keys: Key) -> KeyRing:
    """Return a ring begun on D."""
    return KeyRing(D, keys)


def plans(ring_: KeyRing) -> dict[int, tuple[int | None, ...]]:
    """Return signs_from, retired and revoked of each key, in days from D."""
    return {
        each.number: tuple(None if day is None else day - D for day in (each.signs_from, each.retired, each.revoked))
        for each in ring_.keys
    }


def signers(ring_: KeyRing, days: range) -> list[int | None]:
    """Return the number of the key that signs on each day, counted from D."""
    return [ring_.signing_key(D + n).number if ring_.signs(D + n) else None for n in days]


def test_a_secret_is_never_shown() -> None:
    """Tracebacks and logs are read by many."""
    secret = Secret(b"hush hush")
    for text in (repr(secret), str(secret), f"{secret}", repr(replace(key(), secret=secret)), repr(ring(key()))):
        assert "hush" not in text
        assert "secret 0" not in text
    assert repr(secret) == "Secret(****)"


def test_secrets_are_equal_when_their_octets_are() -> None:
    """Rings are compared, and keyed states are looked up by secret."""
    assert Secret(b"a") == Secret(b"a")
    assert hash(Secret(b"a")) == hash(Secret(b"a"))
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"


@pytest.mark.parametrize("number", [-1, 10, 11, 100])
def test_a_key_number_is_one_digit(number: int) -> None:
    """Two digits would shift the rest of the tag."""
    with pytest.raises(KeyRingDataError, match="is not 0 to 9"):
        key(number)


def test_a_key_has_a_secret() -> None:
    """An empty secret would let everyone sign."""
    with pytest.raises(KeyRingDataError, match="key 3 has an empty secret"):
        Key(3, Secret(b""), D)


@pytest.mark.parametrize("lifetime", [-1, 0, MAX_LIFETIME_DAYS + 1, 1000])
def test_a_lifetime_is_within_its_bounds(lifetime: int) -> None:
    """Beyond the cycle of 1000 days an old tag could not be told from a new one."""
    with pytest.raises(KeyRingDataError, match=f"key 0 has a lifetime of {lifetime} days: give 1 to 365 days"):
        key(lifetime=lifetime)
    assert key(lifetime=1).lifetime == 1
    assert key(lifetime=365).lifetime == MAX_LIFETIME_DAYS == 365
    assert Key(0, Secret(b"x"), D).lifetime == DEFAULT_LIFETIME_DAYS == 7
    assert list(KEY_NUMBERS) == list(range(10))


def test_a_secret_that_can_be_guessed_is_weak() -> None:
    """From one harvested tag a short secret is found offline."""
    assert replace(key(), secret=Secret(b"x" * (WEAK_SECRET_OCTETS - 1))).weak
    assert not replace(key(), secret=Secret(b"x" * WEAK_SECRET_OCTETS)).weak
    assert WEAK_SECRET_OCTETS == 16


def test_a_keys_role_follows_from_the_day() -> None:
    """Nothing has to run at midnight for a key to begin or to stop."""
    planned = key(0, 2, 5)
    roles = [str(planned.role(D + n)) for n in range(17)]
    assert roles == ["pending"] * 2 + ["signing"] * 3 + ["retiring"] * 10 + ["retired"] * 2
    assert [planned.verifies(D + n) for n in range(17)] == [True] * 15 + [False] * 2
    assert key().role(D + 9999) is Role.PENDING
    assert key(0, 0).role(D + 9999) is Role.SIGNING


def test_whether_a_key_signs_or_verifies_is_what_its_role_says() -> None:
    """Whatever is settled of a key, on each day it does what its role of that day may do."""
    settled = (None, 0, 3, 6)
    for begin, end, revoked in product(settled, settled, settled):
        one = key(3, begin, end, revoked, lifetime=2)
        for day in (D + ahead for ahead in range(-2, 14)):
            role = one.role(day)
            assert one.signs(day) is (role is Role.SIGNING)
            assert one.verifies(day) is (role in {Role.PENDING, Role.SIGNING, Role.RETIRING})


def test_a_key_that_never_signed_is_retired_like_any_other() -> None:
    """Another node may have signed with it."""
    assert [key(0, None, 1).role(D + n) for n in (0, 1, 10, 11)] == [
        Role.PENDING,
        Role.RETIRING,
        Role.RETIRING,
        Role.RETIRED,
    ]


def test_a_revoked_key_does_nothing_on_any_day() -> None:
    """Whatever was planned for it, and also before the day that is written down."""
    for revoked in (key(0, 0, None, 3), key(0, 0, 2, 3), key(0, None, None, 3)):
        for n in (-5, 0, 3, 4, 50):
            assert revoked.role(D + n) is Role.REVOKED
            assert not revoked.verifies(D + n)


@pytest.mark.parametrize(
    ("one", "last"),
    [
        (key(0, 0), None),
        (key(0), None),
        (key(0, 0, 5), 14),
        (key(0, 0, 5, lifetime=30), 37),
        (key(0, 0, None, 5), 14),
        (key(0, 0, 3, 5), 12),
        (key(0, 0, 5, 3), 12),
        (key(0, None, 5), 14),
    ],
)
def test_a_key_is_free_after_the_last_day_of_its_last_tag(one: Key, last: int | None) -> None:
    """Signed with the stamp of the day after it stopped, pruned by a node a day ahead of the one that reads the tag."""
    assert one.last_alive == (None if last is None else D + last)
    if last is None:
        assert not one.free(D + 9999)
    else:
        assert not one.free(D + last)
        assert one.free(D + last + 1)


def test_keys_stand_in_the_order_of_their_numbers() -> None:
    """Two rings with the same keys are equal."""
    assert ring(key(3), key(1), key(2)) == ring(key(1), key(2), key(3))
    assert [each.number for each in ring(key(3), key(1)).keys] == [1, 3]
    assert ring(key(3), key(1)).key(3) == key(3)
    assert ring(key(3), key(1)).key(2) is None


def test_a_number_stands_in_a_ring_once() -> None:
    """A tag names its key by number."""
    with pytest.raises(KeyRingDataError, match="a key number stands in the ring twice"):
        ring(key(1), key(1, 5))


@pytest.mark.parametrize(
    ("keys", "begin"),
    [
        ((key(0, 0), key(1, 5)), 5),
        ((key(0, 0), key(1, 0)), 0),
        ((key(0, 0, 6), key(1, 5)), 5),
        ((key(0, 3), key(1, 0)), 3),
        ((key(0, 0, 5), key(1, 5), key(2, 6, 7)), 6),
        ((key(0, 0, 90), key(1, 90), key(2, 10, 20)), 10),
    ],
)
def test_two_keys_never_sign_on_one_day(keys: tuple[Key, ...], begin: int) -> None:
    """A ring that is read from a damaged or hand-made file is refused."""
    with pytest.raises(KeyRingDataError, match=f"two keys would sign on {D + begin}"):
        ring(*keys)


@pytest.mark.parametrize(
    "keys",
    [
        (key(0, 0, 5), key(1, 5)),
        (key(0, 0, 5), key(1, 9)),
        (key(0, 5), key(1, 0, 5)),
        (key(0, 0), key(1)),
        (key(0, 0), key(1, 0, None, 3)),
        (key(0, 0), key(1, 3, 3)),
    ],
)
def test_keys_may_follow_each_other(keys: tuple[Key, ...]) -> None:
    """A day on which one stops and the next begins belongs to the next; revoked keys sign on no day."""
    assert len(ring(*keys).keys) == 2


def test_the_signing_key_is_the_one_of_the_day() -> None:
    """Where none signs, the caller has to know, and is told what to do."""
    one = ring(key(0, 1, 3), key(1, 3, 5), key(2))
    assert signers(one, range(7)) == [None, 0, 0, 1, 1, None, None]
    with pytest.raises(
        NoSigningKeyError, match="no key of the default ring signs on 2026-11-23: make one with 'batv key new'"
    ):
        one.signing_key(D)


def test_before_the_first_key_another_day_is_advised_not_another_key() -> None:
    """Nobody makes a key that signs in the past."""
    before = D + -5
    for keys, advice in (
        ((key(0, 0, 5), key(1, 5)), f"one that is made now would not either, name {D}, or a later day"),
        ((key(0),), "one that is made now would not either, see 'batv key list'"),
    ):
        with pytest.raises(NoSigningKeyError) as caught:
            ring(*keys).signing_key(before)
        assert (caught.value.what, caught.value.remedy) == (f"no key of the default ring signs on {before}", advice)


@pytest.mark.parametrize(
    ("keys", "gap"),
    [
        ((), 0),
        ((key(0),), 0),
        ((key(0, 1),), 0),
        ((key(0, 0),), None),
        ((key(0, 0, 5),), 5),
        ((key(0, 0, 5), key(1, 5)), None),
        ((key(0, 0, 5), key(1, 6)), 5),
        ((key(0, 0, 5), key(1, 5, 8)), 8),
        ((key(0, -9, -3), key(1, -3)), None),
        ((key(0, 0, 5), key(1, 5, None, 0)), 5),
    ],
)
def test_the_first_day_without_a_signing_key_is_known_ahead(keys: tuple[Key, ...], gap: int | None) -> None:
    """From that day on mail would be deferred."""
    assert ring(*keys).unsigned_from(D) == (None if gap is None else D + gap)


def test_only_a_key_whose_tags_may_be_accepted_verifies() -> None:
    """Pending keys verify, so that no node signs with a key before every node can verify it."""
    one = ring(key(0, 0, 5), key(1), key(2, 0, None, 0), key(3, -90, -50))
    assert [one.verifying_key(number, D) for number in range(5)] == [key(0, 0, 5), key(1), None, None, None]
    assert one.verifying_key(0, D + 14) is not None
    assert one.verifying_key(0, D + 15) is None


@pytest.mark.parametrize(
    ("keys", "number"),
    [
        ((), 0),
        ((key(0, 0),), 1),
        ((key(3, 0),), 4),
        ((key(9, 0),), 0),
        ((key(9, 0), key(0)), 1),
        ((key(0, 0, created=5), key(7, -9, -1, created=-9)), 1),
        ((key(0, 0, 5, created=-9), key(4, 5, created=-9)), 5),
        ((key(0, -30, -20, created=-30), key(1, -20, created=-20)), 2),
        (tuple(key(n, None if n else 0) for n in range(9)), 9),
        ((key(9, 0, created=1), *(key(n) for n in range(1, 9)), key(0, -30, -20, created=-30)), 0),
    ],
)
def test_the_next_number_is_the_next_free_one(keys: tuple[Key, ...], number: int) -> None:
    """Going round the ten numbers leaves each as long unused as can be."""
    assert ring(*keys).free_number(D) == number


def test_ten_live_keys_leave_no_number() -> None:
    """The administrator is told until when to wait, or what to do."""
    with pytest.raises(
        KeyRingRuleError,
        match=r"all ten key numbers are in use.*: retire a pending key that is not needed"
        r" \(of 1, 2, 3, 4, 5, 6, 7, 8, 9\) with 'batv key retire N': its number is free 10 days later",
    ):
        ring(key(0, 0), *(key(n) for n in range(1, 10))).free_number(D)
    waiting = ring(key(0, -9, 2), key(1, None, None, 2), *(key(n, None, 4) for n in range(2, 9)), key(9))
    with pytest.raises(
        KeyRingRuleError,
        match=rf"in use.*: wait until {D + 12}, or retire a pending key.*\(of 2, 3, 4, 5, 6, 7, 8, 9\)",
    ):
        waiting.free_number(D + -3)
    own = KeyRing(D, (key(0, 0), *(key(n) for n in range(1, 10))), b"own.example")
    with pytest.raises(KeyRingRuleError, match=r"the ring of own\.example .*batv key retire N --domain own\.example'"):
        own.free_number(D)


def test_a_number_is_used_again_only_when_its_last_tag_is_dead() -> None:
    """Two keys under one number would refuse each other's tags."""
    old = ring(key(0, 0, 5))
    with pytest.raises(KeyRingRuleError, match=f"key number 0 is in use: tags made with it are alive until {D + 14}"):
        old.with_key(key(0, 20), D + 14)
    new = replace(key(0, 20), secret=Secret(b"new"))
    assert old.with_key(new, D + 15).keys == (new,)
    with pytest.raises(KeyRingRuleError, match="key number 0 is in use: tags made with it are alive for as long as it"):
        ring(key(0, 0)).with_key(key(0), D + 9999)
    with pytest.raises(KeyRingRuleError, match="use another number"):
        ring(key(0, 0, None, 0)).with_key(key(0), D + 9)


def test_a_newcomer_signs_only_where_no_key_does() -> None:
    """The first key of a site signs at once; every other one waits until all nodes have it."""
    assert plans(ring().with_newcomer(key(0), D)) == {0: (0, None, None)}
    assert plans(ring(key(0, 0)).with_newcomer(key(1), D)) == {0: (0, None, None), 1: (None, None, None)}
    filled = ring(key(0, 5), key(1, 9, None, 0)).with_newcomer(key(2), D)
    assert signers(filled, range(8)) == [2, 2, 2, 2, 2, 0, 0, 0]


@pytest.mark.parametrize(
    ("keys", "number", "on", "plan"),
    [
        ((key(0, -9), key(1)), 1, 0, {0: (-9, 0), 1: (0, None)}),
        ((key(0, -9), key(1)), 1, 5, {0: (-9, 5), 1: (5, None)}),
        ((key(0),), 0, 3, {0: (3, None)}),
        # A later plan gives way, an earlier one stays.
        ((key(0, -9, 5), key(1, 5), key(2)), 2, 3, {0: (-9, 3), 1: (None, None), 2: (3, None)}),
        ((key(0, -9, 5), key(1, 5), key(2)), 2, 5, {0: (-9, 5), 1: (None, None), 2: (5, None)}),
        ((key(0, -9, 5), key(1, 5), key(2)), 2, 8, {0: (-9, 5), 1: (5, 8), 2: (8, None)}),
        # A plan is moved: the key before it signs until the new day.
        ((key(0, -9, 5), key(1, 5)), 1, 2, {0: (-9, 2), 1: (2, None)}),
        ((key(0, -9, 5), key(1, 5)), 1, 9, {0: (-9, 9), 1: (9, None)}),
        ((key(0, -9, 5), key(1, 5, 8), key(2, 8)), 1, 9, {0: (-9, 8), 1: (9, None), 2: (8, 9)}),
        ((key(0, -9, 5), key(1, 5, 8), key(2, 8)), 1, 6, {0: (-9, 6), 1: (6, None), 2: (None, None)}),
        # Keys that sign no more are left as they are.
        ((key(0, -9, -5), key(1, -5), key(2)), 2, 1, {0: (-9, -5), 1: (-5, 1), 2: (1, None)}),
    ],
)
def test_activating_hands_over_without_a_gap(
    keys: tuple[Key, ...], number: int, on: int, plan: dict[int, tuple[int | None, int | None]]
) -> None:
    """On each day one key signs, whatever was planned before."""
    before = ring(*keys)
    after = before.activated(number, D, D + on)
    assert {each: days[:2] for each, days in plans(after).items()} == plan
    assert after.signing_key(D + on).number == number
    if before.signs(D):
        assert after.unsigned_from(D) is None


def test_a_revoked_keys_plan_does_not_hinder() -> None:
    """It signs on no day, so that nothing has to be taken from it."""
    after = ring(key(0, -9, None, -1), key(1)).activated(1, D, D)
    assert plans(after) == {0: (-9, None, -1), 1: (0, None, None)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.activated(5, D, D), "there is no key 5 in the default ring: see 'batv key list'"),
        (lambda one: one.activated(1, D, D + -1), "2026-11-22 is past: activate a key from today on"),
        (lambda one: one.activated(0, D, D), "key 0 signs already since 2026-11-21"),
        (lambda one: one.activated(2, D, D), "key 2 is retiring and cannot sign again: make a new key"),
        (lambda one: one.activated(3, D, D), "key 3 is revoked and cannot sign again"),
        (lambda one: one.activated(4, D, D), "key 4 is retired and cannot sign again"),
        (lambda one: one.with_retired(2, D), "key 2 is retiring already"),
        (lambda one: one.with_retired(3, D), "key 3 is revoked already"),
        (lambda one: one.with_retired(4, D), "key 4 is retired already"),
        (lambda one: one.with_retired(5, D), "there is no key 5"),
        (lambda one: one.with_revoked(3, D), "key 3 is revoked already, since 2026-11-23"),
        (lambda one: one.with_revoked(5, D), "there is no key 5"),
        (lambda one: one.pruned(0, D), "key 0 is needed: tags made with it may be alive: retire it first"),
        (lambda one: one.pruned(1, D), "key 1 is needed: tags made with it may be alive: retire it first"),
        (lambda one: one.pruned(2, D), "may be alive until 2026-11-30: prune it on 2026-12-01 or later"),
        (lambda one: one.pruned(3, D), "may be alive until 2026-12-02: prune it on 2026-12-03 or later"),
        (lambda one: one.pruned(5, D), "there is no key 5"),
    ],
)
def test_a_change_that_would_harm_the_ring_is_refused(change: Callable[[KeyRing], Any], message: str) -> None:
    """Each refusal says why, and what to do instead."""
    one = ring(key(0, -2), key(1), key(2, -20, -2), key(3, -30, None, 0), key(4, -90, -60))
    with pytest.raises(KeyRingRuleError) as caught:
        change(one)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "number", "plan"),
    [
        ((key(0, -9),), 0, {0: (-9, 0)}),
        ((key(0),), 0, {0: (None, 0)}),
        ((key(0, 0),), 0, {0: (0, 0)}),
        ((key(0, -9, 5), key(1, 5)), 0, {0: (-9, 0), 1: (5, None)}),
        ((key(0, -9, 5), key(1, 5)), 1, {0: (-9, None), 1: (None, 0)}),
        ((key(0, -9, 5), key(1, 5, 8), key(2, 8)), 1, {0: (-9, 8), 1: (None, 0), 2: (8, None)}),
    ],
)
def test_retiring_a_key_that_waits_gives_its_days_back(
    keys: tuple[Key, ...], number: int, plan: dict[int, tuple[int | None, int | None]]
) -> None:
    """The key that was to stop then goes on, so that no day is left without one."""
    after = ring(*keys).with_retired(number, D)
    assert {each: days[:2] for each, days in plans(after).items()} == plan


def test_revoking_a_key_that_waits_gives_its_days_back() -> None:
    """As with retiring; a key that signs leaves a gap that the administrator is warned of."""
    both = ring(key(0, -9, 5), key(1, 5))
    assert plans(both.with_revoked(1, D)) == {0: (-9, None, None), 1: (5, None, 0)}
    assert both.with_revoked(1, D).unsigned_from(D) is None
    assert both.with_revoked(0, D).unsigned_from(D) == D


def test_only_spent_keys_are_pruned() -> None:
    """A key leaves the ring when no tag of it is alive, revoked or not."""
    one = ring(key(0, 0), key(1), key(2, -20, -10), key(3, -10, -9), key(4, -20, None, -10), key(5, -20, None, -9))
    assert [each.number for each in one.prunable(D)] == [2, 4]
    assert [each.number for each in one.pruned(2, D).pruned(4, D).keys] == [0, 1, 3, 5]


def test_a_domain_signs_with_its_own_ring_where_it_has_one() -> None:
    """Domains are compared without regard to case."""
    default, own = ring(key(0, 0)), ring(key(1, 0))
    rings = KeyRings(default, {b"own.example": own})
    assert rings.ring_for(b"OWN.example") is own
    assert rings.ring_for(b"other.example") is default
    with pytest.raises(
        NoSigningKeyError, match=r"there is no key ring for j\ufffd\.example: make one with 'batv key new'"
    ):
        KeyRings(None, {b"own.example": own}).ring_for(b"j\xff.example")


def test_a_domain_with_a_new_ring_still_takes_the_default_rings_tags() -> None:
    """They are under way on the day the own ring was begun, and a node may learn of it a day late."""
    default = KeyRing(D + -50, (key(0, 0), key(1, None, lifetime=30)))
    own = ring(key(1, 0))
    rings = KeyRings(default, {b"own.example": own})
    assert rings.rings_for(b"Own.Example", D) == (own, default)
    assert rings.rings_for(b"own.example", D + 31) == (own, default)
    assert rings.rings_for(b"own.example", D + 32) == (own,)
    assert rings.rings_for(b"other.example", D) == (default,)
    assert KeyRings(None, {b"own.example": own}).rings_for(b"own.example", D) == (own,)
    assert KeyRings(KeyRing(D), {b"own.example": own}).rings_for(b"own.example", D) == (own,)
    assert KeyRings(None).rings_for(b"own.example", D) == ()
