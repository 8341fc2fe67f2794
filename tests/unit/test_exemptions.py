"""Scope: whose mail is signed, whose bounces are judged, and what is left alone on purpose."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Final

import pytest

from batv.address import NULL_REVERSE_PATH, ForwardPath, ReversePath
from batv.day import Day
from batv.keyring import Key, KeyRing, KeyRings, Secret
from batv.mac import Case
from batv.pattern import Pattern
from batv.policy import DomainPolicy, Exemption, Exemptions, Policy
from batv.signing import Style, sign_with
from batv.smtp.path import parse_mail, parse_rcpt
from batv.stage import Client, SigningStage, VerifyingStage
from batv.tag import Placement, Scheme
from batv.verdict import FORGED, Decision, Disposition, Verdict

TODAY: Final = Day.from_iso("2026-11-23")
KEY: Final = Key(0, Secret(b"a secret of sixteen or more octets"), TODAY + -100, 7, TODAY + -100)
RINGS: Final = KeyRings(KeyRing(TODAY + -100, (KEY,)))
HERE: Final = Client("127.0.0.1")
MEASURING: Final = Client("192.0.2.9")

EXEMPTIONS: Final = Exemptions(
    [
        Exemption("programs", "ops", senders=(Pattern.parse("robot-*@"),)),
        Exemption("measurements", clients=(ip_network("192.0.2.0/24"),)),
        Exemption("lists", recipients=(Pattern.parse("*.lists.example"), Pattern.parse("ann@peer.example"))),
        Exemption("partner", senders=(Pattern.parse("sales@"),), recipients=(Pattern.parse("@partner.example"),)),
        Exemption("backup", senders=(Pattern.parse("root@"),), clients=(ip_network("198.51.100.0/24"),)),
        Exemption("fair", until=TODAY, senders=(Pattern.parse("fair@"),)),
        Exemption("last fair", until=TODAY + -1, senders=(Pattern.parse("lastfair@"),)),
    ]
)
POLICY: Final = Policy({b"example.com": DomainPolicy()}, exemptions=EXEMPTIONS)


def sender(text: str) -> ReversePath:
    """Return a reverse path."""
    return parse_mail(f"FROM:<{text}>".encode()).path


def recipient(text: str) -> ForwardPath:
    """Return a forward path."""
    return parse_rcpt(f"TO:<{text}>".encode()).path


def leaves(text: str, client: Client = HERE, policy: Policy = POLICY, day: Day = TODAY) -> Decision[ReversePath]:
    """Return what becomes of a sender, whoever gets the mail."""
    return SigningStage(policy).sender(sender(text), client, RINGS, day)


def leaves_for(text: str, to: str, client: Client = HERE, policy: Policy = POLICY) -> Decision[ReversePath]:
    """Return what becomes of a sender in mail to a recipient."""
    return SigningStage(policy).sender_for(sender(text), recipient(to), client, RINGS, TODAY)


def judged(text: str, policy: Policy = POLICY, client: Client = HERE, day: Day = TODAY) -> Decision[ForwardPath]:
    """Return what becomes of a bounce."""
    return VerifyingStage(policy).recipient(NULL_REVERSE_PATH, recipient(text), client, RINGS, day)


def tagged(text: str, style: Style | None = None, day: Day = TODAY) -> str:
    """Return the address with a good tag."""
    mailbox = sender(text).mailbox
    assert mailbox is not None
    return sign_with(mailbox, KEY, day, style or Style()).octets.decode()


@pytest.mark.parametrize(
    ("text", "client", "why"),
    [
        ("robot-7@example.com", HERE, "exempt: programs (ops)"),
        ("Robot-@Example.com", HERE, "exempt: programs (ops)"),
        ("joe@example.com", MEASURING, "exempt: measurements"),
        ("root@example.com", Client("198.51.100.7"), "exempt: backup"),
        ("fair@example.com", HERE, "exempt: fair"),
    ],
)
def test_an_exempt_sender_leaves_unsigned_and_the_reason_is_named(text: str, client: Client, why: str) -> None:
    """The journal has to tell it from mail that went unsigned by mistake."""
    decision = leaves(text, client)
    assert (decision.verdict, decision.disposition) == (Verdict.UNSIGNED, Disposition.PASS)
    assert (decision.reason, decision.exempt) == (f"unsigned: {why}", True)
    assert decision.path == sender(text)


@pytest.mark.parametrize(
    ("text", "client"),
    [
        ("joe@example.com", HERE),
        ("myrobot-7@example.com", HERE),
        ("root@example.com", HERE),
        ("joe@example.com", Client("198.51.100.7")),
        ("joe@example.com", Client("192.0.3.9")),
        ("joe@example.com", Client("unix")),
        ("lastfair@example.com", HERE),
    ],
)
def test_whoever_is_not_exempt_is_signed(text: str, client: Client) -> None:
    """Of each kind that an exemption names one must fit, and its last day must not be past."""
    decision = leaves(text, client)
    assert (decision.verdict, decision.exempt) == (Verdict.SIGNED, False)


def test_an_exemption_counts_on_its_last_day_and_no_longer() -> None:
    """Whoever named a day means it to be the last."""
    assert leaves("fair@example.com").verdict is Verdict.UNSIGNED
    assert leaves("fair@example.com", day=TODAY + 1).verdict is Verdict.SIGNED


@pytest.mark.parametrize(
    ("text", "to", "why"),
    [
        ("joe@example.com", "list@a.lists.example", "lists"),
        ("joe@example.com", "Ann@Peer.example", "lists"),
        ("sales@example.com", "bob@partner.example", "partner"),
        ("robot-7@example.com", "bob@peer.example", "programs (ops)"),
    ],
)
def test_mail_to_an_exempt_recipient_leaves_unsigned(text: str, to: str, why: str) -> None:
    """Lists that know their members by the address would refuse them."""
    decision = leaves_for(text, to)
    assert (decision.verdict, decision.reason, decision.exempt) == (Verdict.UNSIGNED, f"unsigned: exempt: {why}", True)
    assert decision.path == sender(text)


@pytest.mark.parametrize(
    ("text", "to"),
    [
        ("joe@example.com", "list@lists.example"),
        ("joe@example.com", "bob@partner.example"),
        ("sales@example.com", "bob@peer.example"),
        ("joe@example.com", "bob@peer.example"),
        ("joe@example.com", "joe@example.com"),
    ],
)
def test_mail_to_anybody_else_is_signed(text: str, to: str) -> None:
    """An exemption for one partner is none for the world."""
    assert leaves_for(text, to) == leaves(text)
    assert leaves_for(text, to).verdict is Verdict.SIGNED


def test_mail_waits_for_a_recipient_only_where_one_could_be_exempt() -> None:
    """What waits costs time; what does not wait must not leave signed for an exempt recipient."""
    alone = Policy(POLICY.domains, exemptions=Exemptions([each for each in EXEMPTIONS.every if each.reason != "lists"]))
    cases = [
        (POLICY, "joe@example.com", True),
        (alone, "joe@example.com", False),
        (alone, "sales@example.com", True),
        (Policy(POLICY.domains), "joe@example.com", False),
        (Policy(POLICY.domains, exempt_own_domains=True), "joe@example.com", True),
    ]
    for policy, text, wanted in cases:
        assert SigningStage(policy).wants_recipient(sender(text), HERE, TODAY) is wanted
    assert not SigningStage(POLICY).wants_recipient(NULL_REVERSE_PATH, HERE, TODAY)
    assert not VerifyingStage(POLICY).wants_recipient(sender("joe@example.com"), HERE, TODAY)
    over = Policy(POLICY.domains, exemptions=Exemptions([replace(EXEMPTIONS.every[2], until=TODAY + -1)]))
    assert not SigningStage(over).wants_recipient(sender("joe@example.com"), HERE, TODAY)


def test_internal_mail_shows_no_tag_where_the_site_wants_it() -> None:
    """And mail to others does."""
    policy = Policy({b"example.com": DomainPolicy(), b"*.example.com": DomainPolicy()}, exempt_own_domains=True)
    for to in ("ann@example.com", "Ann@Sub.Example.com"):
        assert leaves_for("joe@example.com", to, policy=policy).reason == "unsigned: exempt: exempt_own_domains"
    assert leaves_for("joe@example.com", "bob@peer.example", policy=policy).verdict is Verdict.SIGNED
    postmaster = parse_rcpt(b"TO:<Postmaster>").path
    decision = SigningStage(policy).sender_for(sender("joe@example.com"), postmaster, HERE, RINGS, TODAY)
    assert decision.verdict is Verdict.SIGNED


def test_an_exempt_sender_needs_no_key() -> None:
    """Mail that is not signed must not wait for a key."""
    decision = SigningStage(POLICY).sender(sender("robot-7@example.com"), HERE, KeyRings(None), TODAY)
    assert decision.disposition is Disposition.PASS


def test_a_bounce_to_a_sender_who_is_never_signed_is_not_judged() -> None:
    """It is genuine without a tag; a tag that is there is judged all the same."""
    decision = judged("robot-7@example.com")
    assert (decision.verdict, decision.disposition) == (Verdict.NOT_JUDGED, Disposition.PASS)
    assert (decision.reason, decision.exempt) == ("exempt: programs (ops)", True)
    assert judged("prvs=0787000000=robot-7@example.com").verdict is Verdict.BAD_SIGNATURE
    assert judged(tagged("robot-7@example.com")).verdict is Verdict.VALID


@pytest.mark.parametrize("text", ["root@example.com", "sales@example.com", "joe@example.com", "lastfair@example.com"])
def test_a_bounce_to_whoever_is_signed_for_some_is_judged(text: str) -> None:
    """The address alone does not tell that the mail was exempt."""
    assert judged(text).verdict is Verdict.UNTAGGED


@pytest.mark.parametrize(
    ("policy", "text", "to", "recalled"),
    [
        (replace(POLICY, remembers=True), "joe@example.com", "list@a.lists.example", True),
        (replace(POLICY, remembers=True), "sales@example.com", "bob@partner.example", True),
        (POLICY, "joe@example.com", "list@a.lists.example", False),
        (Policy(POLICY.domains, exempt_own_domains=True, remembers=True), "joe@example.com", "ann@example.com", True),
    ],
)
def test_the_content_decides_about_bounces_to_who_is_on_record_as_exempt(
    policy: Policy, text: str, to: str, *, recalled: bool
) -> None:
    """The address alone tells nothing, and lets nobody through."""
    assert leaves_for(text, to, policy=policy).recall is recalled
    decision = judged(text, policy)
    assert (decision.verdict, decision.undecided, decision.recall) == (Verdict.UNTAGGED, False, recalled)
    for on_record in (True, False):
        after = VerifyingStage(policy).recalled(decision, on_record=on_record)
        assert (after.verdict, after.undecided, after.recall) == (Verdict.UNTAGGED, on_record, False)


def test_nobody_is_put_on_record_where_the_address_tells_all() -> None:
    """Senders who are exempt whatever happens are not judged, and need no look."""
    always = Policy(POLICY.domains, exemptions=Exemptions([Exemption("robots", senders=EXEMPTIONS.every[0].senders)]))
    policy = replace(always, remembers=True)
    assert not leaves("robot-7@example.com", policy=policy).recall
    assert not judged("joe@example.com", policy).recall


POSTMASTER: Final = Policy(
    {
        b"example.com": DomainPolicy(
            exempt_recipients=tuple(map(Pattern.parse_local, ("postmaster", "fax-*", "*-printer")))
        )
    }
)


@pytest.mark.parametrize("text", ["postmaster@example.com", '"Postmaster"@example.com', "FAX-7@example.com"])
def test_an_exempt_recipient_gets_bounces_without_a_tag(text: str) -> None:
    """RFC 5321 section 4.5.1: postmaster must be reached."""
    decision = judged(text, POSTMASTER)
    assert (decision.verdict, decision.disposition) == (Verdict.NOT_JUDGED, Disposition.PASS)
    assert decision.reason.startswith("exempt: exempt_recipients has ")
    assert decision.exempt


@pytest.mark.parametrize("text", ["postmaster2@example.com", "fax@example.com", "joe@example.com"])
def test_other_recipients_are_judged(text: str) -> None:
    """An exemption is not for whoever is called alike."""
    assert judged(text, POSTMASTER).verdict is Verdict.UNTAGGED


def test_a_wrong_tag_is_judged_whosoever_it_is() -> None:
    """Nobody but a forger makes one."""
    assert judged("prvs=0787000000=postmaster@example.com", POSTMASTER).verdict is Verdict.BAD_SIGNATURE
    assert judged("prvs=0787000000=a-printer@example.com", POSTMASTER).verdict is Verdict.BAD_SIGNATURE
    assert judged("prvs=x=a-printer@example.com", POSTMASTER).verdict is Verdict.MALFORMED
    assert judged("a-printer@example.com", POSTMASTER).verdict is Verdict.NOT_JUDGED
    assert judged(tagged("postmaster@example.com", day=TODAY + -20), POSTMASTER).verdict is Verdict.EXPIRED
    assert judged(tagged("postmaster@example.com"), POSTMASTER).verdict is Verdict.VALID


def test_bounces_of_an_exempt_client_go_on_whatever_they_are() -> None:
    """A tag is taken off all the same, so that the mailbox is found."""
    policy = Policy(POSTMASTER.domains, exempt_clients=(ip_network("192.0.2.0/24"),))
    bare = judged("joe@example.com", policy, MEASURING)
    assert (bare.verdict, bare.disposition) == (Verdict.NOT_JUDGED, Disposition.PASS)
    assert bare.reason == "exempt: exempt_clients has 192.0.2.0/24"
    wrong = judged("prvs=0787000000=joe@example.com", policy, MEASURING)
    assert (wrong.verdict, wrong.disposition) == (Verdict.NOT_JUDGED, Disposition.REWRITE)
    assert wrong.path == recipient("joe@example.com")
    assert judged(tagged("joe@example.com"), policy, MEASURING).verdict is Verdict.VALID
    assert judged("joe@example.com", policy).verdict is Verdict.UNTAGGED
    assert judged("joe@peer.example", policy, MEASURING).verdict is Verdict.FOREIGN
    listed = replace(MEASURING, listed="list.example")
    assert judged("joe@example.com", policy, listed).disposition is Disposition.PASS


REFINED: Final = DomainPolicy(
    Disposition.DISCARD,
    by_verdict={Verdict.EXPIRED: Disposition.QUARANTINE, Verdict.UNTAGGED: Disposition.MARK},
)


@pytest.mark.parametrize(
    ("text", "verdict", "disposition", "status"),
    [
        ("joe@example.com", Verdict.UNTAGGED, Disposition.MARK, b"invalid, missing"),
        ("prvs=x=joe@example.com", Verdict.MALFORMED, Disposition.DISCARD, b"invalid, malformed"),
        ("prvs=9787000000=joe@example.com", Verdict.UNKNOWN_KEY, Disposition.DISCARD, b"invalid, unknown-key"),
        ("prvs=0787000000=joe@example.com", Verdict.BAD_SIGNATURE, Disposition.DISCARD, b"invalid, bad-signature"),
        (
            tagged("joe@example.com", day=TODAY + -20),
            Verdict.EXPIRED,
            Disposition.QUARANTINE,
            b"invalid, expired",
        ),
        (tagged("joe@example.com"), Verdict.VALID, Disposition.REWRITE, b"valid"),
    ],
)
def test_each_verdict_gets_what_the_domain_wants_for_it(
    text: str, verdict: Verdict, disposition: Disposition, status: bytes | None
) -> None:
    """A late bounce is not thrown away with what is surely forged; what is delivered is marked where any is."""
    decision = judged(text, Policy({b"example.com": REFINED}))
    assert (decision.verdict, decision.disposition, decision.status) == (verdict, disposition, status)


@pytest.mark.parametrize("verdict", sorted(FORGED, key=str))
def test_a_domain_marks_if_any_verdict_is_marked(verdict: Verdict) -> None:
    """Then fields from outside must go, and genuine bounces say that they are."""
    policy = DomainPolicy(by_verdict={verdict: Disposition.MARK})
    assert policy.marks
    assert Policy({b"a": policy}).marks
    assert not DomainPolicy(Disposition.MARK, by_verdict=dict.fromkeys(FORGED, Disposition.DISCARD)).marks


def test_what_passes_a_domain_that_marks_carries_no_status() -> None:
    """Pass is: delivered as it is."""
    policy = Policy({b"example.com": replace(REFINED, by_verdict={**REFINED.by_verdict, Verdict.MALFORMED: _PASS})})
    assert judged("prvs=x=joe@example.com", policy).status is None


_PASS: Final = Disposition.PASS


def test_a_limit_holds_for_every_verdict() -> None:
    """The rollout must not discard by a refinement what it has not come to discard."""
    limited = REFINED.limited(lambda _: Disposition.PASS)
    assert {limited.disposition(verdict) for verdict in FORGED} == {Disposition.PASS}
    assert not limited.marks


WILD: Final = Policy(
    {
        b"example.com": DomainPolicy(Disposition.REJECT),
        b"*.example.com": DomainPolicy(Disposition.MARK),
        b"*.deep.example.com": DomainPolicy(Disposition.PASS),
        b"exact.deep.example.com": DomainPolicy(Disposition.DISCARD),
        b"*.only.example": DomainPolicy(Disposition.QUARANTINE),
    },
    frozenset({b"hosted.example.com"}),
)


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        (b"example.com", b"example.com"),
        (b"A.Example.com", b"*.example.com"),
        (b"b.a.example.com", b"*.example.com"),
        (b"deep.example.com", b"*.example.com"),
        (b"x.deep.example.com", b"*.deep.example.com"),
        (b"y.x.deep.example.com", b"*.deep.example.com"),
        (b"exact.deep.example.com", b"exact.deep.example.com"),
        (b"hosted.example.com", None),
        (b"a.hosted.example.com", b"*.example.com"),
        (b"only.example", None),
        (b"a.only.example", b"*.only.example"),
        (b"xexample.com", None),
        (b"com", None),
        (b"*.example.com", b"*.example.com"),
        (b"example.com.evil.example", None),
    ],
)
def test_a_domain_has_the_closest_entry(domain: bytes, name: bytes | None) -> None:
    """Its own before a wildcard, a longer wildcard before a shorter one; hosted domains stay what they are."""
    assert WILD.name_for(domain) == name
    assert WILD.for_domain(domain) is (None if name is None else WILD.domains[name])


def test_a_domain_below_a_wildcard_is_signed_judged_and_has_a_ring_of_its_own() -> None:
    """It is a domain like any other."""
    own = KeyRing(TODAY, (Key(4, Secret(b"own"), TODAY, 7, TODAY),))
    rings = KeyRings(RINGS.default, {b"a.example.com": own})
    assert SigningStage(WILD).sender(sender("joe@A.example.com"), HERE, rings, TODAY).key_number == 4
    assert SigningStage(WILD).sender(sender("joe@b.example.com"), HERE, rings, TODAY).key_number == 0
    assert judged("joe@a.example.com", WILD).disposition is Disposition.MARK
    assert judged(tagged("joe@a.example.com"), WILD).verdict is Verdict.VALID
    names = WILD.own_rings([b"a.example.com", b"elsewhere.example", b"hosted.example.com"])
    assert names == frozenset(WILD.domains) | {b"a.example.com"}


def test_a_domain_writes_tags_in_its_own_style() -> None:
    """One of several domains may share its key with Exim, or stand behind a server without BATV."""
    style = Style(Case.EXACT, Placement.SUBADDRESS, Scheme.STRONG)
    policy = Policy({b"example.com": DomainPolicy(style=style), b"other.example": DomainPolicy()})
    assert leaves("Joe@example.com", policy=policy).path.octets.decode() == f"<{tagged('Joe@example.com', style)}>"
    assert leaves("Joe@other.example", policy=policy).path.octets.decode() == f"<{tagged('Joe@other.example')}>"


def test_tags_of_the_draft_are_accepted_until_the_day_that_is_named() -> None:
    """Mail under way when the scheme was changed keeps its bounces; after that 24 bits are worth nothing."""
    strong = Style(scheme=Scheme.STRONG)
    policy = Policy({b"example.com": DomainPolicy(style=strong, draft_until=TODAY + 3)})
    for ahead, wanted in ((0, Verdict.VALID), (3, Verdict.VALID), (4, Verdict.EXPIRED)):
        decision = judged(tagged("joe@example.com"), policy, day=TODAY + ahead)
        assert decision.verdict is wanted
        assert judged(tagged("joe@example.com", strong), policy, day=TODAY + ahead).verdict is Verdict.VALID
    wrong = judged("prvs=0787000000=joe@example.com", policy, day=TODAY + 4)
    assert wrong.verdict is Verdict.BAD_SIGNATURE


@pytest.mark.parametrize(("scheme", "longest"), [(Scheme.DRAFT, 48), (Scheme.STRONG, 43)])
def test_mail_from_an_address_too_long_for_a_tag_is_refused_where_the_site_wants_it(
    scheme: Scheme, longest: int
) -> None:
    """Then no mail of such an address has left, and a bounce to it is forged."""
    leave = Policy({b"example.com": DomainPolicy(style=Style(scheme=scheme))})
    refuse = Policy({b"example.com": DomainPolicy(style=Style(scheme=scheme), refuse_too_long=True)})
    fits, too_long = (f"{'x' * length}@example.com" for length in (longest, longest + 1))
    for policy in (leave, refuse):
        assert leaves(fits, policy=policy).verdict is Verdict.SIGNED
        assert judged(fits, policy).verdict is Verdict.UNTAGGED
    assert leaves(too_long, policy=leave).disposition is Disposition.PASS
    assert judged(too_long, leave).verdict is Verdict.NOT_JUDGED
    refused = leaves(too_long, policy=refuse)
    assert (refused.verdict, refused.disposition) == (Verdict.UNSIGNED, Disposition.REJECT)
    assert judged(too_long, refuse).verdict is Verdict.UNTAGGED
