"""What a site wants: which domains are ours, and which forms of address are left alone."""

from __future__ import annotations

from functools import partial

import pytest

from batv.address import Mailbox
from batv.policy import DomainPolicy, Policy
from batv.rollout import Phase, capped
from batv.tag import ForeignForm
from batv.verdict import Disposition

SRS = Mailbox.parse(b"SRS0=HHH=TT=peer.example=joe@example.com")
EXCHANGE = Mailbox.parse(b"joe+SRS=HHHH=TT=peer.example=joe@example.com")
TAGGED = Mailbox.parse(b"prvs=0787abcdef=joe@example.com")


def test_forged_bounces_are_discarded_unless_said_otherwise() -> None:
    """The default, which reveals nothing and answers nobody."""
    assert DomainPolicy().on_forged is Disposition.DISCARD
    assert DomainPolicy().leave_forms == frozenset()


@pytest.mark.parametrize(
    "disposition", [Disposition.DISCARD, Disposition.QUARANTINE, Disposition.REJECT, Disposition.PASS]
)
def test_only_mark_puts_on_a_status_field(disposition: Disposition) -> None:
    """No other listener touches the message."""
    assert not DomainPolicy(disposition).marks
    assert DomainPolicy(Disposition.MARK).marks
    assert not Policy({b"a": DomainPolicy(disposition)}).marks
    assert Policy({b"a": DomainPolicy(disposition), b"b": DomainPolicy(Disposition.MARK)}).marks
    assert not Policy({}).marks


def test_any_setting_but_pass_for_bounces_with_a_sender_puts_on_a_status_field() -> None:
    """Replies are marked where bounces are refused; nothing is put on, nor judged, where nobody asked for it."""
    assert DomainPolicy().with_sender is None
    assert not Policy({b"a": DomainPolicy()}).judges_senders
    for wanted in (Disposition.MARK, Disposition.QUARANTINE, Disposition.DISCARD, Disposition.REJECT):
        policy = Policy({b"a": DomainPolicy(on_bounce_with_sender=wanted), b"b": DomainPolicy()})
        assert policy.marks
        assert policy.judges_senders
        # Other bounces carry none for it.
        assert not policy.domains[b"a"].marks
    looking_on = Policy({b"a": DomainPolicy(on_bounce_with_sender=Disposition.PASS)})
    assert looking_on.judges_senders
    assert not looking_on.marks


@pytest.mark.parametrize("wanted", [None, Disposition.PASS, Disposition.MARK, Disposition.DISCARD])
def test_a_phase_of_the_rollout_allows_no_more_for_bounces_with_a_sender(wanted: Disposition | None) -> None:
    """And never asks for what the settings do not."""
    for phase in Phase:
        limited = DomainPolicy(on_bounce_with_sender=wanted).limited(partial(capped, phase=phase))
        if wanted is None:
            assert limited.with_sender is None
            continue
        assert limited.with_sender is not None
        assert limited.with_sender.on_forged is capped(wanted, phase)


def test_domains_are_compared_without_regard_to_case() -> None:
    """And whole: neither a domain below nor one that ends alike is ours."""
    ours = DomainPolicy()
    policy = Policy({b"local.example": ours}, frozenset({b"hosted.example"}))
    assert policy.for_domain(b"local.example") is ours
    assert policy.for_domain(b"loCAL.examPLE") is ours
    assert policy.relays(b"HOSTED.example")
    for domain in (b"example", b"sub.local.example", b"xlocal.example", b"local.example.org", b"local.example.", b""):
        assert policy.for_domain(domain) is None
        assert not policy.relays(domain)
    assert policy.for_domain(b"hosted.example") is None
    assert not policy.relays(b"local.example")


def test_only_the_forms_that_were_named_are_left_alone() -> None:
    """Each form that is left alone is a way around the judgement."""
    assert DomainPolicy().left_alone(SRS) is None
    one = DomainPolicy(leave_forms=frozenset({ForeignForm.SRS, ForeignForm.CISCO}))
    assert one.left_alone(SRS) is ForeignForm.SRS
    assert one.left_alone(EXCHANGE) is None
    assert one.left_alone(Mailbox.parse(b"joe@example.com")) is None


def test_a_tag_of_ours_is_never_left_alone() -> None:
    """Not even where another system's form would fit it too."""
    every = DomainPolicy(leave_forms=frozenset(ForeignForm))
    assert every.left_alone(TAGGED) is None
    assert every.left_alone(Mailbox.parse(b"prvs=0787abcdef=0787abcdef@example.com")) is None


def test_an_address_of_two_forms_is_left_alone_for_either() -> None:
    """Exchange rewrites addresses that another system has rewritten before; naming one form must be enough."""
    both = Mailbox.parse(b"SRS0=HHH=TT=peer.example=joe+SRS=HHHH=TT=fwd.example=joe@example.com")
    for form in (ForeignForm.SRS, ForeignForm.EXCHANGE_SRS):
        assert DomainPolicy(leave_forms=frozenset({form})).left_alone(both) is form
