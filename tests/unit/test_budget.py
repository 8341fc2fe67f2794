"""The bounce budget: an announcement to thousands never meets it, a stolen tag does, and without mail there is none."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batv.address import Mailbox
from batv.budget import SPARE_BOUNCES, Account, account_of
from batv.day import Day
from batv.keyring import Key, Secret
from batv.signing import Style, obstacle, sign_with
from batv.tag import Placement, Scheme
from tests.properties.mailboxes import mailboxes

_TODAY = Day.from_iso("2026-11-23")
_KEY = Key(3, Secret(bytes(range(32))), _TODAY, 7, _TODAY)


def account(octets: bytes, key: Key = _KEY, day: Day = _TODAY, style: Style | None = None) -> bytes | None:
    """Return the account of an address as it is signed on a day."""
    return account_of(sign_with(Mailbox.parse(octets), key, day, style or Style()))


@given(recipients=st.integers(1, 1_000_000), factor=st.integers(1, 1000), share=st.floats(0, 1))
def test_mail_of_which_all_comes_back_is_within_its_budget(recipients: int, factor: int, share: float) -> None:
    """An announcement to 20 000 whose addresses are all gone is one; so is a message that is delayed for days."""
    bounces = int(recipients * factor * share)
    assert not Account(recipients, bounces).overdrawn(factor)
    assert not Account(recipients, factor * recipients + SPARE_BOUNCES - 1).overdrawn(factor)
    assert Account(recipients, factor * recipients + SPARE_BOUNCES).overdrawn(factor)


@given(bounces=st.integers(0, 10_000_000), factor=st.integers(1, 1000))
def test_there_is_no_budget_where_nothing_is_known_to_have_been_sent(bounces: int, factor: int) -> None:
    """Another host may have signed, or have been asked before the ledger began."""
    assert not Account(0, bounces).overdrawn(factor)


@given(mailbox=mailboxes, scheme=st.sampled_from(Scheme))
def test_a_tag_has_one_account_wherever_it_is_written(mailbox: Mailbox, scheme: Scheme) -> None:
    """Who finds another spelling of an address that is good finds no other budget."""
    assume(obstacle(mailbox, scheme) is None)
    found = {
        account_of(sign_with(mailbox, _KEY, _TODAY, Style(placement=placement, scheme=scheme)))
        for placement in Placement
    }
    assert len(found) == 1
    assert None not in found


@pytest.mark.parametrize(
    ("octets", "key", "day"),
    [
        (b"ann@example.com", _KEY, _TODAY),
        (b"joe@b.example", _KEY, _TODAY),
        (b"joe@example.com", Key(4, Secret(bytes(range(32))), _TODAY, 7, _TODAY), _TODAY),
        (b"joe@example.com", _KEY, _TODAY + 1),
    ],
    ids=["user", "domain", "key", "day"],
)
def test_no_two_tags_share_an_account(octets: bytes, key: Key, day: Day) -> None:
    """What is sent with one pays for no other."""
    assert account(b"Joe@Example.com") == account(b"joe@example.com")
    assert account(octets, key, day) != account(b"joe@example.com")


def test_an_account_does_not_hold_the_signature() -> None:
    """A tag is a credential."""
    tagged = sign_with(Mailbox.parse(b"joe@example.com"), _KEY, _TODAY, Style()).octets
    found = account(b"joe@example.com")
    assert found is not None
    assert tagged[9:15] not in found
    assert account_of(Mailbox.parse(b"joe@example.com")) is None
