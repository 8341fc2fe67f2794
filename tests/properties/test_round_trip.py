"""What is signed comes back: rule 3, strip(sign(m)) == m octet for octet, for every mailbox that may be signed."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batv.address import Mailbox
from batv.day import Day
from batv.keyring import Key, KeyRing, Secret
from batv.mac import Case
from batv.signing import Obstacle, Style, obstacle, sign, strip, verify
from batv.smtp.path import parse_mail, parse_rcpt
from batv.tag import Placement, Tag, put_on, take_off
from batv.verdict import Verdict
from tests.properties.mailboxes import mailboxes, random_mailbox

TODAY = Day.from_iso("2026-11-23")
RING = KeyRing(TODAY, (Key(3, Secret(bytes(range(32))), TODAY, 7, TODAY),))
STYLES = [Style(case, placement) for case, placement in product(Case, Placement)]


def check(mailbox: Mailbox, style: Style) -> bool:
    """Assert the rule for one mailbox; return whether it was signed."""
    signed = sign(mailbox, RING, TODAY, style)
    if isinstance(signed, Obstacle):
        assert signed is obstacle(mailbox)
        return False
    assert strip(signed) == mailbox
    assert Mailbox.parse(signed.octets) == signed
    assert len(signed.octets) == len(mailbox.octets) + 16
    found = verify(signed, RING, TODAY)
    assert (found.verdict, found.mailbox) == (Verdict.VALID, mailbox)
    return True


@pytest.mark.parametrize("style", STYLES, ids=lambda style: f"{style.case.value}-{style.placement.value}")
def test_ten_thousand_mailboxes_come_back_octet_for_octet(style: Style) -> None:
    """A bounce that is delivered to another mailbox is worse than one that is lost."""
    chance = random.Random(f"{style.case} {style.placement}")
    signed = tried = 0
    while signed < 10_000:
        tried += 1
        signed += check(random_mailbox(chance), style)
    assert tried < 30_000, "too many of the mailboxes cannot be signed to call this a test"


@settings(max_examples=200, deadline=None)
@given(mailbox=mailboxes, style=st.sampled_from(STYLES))
def test_every_mailbox_comes_back_octet_for_octet(mailbox: Mailbox, style: Style) -> None:
    """As above, with mailboxes that are sought out and made small."""
    check(mailbox, style)


@settings(max_examples=200, deadline=None)
@given(mailbox=mailboxes, placement=st.sampled_from(Placement))
def test_what_carries_no_tag_can_be_given_one_and_is_told_from_it(mailbox: Mailbox, placement: Placement) -> None:
    """Whether an address may be signed is a question of policy and length; the grammar has room for each."""
    if take_off(mailbox) is not None:
        assert obstacle(mailbox) is Obstacle.TAGGED
        assert strip(mailbox) != mailbox
        return
    assert strip(mailbox) == mailbox
    tag = Tag(0, b"787", b"abcdef")
    found = take_off(put_on(mailbox, tag, placement))
    assert found is not None
    assert (found.tag, found.mailbox) == (tag, mailbox)


@settings(max_examples=200, deadline=None)
@given(mailbox=mailboxes, style=st.sampled_from(STYLES))
def test_a_signed_path_reads_as_the_mailbox_that_was_signed(mailbox: Mailbox, style: Style) -> None:
    """What we write after MAIL FROM is what a peer reads, and what comes back after RCPT TO."""
    signed = sign(mailbox, RING, TODAY, style)
    if isinstance(signed, Obstacle):
        return
    came = parse_mail(b"FROM:<" + mailbox.octets + b"> SIZE=1").path
    gone = came.with_mailbox(signed)
    assert gone.octets == b"<" + signed.octets + b">"
    back = parse_rcpt(b"TO:" + gone.octets).path
    assert back.mailbox == signed
    assert back.with_mailbox(strip(signed)).octets == came.octets
