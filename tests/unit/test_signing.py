"""Signing and verifying: what is signed, which check fails first, on which days a tag is good."""

from __future__ import annotations

import pytest

from batv import signing
from batv.address import Mailbox
from batv.day import Day
from batv.errors import NoSigningKeyError
from batv.keyring import Key, KeyRing, Secret
from batv.mac import Case
from batv.signing import Obstacle, Style
from batv.tag import Placement
from batv.verdict import Verdict

TODAY = Day.from_iso("2026-11-23")
USER = Mailbox.parse(b"user@example.com")
SECRET = Secret(b"secret")


def ring(*keys: Key) -> KeyRing:
    """Return a ring with these keys, or with one that signs."""
    return KeyRing(TODAY, keys or (Key(0, SECRET, TODAY + -100, 7, TODAY + -100),))


def box(text: str) -> Mailbox:
    """Return a mailbox."""
    return Mailbox.parse(text.encode())


def test_the_known_answer() -> None:
    """The octets that the draft's formula gives for this address, and that Exim gives too."""
    signed = signing.sign(USER, ring(), Day.from_iso("2027-07-01"))
    assert signed == box("prvs=000721afe1=user@example.com")


def test_the_style_decides_where_the_tag_stands_and_what_is_hashed() -> None:
    """Sites that share a key with another program need its octets."""
    mixed = box("Joe@Example.com")
    signed = {
        (case, placement): signing.sign_with(mixed, ring().signing_key(TODAY), TODAY, Style(case, placement)).octets
        for case in Case
        for placement in Placement
    }
    assert signed == {
        (Case.FOLD, Placement.PREFIX): b"prvs=078711cb40=Joe@Example.com",
        (Case.FOLD, Placement.SUBADDRESS): b"Joe+prvs=078711cb40@Example.com",
        (Case.EXACT, Placement.PREFIX): b"prvs=0787bf3f00=Joe@Example.com",
        (Case.EXACT, Placement.SUBADDRESS): b"Joe+prvs=0787bf3f00@Example.com",
    }


@pytest.mark.parametrize(
    ("text", "hindrance"),
    [
        ("prvs=0787abcdef=user@example.com", Obstacle.TAGGED),
        ("PRVS=0787ABCDEF=user@example.com", Obstacle.TAGGED),
        ("user+prvs=0787abcdef@example.com", Obstacle.TAGGED),
        ('"prvs=0787abcdef=a b"@example.com', Obstacle.TAGGED),
        ("prvs=0787abcdef=a%b@example.com", Obstacle.TAGGED),
        ("joe%peer.example@example.com", Obstacle.ROUTING),
        ("peer.example!joe@example.com", Obstacle.ROUTING),
        ('"joe@peer.example"@example.com', Obstacle.ROUTING),
        ("x" * 49 + "@example.com", Obstacle.TOO_LONG),
        ("user@" + "x" * 234, Obstacle.TOO_LONG),
    ],
)
def test_what_cannot_be_signed_says_why(text: str, hindrance: Obstacle) -> None:
    """Such mail goes unsigned, and the log has the reason; a ring without a signing key makes no difference."""
    assert signing.obstacle(box(text)) is hindrance
    assert signing.sign(box(text), ring(), TODAY) is hindrance
    assert signing.sign(box(text), KeyRing(TODAY), TODAY) is hindrance


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com",
        "x" * 48 + "@example.com",
        "user@" + "x" * 233,
        "prvs=user@example.com",
        "u+prvs=@example.com",
        "SRS0=HHH=TT=peer.example=joe@example.com",
        "prvs=joe=0787abcdef@example.com",
        "btv1==0787abcdef==joe@example.com",
    ],
)
def test_every_other_address_is_signed(text: str) -> None:
    """An address that stays unsigned without need loses the protection."""
    assert signing.obstacle(box(text)) is None
    for placement in Placement:
        signed = signing.sign(box(text), ring(), TODAY, Style(placement=placement))
        assert isinstance(signed, Mailbox)
        assert signing.strip(signed) == box(text)
        assert signing.verify(signed, ring(), TODAY).verdict is Verdict.VALID


@pytest.mark.parametrize("text", ["prvs=0787abcdef=@example.com", "PRVS=0787ABCDEF=@example.com"])
def test_a_whole_tag_without_a_user_is_an_address_like_any_other(text: str) -> None:
    """With a subaddress tag behind it, it would be taken for a prefix tag, and the bounce would go astray."""
    for placement in Placement:
        signed = signing.sign(box(text), ring(), TODAY, Style(placement=placement))
        assert isinstance(signed, Mailbox)
        assert signing.strip(signed) == box(text)
        assert signing.verify(signed, ring(), TODAY).verdict is Verdict.VALID


def test_nothing_is_signed_without_a_key_that_signs() -> None:
    """Mail that went out unsigned could not get its bounces back, so the caller has to know."""
    with pytest.raises(NoSigningKeyError, match="no key of the default ring signs on 2026-11-23: make one with"):
        signing.sign(USER, KeyRing(TODAY), TODAY)


def test_checks_come_in_the_order_grammar_key_signature_day() -> None:
    """The verdict names the first check that failed: each address here fails that check and all later ones."""
    old = signing.sign_with(USER, ring().keys[0], TODAY + -300).octets.decode()
    wrong = old.replace("=user", "=other")
    unknown = wrong.replace("prvs=0", "prvs=9")
    malformed = unknown.replace("prvs=9", "prvs=x")
    verdicts = [signing.verify(box(text), ring(), TODAY).verdict for text in (malformed, unknown, wrong, old)]
    assert verdicts == [Verdict.MALFORMED, Verdict.UNKNOWN_KEY, Verdict.BAD_SIGNATURE, Verdict.EXPIRED]


def test_a_verification_says_what_was_found() -> None:
    """`batv explain` and the log show it."""
    signed = signing.sign_with(USER, ring().keys[0], TODAY)
    found = signing.verify(signed, ring(), TODAY + 3)
    assert (found.verdict, found.reason, found.mailbox, found.case) == (Verdict.VALID, "tag good", USER, Case.FOLD)
    assert found.tag is not None
    assert found.tag.octets in signed.octets
    assert found.key == ring().keys[0]
    assert found.days_left == 4
    plain = signing.verify(USER, ring(), TODAY)
    assert (plain.verdict, plain.reason, plain.mailbox) == (Verdict.UNTAGGED, "no tag", USER)
    assert (plain.tag, plain.key, plain.case, plain.days_left) == (None, None, None, None)
    odd = box("prvs=1=user@example.com")
    malformed = signing.verify(odd, ring(), TODAY)
    assert (malformed.reason, malformed.mailbox, malformed.tag) == ("starts like a tag, is none", odd, None)
    late = signing.verify(signed, ring(), TODAY + 8)
    assert late.reason == "the tag's days are past or not begun (stamp 787, today 788)"
    assert (late.mailbox, late.days_left, late.case) == (USER, None, Case.FOLD)


def test_a_refused_tag_is_taken_off_in_what_is_handed_back() -> None:
    """The stage needs the bare address whatever the tag is worth."""
    for text, reason in {
        "prvs=9787abcdef=user@example.com": "no key 9 in the ring",
        "prvs=0787abcdef=user@example.com": "the tag does not fit the address",
    }.items():
        found = signing.verify(box(text), ring(), TODAY)
        assert (found.mailbox, found.reason) == (USER, reason)
        assert found.tag is not None


@pytest.mark.parametrize("lifetime", [1, 7, 30, 365])
def test_a_tag_is_good_from_the_day_before_through_its_last_day(lifetime: int) -> None:
    """One day before is for a verifier whose clock is late; the days left are told."""
    key = Key(0, SECRET, TODAY, lifetime, TODAY)
    signed = signing.sign_with(USER, key, TODAY)
    left = {n: signing.verify(signed, ring(key), TODAY + n).days_left for n in range(-3, lifetime + 4)}
    assert left == {n: lifetime - n if -1 <= n <= lifetime else None for n in range(-3, lifetime + 4)}


def test_the_lifetime_is_that_of_the_key_that_signed() -> None:
    """A ring whose keys differ in lifetime reads each tag with its own key's."""
    long = Key(1, Secret(b"long"), TODAY, 30)
    short = Key(0, SECRET, TODAY, 7, TODAY)
    keys = ring(short, long)
    assert signing.verify(signing.sign_with(USER, long, TODAY), keys, TODAY + 30).verdict is Verdict.VALID
    assert signing.verify(signing.sign_with(USER, short, TODAY), keys, TODAY + 8).verdict is Verdict.EXPIRED


def test_a_pending_key_verifies_before_it_signs() -> None:
    """Another node may have the newer ring, or a clock that is early, and sign already."""
    pending = Key(1, Secret(b"next"), TODAY, 7, TODAY + 2)
    found = signing.verify(signing.sign_with(USER, pending, TODAY), ring(pending), TODAY)
    assert found.verdict is Verdict.VALID


def test_a_revoked_key_counts_for_nothing() -> None:
    """Revoked means that its secret may be known: its signatures prove nothing, good days or not."""
    revoked = Key(0, SECRET, TODAY + -100, 7, TODAY + -100, None, TODAY + -1)
    found = signing.verify(signing.sign_with(USER, revoked, TODAY), ring(revoked), TODAY)
    assert found.verdict is Verdict.UNKNOWN_KEY
    assert found.reason == "key 0 was revoked on 2026-11-22"
    assert found.mailbox == USER


def test_a_spent_keys_tags_do_not_come_alive_again_after_the_wrap() -> None:
    """The key may stand in the ring for years before it is pruned; the day counter comes round in 1000 days."""
    retired = Key(0, SECRET, TODAY + -100, 7, TODAY + -100, TODAY)
    signed = signing.sign_with(USER, retired, TODAY + -1)
    assert signing.verify(signed, ring(retired), TODAY + 6).verdict is Verdict.VALID
    found = signing.verify(signed, ring(retired), TODAY + 999)
    assert found.verdict is Verdict.EXPIRED
    assert found.reason == "all tags of key 0 have expired"


def test_of_several_rings_the_first_that_finds_the_tag_valid_counts() -> None:
    """A domain that got a ring of its own has tags of the default ring under way."""
    own, default, third = (ring(Key(0, Secret(secret), TODAY, 7, TODAY)) for secret in (b"own", b"default", b"third"))
    for signer in (own, default):
        signed = signing.sign_with(USER, signer.keys[0], TODAY)
        found = signing.verify_any(signed, (own, default), TODAY)
        assert (found.verdict, found.key) == (Verdict.VALID, signer.keys[0])
    foreign = signing.sign_with(USER, third.keys[0], TODAY)
    found = signing.verify_any(foreign, (KeyRing(TODAY), default), TODAY)
    assert (found.verdict, found.reason) == (Verdict.UNKNOWN_KEY, "no key 0 in the ring")
    found = signing.verify_any(foreign, (default, KeyRing(TODAY)), TODAY)
    assert found.verdict is Verdict.BAD_SIGNATURE
    found = signing.verify_any(foreign, (), TODAY)
    assert (found.verdict, found.reason, found.mailbox) == (Verdict.UNKNOWN_KEY, "no key ring", USER)


def test_stripping_asks_for_no_key() -> None:
    """A tag is taken off whatever it is worth, and what carries none stays as it is."""
    assert signing.strip(box("prvs=9000000000=user@example.com")) == USER
    assert signing.strip(box("user+prvs=9000000000@example.com")) == USER
    assert signing.strip(USER) is USER
