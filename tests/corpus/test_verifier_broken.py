"""A corpus that a broken verifier would pass is worth nothing: five ways to break it, each red in the score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from batv import mac
from batv.address import Mailbox
from batv.day import stamp_distance
from batv.mac import Case
from batv.stage import Client, VerifyingStage
from batv.tag import Tagged, looks_tagged, take_off
from batv.verdict import FORGED, STATUS_BY_VERDICT, Decision, Disposition, Verdict

if TYPE_CHECKING:
    from batv.address import ForwardPath, ReversePath
    from batv.budget import Account
    from batv.config import Settings
    from batv.day import Day
    from batv.keyring import Key, KeyRing, KeyRings
    from batv.observe.event import Direction
    from batv.policy import Policy
    from batv.rescue import Claims, Found
    from batv.stage import Stage
    from tests.corpus.ground import Ground

Fits = Callable[[Tagged, "Key"], bool]


def keys_named(tagged: Tagged, ring: KeyRing) -> list[Key]:
    """Return the key that the tag names."""
    key = ring.key(tagged.tag.key_number)
    return [key] if key is not None and key.revoked is None else []


def whole_signature(tagged: Tagged, key: Key) -> bool:
    """Compare as it should be."""
    return mac.verify(key, tagged.tag.stamp, tagged.mailbox, tagged.tag.signature) is not None


def alive(tagged: Tagged, key: Key, day: Day) -> bool:
    """Compare the day as it should be."""
    return stamp_distance(tagged.tag.stamp, day) <= key.lifetime + 1 and key.verifies(day)


@dataclass(frozen=True, slots=True)
class Verifier:
    """The checks of a tag, of which one may be broken.

    Attributes:
        keys: the keys that a tag is tried with.
        fits: whether the signature fits.
        alive: whether its day is one of the good ones.
    """

    keys: Callable[[Tagged, KeyRing], list[Key]] = keys_named
    fits: Fits = whole_signature
    alive: Callable[[Tagged, Key, Day], bool] = alive

    def verdict(self, mailbox: Mailbox, rings: tuple[KeyRing, ...], day: Day) -> Verdict:
        """Return what an address is worth."""
        tagged = take_off(mailbox)
        if tagged is None:
            return Verdict.MALFORMED if looks_tagged(mailbox) else Verdict.UNTAGGED
        found = [self._in_ring(tagged, ring, day) for ring in rings]
        return Verdict.VALID if Verdict.VALID in found else found[0]

    def _in_ring(self, tagged: Tagged, ring: KeyRing, day: Day) -> Verdict:
        keys = self.keys(tagged, ring)
        if not keys:
            return Verdict.UNKNOWN_KEY
        fitting = [key for key in keys if self.fits(tagged, key)]
        if not fitting:
            return Verdict.BAD_SIGNATURE
        return Verdict.VALID if any(self.alive(tagged, key, day) for key in fitting) else Verdict.EXPIRED


@dataclass(frozen=True, slots=True)
class OtherStage:
    """The inbound stage with another verifier.

    Attributes:
        policy: what the site wants.
        verifier: who judges.
    """

    policy: Policy
    verifier: Verifier

    @property
    def marks(self) -> bool:
        """As the product has it."""
        return VerifyingStage(self.policy).marks

    def sender(self, path: ReversePath, client: Client, rings: KeyRings, day: Day) -> Decision[ReversePath]:
        """As the product has it."""
        return VerifyingStage(self.policy).sender(path, client, rings, day)

    def takes_for_bounce(self, path: ReversePath) -> bool:
        """As the product has it."""
        return VerifyingStage(self.policy).takes_for_bounce(path)

    def wants_recipient(self, path: ReversePath, client: Client, day: Day) -> bool:
        """As the product has it."""
        return VerifyingStage(self.policy).wants_recipient(path, client, day)

    def sender_for(
        self, path: ReversePath, recipient: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ReversePath]:
        """As the product has it."""
        return VerifyingStage(self.policy).sender_for(path, recipient, client, rings, day)

    def recipient(
        self, reverse_path: ReversePath, path: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        """As the product has it, but for what a tag is worth."""
        decision = VerifyingStage(self.policy).recipient(reverse_path, path, client, rings, day)
        mailbox = path.mailbox
        if mailbox is None or decision.verdict not in FORGED | {Verdict.VALID}:
            return decision
        domain = self.policy.domains[mailbox.domain.lower()]
        verdict = self.verifier.verdict(mailbox, rings.rings_for(mailbox.domain, day), day)
        disposition = Disposition.REWRITE if verdict is Verdict.VALID else domain.disposition(verdict)
        status = STATUS_BY_VERDICT[verdict] if domain.marks else None
        return decision._replace(verdict=verdict, disposition=disposition, status=status)

    def recalled(self, decision: Decision[ForwardPath], *, on_record: bool) -> Decision[ForwardPath]:
        """As the product has it."""
        return VerifyingStage(self.policy).recalled(decision, on_record=on_record)

    def overdrawn(self, decision: Decision[ForwardPath], account: Account) -> Decision[ForwardPath]:
        """As the product has it."""
        return VerifyingStage(self.policy).overdrawn(decision, account)

    def content(self, decision: Decision[ForwardPath], claims: Claims, found: Found) -> Decision[ForwardPath]:
        """As the product has it."""
        return VerifyingStage(self.policy).content(decision, claims, found)


def any_day(tagged: Tagged, key: Key, day: Day) -> bool:
    """Compare no day."""
    del tagged
    return key.verifies(day)


def five_digits(tagged: Tagged, key: Key) -> bool:
    """Compare five hex digits of six."""
    right = mac.sign(key, tagged.tag.stamp, tagged.mailbox, Case.FOLD)
    return right[:5] == tagged.tag.signature[:5]


def every_key(tagged: Tagged, ring: KeyRing) -> list[Key]:
    """Ignore the key number."""
    del tagged
    return [key for key in ring.keys if key.revoked is None]


def domain_as_written(tagged: Tagged, key: Key) -> bool:
    """Fold the local part and forget the domain."""
    mailbox = Mailbox(tagged.mailbox.local.lower(), tagged.mailbox.domain)
    return mac.sign(key, tagged.tag.stamp, mailbox, Case.EXACT) == tagged.tag.signature


def fits_anybody(users: frozenset[bytes]) -> Fits:
    """Accept the tag of another user of the domain."""

    def fits(tagged: Tagged, key: Key) -> bool:
        domain = tagged.mailbox.domain
        return any(
            mac.sign(key, tagged.tag.stamp, Mailbox(user, domain), Case.FOLD) == tagged.tag.signature for user in users
        )

    return fits


ROUND: Final = "the-corpus"
COUNT: Final = "400"


def users_of(ground: Ground) -> frozenset[bytes]:
    """Return the local parts of the users of a corpus."""
    paths = [recipient.path for entry in ground.read(ROUND).entries for recipient in entry.recipients]
    taken = [take_off(path.mailbox) or path for path in paths if path.mailbox is not None]
    return frozenset(each.mailbox.local.lower() for each in taken if each.mailbox is not None)


def kinds_that_are_wrong(ground: Ground, verifier: Verifier) -> tuple[bool, set[str]]:
    """Return whether the score is good, and the classes that are red in it."""

    def stages(settings: Settings, direction: Direction) -> Stage:
        del direction
        return OtherStage(settings.policy, verifier)

    found = ground.score(ground.read(ROUND), stages=stages)
    return found.right, set(found.wrong_by_kind)


@pytest.fixture
def made(ground: Ground) -> Ground:
    """Return the site with a corpus."""
    said = ground(
        "generate", "--out", str(ground.folder / ROUND), "--count", COUNT, "--weight", "forged-bit-flipped=25"
    )
    assert said.status == 0
    return ground


def test_a_verifier_that_is_whole_is_green(made: Ground) -> None:
    """So that what is red below is red for its flaw."""
    assert kinds_that_are_wrong(made, Verifier()) == (True, set())


def test_comparing_no_day_shows(made: Ground) -> None:
    """Harvested tags would be good for ever."""
    right, kinds = kinds_that_are_wrong(made, Verifier(alive=any_day))
    assert not right
    assert {"forged-expired", "forged-future-day"} <= kinds


def test_comparing_five_hex_digits_shows(made: Ground) -> None:
    """Tags would be guessed sixteen times sooner."""
    right, kinds = kinds_that_are_wrong(made, Verifier(fits=five_digits))
    assert not right
    assert "forged-bit-flipped" in kinds


def test_ignoring_the_key_number_shows(made: Ground) -> None:
    """A revoked key's number could be put on another key's tag."""
    right, kinds = kinds_that_are_wrong(made, Verifier(keys=every_key))
    assert not right
    assert {"forged-bit-flipped", "forged-unknown-key"} <= kinds


def test_folding_the_domain_wrongly_shows(made: Ground) -> None:
    """Bounces from systems that write domains in capitals would be lost."""
    right, kinds = kinds_that_are_wrong(made, Verifier(fits=domain_as_written))
    assert not right
    assert "genuine-other-case" in kinds


def test_accepting_the_tag_of_another_user_shows(made: Ground) -> None:
    """One harvested tag would open every mailbox of the domain."""
    right, kinds = kinds_that_are_wrong(made, Verifier(fits=fits_anybody(users_of(made))))
    assert not right
    assert "forged-other-user" in kinds
