"""Rule 9: rotation at any moment leaves every live tag valid. Keys come and go in any order while days pass.

Two nodes share the ring, whose clocks may differ by a day either way. Each signs, verifies and prunes; all other
changes are made on the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batv.address import Mailbox
from batv.day import Day
from batv.errors import KeyRingRuleError, NoSigningKeyError
from batv.keyring import KEY_NUMBERS, Key, KeyRing, Role, Secret
from batv.signing import sign_with, verify
from batv.store.rings import parse_ring, ring_octets
from batv.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

USER: Final = Mailbox.parse(b"joe@example.com")
CLOCKS: Final = [(0, 0), (0, 1), (0, -1)]
HORIZON: Final = range(-3, 60)
numbers: Final = st.integers(KEY_NUMBERS[0], KEY_NUMBERS[-1])
picks: Final = st.integers(0, 59)


@dataclass(frozen=True)
class Sent:
    """A tag under way."""

    tagged: Mailbox
    key_number: int
    secret: Secret
    signed_on: Day
    lifetime: int

    def alive(self, clock: Day) -> bool:
        """Whether a node that reads this day off its clock has to take the tag."""
        return -1 <= clock - self.signed_on <= self.lifetime


class Rotation(RuleBasedStateMachine):
    """A ring in the hands of an administrator who does what the commands allow, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.today = Day(20_980)
        self.ring = KeyRing(self.today)
        self.sent: list[Sent] = []
        self.revoked: set[Secret] = set()
        self.made = 0
        self.covered = False
        self.clocks = CLOCKS[0]
        self.tidy = False

    def picked(self, pick: int) -> int:
        """Return the number of one of the keys."""
        return self.ring.keys[pick % len(self.ring.keys)].number

    def live(self) -> list[Sent]:
        """Return the tags that some node may have to take, of revoked keys too."""
        return [sent for sent in self.sent if any(sent.alive(self.today + clock) for clock in self.clocks)]

    def change(self, change: Callable[[KeyRing], KeyRing]) -> bool:
        """Make a change, unless the ring refuses it; return whether it was made."""
        try:
            self.ring = change(self.ring)
        except KeyRingRuleError:
            return False
        return True

    @initialize(begin=st.integers(20_950, 21_010), clocks=st.sampled_from(CLOCKS), tidy=st.booleans())
    def begin(self, begin: int, clocks: tuple[int, int], *, tidy: bool) -> None:
        """Start on a day near a wrap of the stamps; a tidy administrator prunes each night, on the second node."""
        self.clocks = clocks
        self.tidy = tidy
        self.today = Day(begin)
        self.ring = KeyRing(self.today)

    @rule(days=st.one_of(st.integers(1, 3), st.integers(1, 45)))
    def days_pass(self, days: int) -> None:
        """Time goes on; each day each node signs, as long as it has a key."""
        for _ in range(days):
            self.today += 1
            if self.tidy:
                self.prune_all(1)
                self.every_live_tag_is_valid()
            self.every_node_signs()

    @rule()
    def every_node_signs(self) -> None:
        """Mail goes out, on each node by its own clock."""
        self.sent = self.live()
        for clock in self.clocks:
            day = self.today + clock
            try:
                key = self.ring.signing_key(day)
            except NoSigningKeyError:
                assert clock or not self.covered, "a day that had a key was left without one"
                continue
            self.sent.append(Sent(sign_with(USER, key, day), key.number, key.secret, day, key.lifetime))

    @rule(lifetime=st.sampled_from([1, 2, 7, 7, 30]), number=st.one_of(st.none(), numbers))
    def make_key(self, lifetime: int, number: int | None) -> None:
        """A key comes into the ring: `key new`, or `key import` under a number that was asked for."""
        covered = self.ring.unsigned_from(self.today) is None
        if number is None:
            try:
                number = self.ring.free_number(self.today)
            except KeyRingRuleError:
                assert len([key for key in self.ring.keys if not key.free(self.today)]) == len(KEY_NUMBERS)
                return
        in_use = any(sent.key_number == number for sent in self.live())
        self.made += 1
        made_number = number
        secret = Secret(b"secret %d of this run" % self.made)
        key = Key(made_number, secret, self.today, lifetime)
        if self.change(lambda ring: ring.with_newcomer(key, self.today)):
            assert not in_use, "a number was used again while a tag of it was alive"
            assert self.ring.signs(self.today)
            if not covered:
                self.covered = self.ring.unsigned_from(self.today) is None

    @precondition(lambda self: self.ring.keys)
    @rule(pick=picks, ahead=st.integers(-1, 20))
    def activate(self, pick: int, ahead: int) -> None:
        """`key activate`, or the second half of `key rotate`."""
        number = self.picked(pick)
        if self.change(lambda ring: ring.activated(number, self.today, self.today + ahead)):
            assert ahead >= 0
            assert self.ring.signing_key(self.today + ahead).number == number
            # The administrator is warned of days without a key before the chosen one; none come after it.
            assert self.ring.unsigned_from(self.today + ahead) is None
            self.covered = self.covered or ahead == 0

    @precondition(lambda self: self.ring.keys)
    @rule(pick=picks)
    def retire(self, pick: int) -> None:
        """`key retire`: only what signs today can leave a gap."""
        number = self.picked(pick)
        signed = self.ring.signs(self.today) and self.ring.signing_key(self.today).number == number
        if self.change(lambda ring: ring.with_retired(number, self.today)) and signed:
            self.covered = False

    @precondition(lambda self: self.ring.keys)
    @rule(pick=picks)
    def revoke(self, pick: int) -> None:
        """`key revoke`: its tags are refused from now on."""
        number = self.picked(pick)
        signed = self.ring.signs(self.today) and self.ring.signing_key(self.today).number == number
        key = self.ring.key(number)
        if self.change(lambda ring: ring.with_revoked(number, self.today)):
            assert key is not None
            self.revoked.add(key.secret)
            self.covered = self.covered and not signed

    @precondition(lambda self: self.ring.keys)
    @rule(node=st.sampled_from([0, 1]), pick=picks)
    def prune(self, node: int, pick: int) -> None:
        """`key prune` on either node: takes spent keys, and refuses each other one."""
        number = self.picked(pick)
        day = self.today + self.clocks[node]
        spent = {key.number for key in self.ring.prunable(day)}
        in_use = {sent.key_number for sent in self.live()}
        if self.change(lambda ring: ring.pruned(number, day)):
            assert number in spent
            assert number not in in_use
        else:
            assert number not in spent

    @precondition(lambda self: self.ring.keys)
    @rule(node=st.sampled_from([0, 1]))
    def prune_all(self, node: int) -> None:
        """`key prune` without a number."""
        day = self.today + self.clocks[node]
        for key in self.ring.prunable(day):
            self.ring = self.ring.pruned(key.number, day)
        assert not self.ring.prunable(day)

    @invariant()
    def every_live_tag_is_valid(self) -> None:
        """On each node, by its own clock; of a revoked key none is."""
        for sent in self.sent:
            for clock in self.clocks:
                day = self.today + clock
                found = verify(sent.tagged, self.ring, day)
                if sent.secret in self.revoked:
                    assert found.verdict is not Verdict.VALID
                elif sent.alive(day):
                    assert found.verdict is Verdict.VALID, f"{sent} on {day}: {found.reason}"
                    assert found.key is not None
                    assert found.key.secret == sent.secret
                else:
                    assert found.verdict is not Verdict.VALID

    @invariant()
    def never_do_two_keys_sign(self) -> None:
        """Neither today nor on a day that is planned."""
        for ahead in HORIZON:
            day = self.today + ahead
            assert sum(key.role(day) is Role.SIGNING for key in self.ring.keys) <= 1

    @invariant()
    def the_ring_comes_back_from_its_file(self) -> None:
        """Whatever happened to it, it can be written and read."""
        assert parse_ring(ring_octets(self.ring), Path("default.ring")) == self.ring

    @invariant()
    def a_covered_ring_stays_covered(self) -> None:
        """Where a key signs on all days to come, only retiring or revoking the one that signs can change that."""
        if self.covered:
            assert self.ring.unsigned_from(self.today) is None


TestRotation = Rotation.TestCase
TestRotation.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("clocks", CLOCKS, ids=["alike", "second early", "second late"])
@pytest.mark.parametrize("lifetime", [1, 7, 30, 365])
def test_a_key_that_stops_at_once_is_kept_until_its_last_tag_is_dead(clocks: tuple[int, int], lifetime: int) -> None:
    """A node a day ahead has signed with tomorrow's stamp, and prunes a day before the other has done with the tag."""
    site = Rotation()
    site.begin(20_990, clocks, tidy=True)
    site.make_key(lifetime, None)
    site.days_pass(1)
    assert {site.today + clock for clock in clocks} <= {sent.signed_on for sent in site.sent}
    site.retire(0)
    for _ in range(lifetime + 4):
        site.days_pass(1)
        site.every_live_tag_is_valid()
    assert not site.ring.keys
