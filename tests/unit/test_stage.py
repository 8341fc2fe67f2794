"""The waist: what the outbound stage signs, and what the inbound stage lets through, strips and calls forged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batv.address import NULL_REVERSE_PATH, ForwardPath, Mailbox, ReversePath
from batv.bounce import Clue
from batv.budget import Account
from batv.day import Day
from batv.keyring import Key, KeyRing, KeyRings, Secret
from batv.mac import Case
from batv.pattern import Pattern
from batv.policy import DomainPolicy, Policy
from batv.rescue import NO_CLAIMS, Claims, Found, Kind
from batv.signing import Style
from batv.smtp.path import parse_mail, parse_rcpt
from batv.stage import Client, DeferringStage, SigningStage, Stage, VerifyingStage, judged_together
from batv.tag import ForeignForm, Placement, Scheme
from batv.verdict import FORGED, SEVERITY, Decision, Disposition, Verdict

TODAY = Day.from_iso("2026-11-23")
CLIENT = Client("127.0.0.1", "client.example")
RING = KeyRing(TODAY, (Key(0, Secret(b"secret"), TODAY, 7, TODAY),))
RINGS = KeyRings(RING)
POLICY = Policy(
    {
        b"local.example": DomainPolicy(),
        b"lists.example": DomainPolicy(Disposition.REJECT, frozenset({ForeignForm.SRS})),
        b"mark.example": DomainPolicy(Disposition.MARK),
        b"pass.example": DomainPolicy(Disposition.PASS),
        b"keep.example": DomainPolicy(Disposition.QUARANTINE),
    },
    frozenset({b"hosted.example"}),
)
SIGNING = SigningStage(POLICY)
VERIFYING = VerifyingStage(POLICY)
SENDER = parse_mail(b"FROM:<ann@peer.example>").path


def signed(path: str, rings: KeyRings = RINGS, stage: SigningStage = SIGNING) -> Decision[ReversePath]:
    """Return what the outbound stage says of a reverse path."""
    return stage.sender(parse_mail(b"FROM:" + path.encode()).path, CLIENT, rings, TODAY)


def judged(
    path: str, reverse_path: ReversePath = NULL_REVERSE_PATH, rings: KeyRings = RINGS, day: Day = TODAY
) -> Decision[ForwardPath]:
    """Return what the inbound stage says of a forward path; of a bounce, unless said otherwise."""
    return VERIFYING.recipient(reverse_path, parse_rcpt(b"TO:" + path.encode()).path, CLIENT, rings, day)


def tagged(address: str, day: Day = TODAY) -> str:
    """Return an address as the outbound stage signs it on a day."""
    decision = SIGNING.sender(parse_mail(f"FROM:<{address}>".encode()).path, CLIENT, RINGS, day)
    assert decision.verdict is Verdict.SIGNED
    return decision.path.octets.decode()


def test_a_sender_of_ours_is_signed() -> None:
    """The path keeps all octets but for the tag."""
    decision = signed("<Joe@Local.Example>")
    assert (decision.verdict, decision.disposition) == (Verdict.SIGNED, Disposition.REWRITE)
    assert decision.path.octets == b"<prvs=078700bef8=Joe@Local.Example>"
    assert decision.path.mailbox == Mailbox.parse(b"prvs=078700bef8=Joe@Local.Example")
    assert (decision.reason, decision.key_number, decision.status) == ("signed with key 0", 0, None)
    routed = signed("<@a,@b:joe@local.example>").path.octets
    assert routed.startswith(b"<@a,@b:prvs=0787")


def test_the_style_is_the_sites() -> None:
    """Placement and case come from the settings."""
    stage = SigningStage(POLICY, Style(Case.EXACT, Placement.SUBADDRESS))
    octets = signed("<Joe@Local.Example>", stage=stage).path.octets
    assert octets.startswith(b"<Joe+prvs=0787")
    assert b"00bef8" not in octets


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("<>", "null sender"),
        ("<joe@peer.example>", "peer.example is not a domain of ours"),
        ("<joe@sub.local.example>", "sub.local.example is not a domain of ours"),
        ("<joe@hosted.example>", "hosted.example is not a domain of ours"),
        ("<prvs=0787abcdef=joe@local.example>", "carries a tag already"),
        ("<joe+prvs=0787abcdef@local.example>", "carries a tag already"),
        ("<joe%peer.example@local.example>", "local part with a routing character"),
        (f"<{'x' * 49}@local.example>", "local part too long for a tag"),
        ("<SRS0=HHH=TT=peer.example=joe@lists.example>", "leave_forms has srs"),
    ],
)
def test_what_is_not_signed_goes_as_it_came(path: str, why: str) -> None:
    """The log says why; not one octet changes."""
    decision = signed(path)
    assert (decision.verdict, decision.disposition) == (Verdict.UNSIGNED, Disposition.PASS)
    assert decision.path.octets == path.encode()
    assert (decision.reason, decision.key_number) == (f"unsigned: {why}", None)


def test_forms_of_others_are_signed_where_they_were_not_named() -> None:
    """Only what a site leaves to another system goes without a tag."""
    assert signed("<SRS0=HHH=TT=peer.example=joe@local.example>").verdict is Verdict.SIGNED
    assert signed("<joe+SRS=HHHH=TT=peer.example=joe@lists.example>").verdict is Verdict.SIGNED


@pytest.mark.parametrize(
    "rings", [KeyRings(None), KeyRings(KeyRing(TODAY)), KeyRings(RING, {b"local.example": KeyRing(TODAY)})]
)
def test_without_a_key_mail_is_deferred(rings: KeyRings) -> None:
    """Mail that went out unsigned could not get its bounces back; the client keeps it and tries again."""
    decision = signed("<joe@local.example>", rings)
    assert (decision.verdict, decision.disposition) == (Verdict.UNSIGNED, Disposition.DEFER)
    assert decision.path.octets == b"<joe@local.example>"
    assert "make one with 'batv key new'" in decision.reason


def test_a_domain_signs_with_its_own_ring() -> None:
    """And only that domain."""
    own = KeyRing(TODAY, (Key(4, Secret(b"own"), TODAY, 7, TODAY),))
    rings = KeyRings(RING, {b"lists.example": own})
    assert signed("<joe@Lists.example>", rings).key_number == 4
    assert signed("<joe@local.example>", rings).key_number == 0


@pytest.mark.parametrize(
    "path", ["<joe@peer.example>", "<prvs=0787abcdef=joe@local.example>", "<Postmaster>", "<@a:u@d>"]
)
def test_the_outbound_stage_changes_no_forward_path(path: str) -> None:
    """Whoever may submit mail may write to anybody."""
    forward = parse_rcpt(b"TO:" + path.encode()).path
    decision = SIGNING.recipient(SENDER, forward, CLIENT, RINGS, TODAY)
    assert decision == Decision(Verdict.NOT_A_BOUNCE, Disposition.PASS, forward, "outbound")


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("<>", Verdict.NOT_JUDGED),
        ("<joe@peer.example>", Verdict.NOT_A_BOUNCE),
        ("<prvs=0787abcdef=joe@local.example>", Verdict.NOT_A_BOUNCE),
    ],
)
def test_the_inbound_stage_changes_no_reverse_path(path: str, verdict: Verdict) -> None:
    """Whoever may be reached may be written to."""
    reverse = parse_mail(b"FROM:" + path.encode()).path
    decision = VERIFYING.sender(reverse, CLIENT, RINGS, TODAY)
    assert decision == Decision(verdict, Disposition.PASS, reverse, "inbound")


@pytest.mark.parametrize("domain", ["local.example", "lists.example", "mark.example", "pass.example", "keep.example"])
@pytest.mark.parametrize("local", ["joe", "Joe", '"a b"', "=u", "a..b", "jörg", "u+prvs=", "prvs=joe", "btv1==0==u"])
def test_a_bounce_to_what_was_signed_comes_home(domain: str, local: str) -> None:
    """Whatever the domain does with forged ones."""
    path = tagged(f"{local}@{domain}")
    for day in (TODAY + -1, TODAY, TODAY + 7):
        decision = judged(path, day=day)
        assert (decision.verdict, decision.disposition) == (Verdict.VALID, Disposition.REWRITE)
        assert decision.path.octets == f"<{local}@{domain}>".encode()
        assert (decision.reason, decision.key_number) == ("tag good", 0)
        assert decision.status == (b"valid" if domain == "mark.example" else None)


FORGERIES = {
    "<joe@{}>": (Verdict.UNTAGGED, "<joe@{}>", None, b"invalid, missing"),
    "<joe+tag@{}>": (Verdict.UNTAGGED, "<joe+tag@{}>", None, b"invalid, missing"),
    "<prvs=x=joe@{}>": (Verdict.MALFORMED, "<prvs=x=joe@{}>", None, b"invalid, malformed"),
    "<prvs=0787abcdef=@{}>": (Verdict.MALFORMED, "<prvs=0787abcdef=@{}>", None, b"invalid, malformed"),
    "<prvs=9787abcdef=joe@{}>": (Verdict.UNKNOWN_KEY, "<joe@{}>", 9, b"invalid, unknown-key"),
    "<prvs=0787000000=joe@{}>": (Verdict.BAD_SIGNATURE, "<joe@{}>", 0, b"invalid, bad-signature"),
    "<joe+prvs=0787000000@{}>": (Verdict.BAD_SIGNATURE, "<joe@{}>", 0, b"invalid, bad-signature"),
}


@pytest.mark.parametrize(("form", "wanted"), FORGERIES.items())
@pytest.mark.parametrize(
    ("domain", "disposition"),
    [
        ("local.example", Disposition.DISCARD),
        ("lists.example", Disposition.REJECT),
        ("mark.example", Disposition.MARK),
        ("pass.example", Disposition.PASS),
        ("keep.example", Disposition.QUARANTINE),
    ],
)
def test_a_forged_bounce_gets_what_the_domain_wants(
    form: str, wanted: tuple[Verdict, str, int | None, bytes], domain: str, disposition: Disposition
) -> None:
    """With the bare path, so that the next hop can be asked about the recipient, or have the message."""
    verdict, bare, number, status = wanted
    decision = judged(form.format(domain))
    assert (decision.verdict, decision.disposition) == (verdict, disposition)
    assert decision.path.octets == bare.format(domain).encode()
    assert decision.key_number == number
    assert decision.status == (status if domain == "mark.example" else None)
    assert decision.verdict in FORGED


def test_a_tag_past_its_day_is_forged() -> None:
    """And one whose days have not begun."""
    path = tagged("joe@mark.example")
    for day in (TODAY + 8, TODAY + -2, TODAY + 500):
        decision = judged(path, day=day)
        assert (decision.verdict, decision.disposition) == (Verdict.EXPIRED, Disposition.MARK)
        assert (decision.path.octets, decision.status) == (b"<joe@mark.example>", b"invalid, expired")


@pytest.mark.parametrize(
    ("path", "bare"),
    [
        ("<prvs=0787000000=joe@local.example>", "<joe@local.example>"),
        ("<joe+prvs=9787000000@lists.example>", "<joe@lists.example>"),
        ('<"prvs=0787000000=a b"@local.example>', '<"a b"@local.example>'),
        ("<prvs=0787000000=prvs=0787000000=joe@local.example>", "<prvs=0787000000=joe@local.example>"),
        ("<prvs=0787000000==u@local.example>", "<=u@local.example>"),
    ],
)
def test_on_mail_that_is_no_bounce_one_tag_is_taken_off_whatever_it_is_worth(path: str, bare: str) -> None:
    """People answer to signed senders, long after the tag has expired; such mail is never refused for its tag."""
    decision = judged(path, SENDER)
    assert (decision.verdict, decision.disposition) == (Verdict.NOT_A_BOUNCE, Disposition.REWRITE)
    assert decision.path.octets == bare.encode()
    assert decision.reason == "sender is not null; tag taken off"
    assert decision.status is None


@pytest.mark.parametrize(
    "path",
    ["<joe@local.example>", "<prvs=x=joe@lists.example>", "<joe+prvs=@mark.example>", "<PRVS=0787=u@keep.example>"],
)
def test_mail_that_is_no_bounce_passes_without_a_tag(path: str) -> None:
    """Most mail is."""
    for rings in (RINGS, KeyRings(None)):
        decision = judged(path, SENDER, rings)
        assert (decision.verdict, decision.disposition) == (Verdict.NOT_A_BOUNCE, Disposition.PASS)
        assert (decision.path.octets, decision.status) == (path.encode(), None)


RELAYING = {
    "<victim@remote.example>": "remote.example is not a domain of ours",
    "<victim@sub.local.example>": "sub.local.example is not a domain of ours",
    "<victim@local.example.remote.example>": "local.example.remote.example is not a domain of ours",
    "<victim@[127.0.0.1]>": "[127.0.0.1] is not a domain of ours",
    "<prvs=0787000000=victim@remote.example>": "remote.example is not a domain of ours",
    "<@local.example:victim@remote.example>": "remote.example is not a domain of ours",
    "<@remote.example:victim@local.example>": "source route",
    "<@remote.example:victim@hosted.example>": "source route",
    "<victim%remote.example@local.example>": "routing character in the local part",
    "<remote.example!victim@local.example>": "routing character in the local part",
    '<"victim@remote.example"@local.example>': "routing character in the local part",
    "<victim%remote.example@hosted.example>": "routing character in the local part",
    "<prvs=0787000000=victim%remote.example@local.example>": "routing character in the local part",
    "<victim%remote.example+prvs=0787000000@local.example>": "routing character in the local part",
    "<SRS0=a=b=c=victim%remote.example@lists.example>": "routing character in the local part",
}


@pytest.mark.parametrize(("path", "why"), RELAYING.items())
@pytest.mark.parametrize("reverse_path", [NULL_REVERSE_PATH, SENDER], ids=["bounce", "mail"])
def test_nothing_is_let_through_that_a_next_hop_could_relay(path: str, why: str, reverse_path: ReversePath) -> None:
    """The next hop trusts us: we are its relay control, for bounces and other mail, before and after stripping."""
    decision = judged(path, reverse_path)
    assert (decision.verdict, decision.disposition) == (Verdict.FOREIGN, Disposition.REJECT)
    assert (decision.path.octets, decision.reason) == (path.encode(), why)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("<Postmaster>", "postmaster without a domain"),
        ("<joe@hosted.example>", "relay_domains has the domain"),
        ("<prvs=0787abcdef=joe@Hosted.Example>", "relay_domains has the domain"),
        ("<SRS0=HHH=TT=peer.example=joe@lists.example>", "leave_forms has the form"),
        (f"<{'x' * 49}@local.example>", "local part too long for a tag"),
    ],
)
def test_what_is_left_alone_outbound_is_not_judged_inbound(path: str, why: str) -> None:
    """Its bounces are genuine without a tag."""
    decision = judged(path)
    assert (decision.verdict, decision.disposition) == (Verdict.NOT_JUDGED, Disposition.PASS)
    assert (decision.path.octets, decision.reason, decision.status) == (path.encode(), why, None)


@pytest.mark.parametrize(
    "path",
    [
        "<joe@local.example>",
        "<prvs=joe@local.example>",
        "<prvs=0787abcdef=@local.example>",
        f"<{'x' * 48}@local.example>",
        f"<{'x' * 49}@local.example>",
        "<SRS0=HHH=TT=peer.example=joe@lists.example>",
        "<SRS0=HHH=TT=peer.example=joe@local.example>",
        "<joe+SRS=HHHH=TT=peer.example=joe@lists.example>",
        "<prvs=joe=0787abcdef@lists.example>",
    ],
)
@pytest.mark.parametrize("placement", Placement)
def test_both_sides_agree_on_what_is_signed(path: str, placement: Placement) -> None:
    """Signed: the bounce to it is valid and one to the bare address forged. Unsigned: the bounce to it passes."""
    out = signed(path, stage=SigningStage(POLICY, Style(placement=placement)))
    back = judged(out.path.octets.decode())
    bare = judged(path)
    if out.verdict is Verdict.SIGNED:
        assert (back.verdict, back.path.octets) == (Verdict.VALID, path.encode())
        assert bare.verdict in FORGED
    else:
        assert (back.verdict, back.disposition) == (Verdict.NOT_JUDGED, Disposition.PASS)


def test_tags_of_the_default_ring_stay_good_when_a_domain_gets_its_own() -> None:
    """They are under way; after their lifetime the default ring's word counts no more."""
    path = tagged("joe@local.example", TODAY)
    own = KeyRing(TODAY, (Key(0, Secret(b"own"), TODAY, 7, TODAY),))
    rings = KeyRings(RING, {b"local.example": own})
    assert judged(path, rings=rings).verdict is Verdict.VALID
    late = tagged("joe@local.example", TODAY + 9)
    assert judged(late, rings=rings, day=TODAY + 9).verdict is Verdict.BAD_SIGNATURE


def test_without_a_ring_no_bounce_is_genuine() -> None:
    """Nothing of ours was ever signed."""
    assert judged(tagged("joe@local.example"), rings=KeyRings(None)).verdict is Verdict.UNKNOWN_KEY


def test_both_stages_are_stages() -> None:
    """A proxy, and any other door, asks either in the same way."""
    stages: list[Stage] = [SIGNING, VERIFYING]
    for stage in stages:
        assert stage.sender(NULL_REVERSE_PATH, CLIENT, RINGS, TODAY).path is NULL_REVERSE_PATH


LISTED = Client("11.0.0.2", listed="bl.example")


def from_listed(
    path: str,
    on_forged: Disposition,
    on_listed: Disposition | None,
    reverse_path: ReversePath = NULL_REVERSE_PATH,
    day: Day = TODAY,
) -> Decision[ForwardPath]:
    """Return what the inbound stage says of a recipient of local.example where a list has the client."""
    stage = VerifyingStage(Policy({b"local.example": DomainPolicy(on_forged, on_listed=on_listed)}))
    return stage.recipient(reverse_path, parse_rcpt(b"TO:" + path.encode()).path, LISTED, RINGS, day)


@pytest.mark.parametrize(
    ("usual", "listed", "gets"),
    [
        (Disposition.PASS, Disposition.QUARANTINE, Disposition.QUARANTINE),
        (Disposition.MARK, Disposition.DISCARD, Disposition.DISCARD),
        (Disposition.QUARANTINE, Disposition.REJECT, Disposition.REJECT),
        (Disposition.QUARANTINE, Disposition.QUARANTINE, Disposition.QUARANTINE),
        (Disposition.DISCARD, Disposition.QUARANTINE, Disposition.DISCARD),
        (Disposition.DISCARD, Disposition.REJECT, Disposition.DISCARD),
        (Disposition.REJECT, Disposition.DISCARD, Disposition.REJECT),
        (Disposition.MARK, None, Disposition.MARK),
    ],
)
def test_a_list_makes_worse_what_an_untagged_bounce_gets_and_never_better(
    usual: Disposition, listed: Disposition | None, gets: Disposition
) -> None:
    """Who runs a list is not to let anything through that the site would have withheld."""
    decision = from_listed("<joe@local.example>", usual, listed)
    assert (decision.verdict, decision.disposition) == (Verdict.UNTAGGED, gets)
    assert ("bl.example lists the client" in decision.reason) is (gets is not usual)


def test_a_list_has_nothing_to_say_of_a_tag_nor_of_mail_with_a_sender() -> None:
    """Providers that send backscatter send genuine bounces and ordinary mail too; a late bounce has an expired tag."""
    for path, reverse_path, day in (
        (tagged("joe@local.example"), NULL_REVERSE_PATH, TODAY),
        (tagged("joe@local.example"), NULL_REVERSE_PATH, TODAY + 20),
        ("<joe@local.example>", SENDER, TODAY),
        (tagged("joe@local.example"), SENDER, TODAY),
        ("<joe@local.example>", parse_mail(b"FROM:<postmaster@peer.example>").path, TODAY),
        (f"<{'j' * 49}@local.example>", NULL_REVERSE_PATH, TODAY),
        ("<Postmaster>", NULL_REVERSE_PATH, TODAY),
    ):
        with_list = from_listed(path, Disposition.MARK, Disposition.DISCARD, reverse_path, day)
        assert with_list == from_listed(path, Disposition.MARK, None, reverse_path, day)


def test_a_genuine_reply_is_rescued_whatever_a_list_says_of_its_client() -> None:
    """The ledger knows what was sent; a list only what its owner got. What is not rescued gets the worse of both."""
    policy = DomainPolicy(Disposition.MARK, on_listed=Disposition.DISCARD, rescue=True)
    stage = VerifyingStage(Policy({b"local.example": policy}))
    path = parse_rcpt(b"TO:<joe@local.example>").path
    decision = stage.recipient(NULL_REVERSE_PATH, path, LISTED, RINGS, TODAY)
    assert (decision.undecided, decision.disposition) == (True, Disposition.DISCARD)
    rescued = stage.content(decision, NO_CLAIMS, Found.KNOWN)
    assert (rescued.verdict, rescued.disposition) == (Verdict.RESCUED, Disposition.PASS)
    lost = stage.content(decision, NO_CLAIMS, Found.UNKNOWN)
    assert (lost.verdict, lost.disposition) == (Verdict.UNTAGGED, Disposition.DISCARD)
    assert "bl.example lists the client" in lost.reason


@pytest.mark.parametrize(
    "on_forged", [Disposition.DISCARD, Disposition.QUARANTINE, Disposition.REJECT, Disposition.MARK]
)
def test_the_content_decides_about_a_bounce_without_a_tag_where_the_domain_wants_that(on_forged: Disposition) -> None:
    """About nothing else: a wrong tag stays wrong, whatever the message says."""
    stage = VerifyingStage(Policy({b"local.example": DomainPolicy(on_forged, rescue=True)}))

    def undecided(path: str, reverse_path: ReversePath = NULL_REVERSE_PATH) -> bool:
        forward_path = parse_rcpt(b"TO:" + path.encode()).path
        return stage.recipient(reverse_path, forward_path, CLIENT, RINGS, TODAY).undecided

    assert undecided("<joe@local.example>")
    assert not undecided("<joe@local.example>", SENDER)
    assert not undecided("<prvs=0007abcdef=joe@local.example>")
    assert not undecided("<prvs=x=joe@local.example>")
    assert not undecided(tagged("joe@local.example"))
    assert not undecided("<Postmaster>")
    assert not judged("<joe@local.example>").undecided


def test_where_bounces_pass_anyway_nothing_is_looked_at() -> None:
    """It would cost, and change nothing."""
    stage = VerifyingStage(Policy({b"local.example": DomainPolicy(Disposition.PASS, rescue=True)}))
    path = parse_rcpt(b"TO:<joe@local.example>").path
    assert not stage.recipient(NULL_REVERSE_PATH, path, CLIENT, RINGS, TODAY).undecided


@pytest.mark.parametrize("found", [each for each in Found if each is not Found.KNOWN])
def test_what_the_ledger_does_not_know_gets_what_the_domain_wants(found: Found) -> None:
    """And the journal says what was looked for in vain."""
    stage = VerifyingStage(Policy({b"local.example": DomainPolicy(rescue=True)}))
    path = parse_rcpt(b"TO:<joe@local.example>").path
    decision = stage.content(stage.recipient(NULL_REVERSE_PATH, path, CLIENT, RINGS, TODAY), NO_CLAIMS, found)
    assert decision == Decision(Verdict.UNTAGGED, Disposition.DISCARD, path, f"no tag; {found}")


def test_only_a_domain_that_marks_says_rescued_in_a_field() -> None:
    """No other listener touches the message."""
    path = parse_rcpt(b"TO:<joe@local.example>").path
    for on_forged, status in ((Disposition.MARK, b"rescued"), (Disposition.DISCARD, None)):
        stage = VerifyingStage(Policy({b"local.example": DomainPolicy(on_forged, rescue=True)}))
        decision = stage.recipient(NULL_REVERSE_PATH, path, CLIENT, RINGS, TODAY)
        assert stage.content(decision, NO_CLAIMS, Found.KNOWN).status == status


def test_the_outbound_stage_looks_into_no_message() -> None:
    """It has one decision to make, about the sender."""
    path = parse_rcpt(b"TO:<bob@peer.example>").path
    decision = SIGNING.recipient(SENDER, path, CLIENT, RINGS, TODAY)
    assert SIGNING.content(decision, NO_CLAIMS, Found.KNOWN) is decision


LONG = f"{'x' * 49}@local.example"
REMEMBERING = Policy(
    {
        b"local.example": DomainPolicy(remember_too_long=True),
        b"rescue.example": DomainPolicy(remember_too_long=True, rescue=True),
        b"pass.example": DomainPolicy(Disposition.PASS, remember_too_long=True),
    },
    remembers=True,
)


def without_tag(path: str, policy: Policy) -> Decision[ForwardPath]:
    """Return what the inbound stage says of a bounce before anything is looked up."""
    forward_path = parse_rcpt(f"TO:<{path}>".encode()).path
    return VerifyingStage(policy).recipient(NULL_REVERSE_PATH, forward_path, CLIENT, RINGS, TODAY)


def test_an_address_too_long_for_a_tag_is_judged_unless_it_is_on_record() -> None:
    """Else `joe+` and 48 octets would let everybody through to Joe."""
    stage = VerifyingStage(REMEMBERING)
    decision = without_tag(LONG, REMEMBERING)
    assert decision.recall
    known = stage.recalled(decision, on_record=True)
    assert (known.verdict, known.disposition, known.recall) == (Verdict.NOT_JUDGED, Disposition.PASS, False)
    unknown = stage.recalled(decision, on_record=False)
    assert (unknown.verdict, unknown.disposition, unknown.recall) == (Verdict.UNTAGGED, Disposition.DISCARD, False)
    assert unknown.reason == "no tag; too long for one, and no mail of it is on record"
    assert not unknown.undecided


def test_the_content_decides_about_an_address_too_long_for_a_tag_that_is_not_on_record() -> None:
    """Where the domain wants that; where bounces pass anyway it would change nothing."""
    for domain, undecided in (("rescue.example", True), ("pass.example", False)):
        decision = without_tag(f"{'x' * 49}@{domain}", REMEMBERING)
        assert VerifyingStage(REMEMBERING).recalled(decision, on_record=False).undecided is undecided


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("octets", range(40, 52))
@pytest.mark.parametrize("policy", [REMEMBERING, POLICY], ids=["remembered", "not remembered"])
def test_both_sides_agree_on_who_is_put_on_record(octets: int, scheme: Scheme, policy: Policy) -> None:
    """Outbound an address goes on record if and only if inbound it counts that it is there."""
    address = f"{'x' * octets}@local.example"
    style = Style(scheme=scheme)
    out = SigningStage(policy, style).sender(parse_mail(f"FROM:<{address}>".encode()).path, CLIENT, RINGS, TODAY)
    path = parse_rcpt(f"TO:<{address}>".encode()).path
    back = VerifyingStage(policy, style).recipient(NULL_REVERSE_PATH, path, CLIENT, RINGS, TODAY)
    assert out.recall is back.recall
    assert out.recall is (policy is REMEMBERING and out.verdict is Verdict.UNSIGNED)


def test_a_tag_is_worth_what_it_is_worth_whatever_is_on_record() -> None:
    """The record is for bounces without one, to senders of ours."""
    for path in (tagged("joe@local.example"), "prvs=0787abcdef=joe@local.example", "joe@local.example"):
        assert not without_tag(path.strip("<>"), REMEMBERING).recall
    assert (
        not VerifyingStage(REMEMBERING)
        .recipient(SENDER, parse_rcpt(f"TO:<{LONG}>".encode()).path, CLIENT, RINGS, TODAY)
        .recall
    )


def test_while_the_day_is_in_doubt_only_what_is_on_record_is_let_through() -> None:
    """The rest comes again."""
    stage = DeferringStage(VerifyingStage(REMEMBERING), "the clock is wrong")
    path = parse_rcpt(f"TO:<{LONG}>".encode()).path
    decision = stage.recipient(NULL_REVERSE_PATH, path, CLIENT, RINGS, TODAY)
    assert stage.recalled(decision, on_record=True).disposition is Disposition.PASS
    assert stage.recalled(decision, on_record=False).disposition is Disposition.DEFER


def test_the_outbound_stage_asks_no_record_about_a_recipient() -> None:
    """It judges nobody."""
    decision = SIGNING.recipient(SENDER, parse_rcpt(b"TO:<bob@peer.example>").path, CLIENT, RINGS, TODAY)
    assert not decision.recall
    assert SIGNING.recalled(decision, on_record=False) is decision


@pytest.mark.parametrize("on_forged", [Disposition.DISCARD, Disposition.REJECT, Disposition.QUARANTINE])
def test_the_content_decides_about_a_good_tag_with_more_bounces_than_its_mail(on_forged: Disposition) -> None:
    """What answers mail of ours goes on without its tag; the rest is kept, and never thrown away."""
    stage = VerifyingStage(Policy({b"local.example": DomainPolicy(on_forged)}))
    path = parse_rcpt(b"TO:" + tagged("joe@local.example").encode()).path
    decision = stage.recipient(NULL_REVERSE_PATH, path, CLIENT, RINGS, TODAY)
    pending = stage.overdrawn(decision, Account(1, 13))
    assert (pending.verdict, pending.undecided) == (Verdict.VALID, True)
    known = stage.content(pending, NO_CLAIMS, Found.KNOWN)
    assert (known.verdict, known.disposition, known.path, known.undecided) == (
        Verdict.VALID,
        Disposition.REWRITE,
        decision.path,
        False,
    )
    for found in Found:
        if found is not Found.KNOWN:
            kept = stage.content(pending, NO_CLAIMS, found)
            assert (kept.verdict, kept.disposition, kept.undecided) == (Verdict.VALID, Disposition.QUARANTINE, False)
            assert kept.reason == f"tag good; more bounces than its mail should have: 13 for 1 recipient; {found}"


def test_where_bounces_without_a_tag_are_delivered_no_tag_has_a_budget() -> None:
    """Nobody needs to steal one; and a domain that looks on withholds nothing."""
    for on_forged in (Disposition.PASS, Disposition.MARK):
        stage = VerifyingStage(Policy({b"local.example": DomainPolicy(on_forged)}))
        path = parse_rcpt(b"TO:" + tagged("joe@local.example").encode()).path
        decision = stage.recipient(NULL_REVERSE_PATH, path, CLIENT, RINGS, TODAY)
        assert stage.overdrawn(decision, Account(1, 1000)) is decision
        assert DeferringStage(stage, "doubt").overdrawn(decision, Account(1, 1000)) is decision
        assert SIGNING.overdrawn(decision, Account(1, 1000)) is decision


def test_a_domain_that_looks_on_has_a_reason_and_nothing_else_changed() -> None:
    """What the message answers goes on record; and which name of ours it bears, where it answers nothing."""
    claims = Claims(Kind.DSN, (b"1@x",), (b"bob@peer.example",), (b"peer.example", b"Local.Example"))
    for on_forged in (Disposition.PASS, Disposition.MARK, Disposition.QUARANTINE):
        policy = Policy({b"local.example": DomainPolicy(on_forged, looks_on=True)})
        stage = VerifyingStage(policy)
        decision = without_tag("joe@local.example", policy)
        assert (decision.looks_on, decision.undecided) == (True, False)
        for found, said in (
            (Found.KNOWN, "dsn, answers a message on the ledger"),
            (Found.UNKNOWN, f"{Found.UNKNOWN}; returns mail in the name of Local.Example"),
        ):
            after = stage.content(decision, claims, found)
            assert after == decision._replace(reason=f"no tag; {said}")
        assert not without_tag(tagged("joe@local.example").strip("<>"), policy).looks_on


# Bounces that have a sender.

DAEMON = parse_mail(b"FROM:<Mailer-Daemon@mx.peer.example>").path
_WANTED = (Disposition.PASS, Disposition.MARK, Disposition.QUARANTINE, Disposition.DISCARD, Disposition.REJECT)


def with_sender(wanted: Disposition | None, **options: object) -> VerifyingStage:
    """Return a stage whose domain rejects forged bounces, and wants this where they have a sender."""
    domain = DomainPolicy(Disposition.REJECT, on_bounce_with_sender=wanted, **options)  # type: ignore[arg-type]
    other = DomainPolicy(by_verdict={Verdict.UNTAGGED: Disposition.PASS})
    return VerifyingStage(Policy({b"local.example": domain, b"other.example": other}))


def met(stage: Stage, path: str, reverse_path: ReversePath = SENDER, client: Client = CLIENT) -> Decision[ForwardPath]:
    """Return what a stage says of a forward path."""
    return stage.recipient(reverse_path, parse_rcpt(b"TO:" + path.encode()).path, client, RINGS, TODAY)


def together(stage: Stage, clue: Clue, *paths: str) -> list[Decision[ForwardPath]]:
    """Return what becomes of the recipients of a message whose header shows something."""
    decisions = [met(stage, path) for path in paths]
    return judged_together([each.as_bounce or each for each in decisions], clue)


def test_mail_with_a_sender_is_judged_only_where_the_domain_says_so() -> None:
    """Not even a mail system's; a tag on it is taken off, whatever it is worth."""
    stage = with_sender(None)
    for reverse_path in (SENDER, DAEMON):
        assert not stage.takes_for_bounce(reverse_path)
        for path in ("<joe@local.example>", "<prvs=0787000000=joe@local.example>"):
            decision = met(stage, path, reverse_path)
            assert (decision.verdict, decision.as_bounce) == (Verdict.NOT_A_BOUNCE, None)
    assert with_sender(Disposition.PASS).takes_for_bounce(DAEMON)
    assert not with_sender(Disposition.REJECT).takes_for_bounce(SENDER)
    assert all(each.takes_for_bounce(NULL_REVERSE_PATH) for each in (stage, SIGNING))
    assert met(with_sender(Disposition.REJECT), "<joe@other.example>", DAEMON).verdict is Verdict.NOT_A_BOUNCE


@pytest.mark.parametrize("wanted", _WANTED)
def test_a_mail_system_s_bounce_gets_what_the_domain_wants_for_one_with_a_sender(wanted: Disposition) -> None:
    """Not what it wants for other bounces; and a good tag is good."""
    stage = with_sender(wanted)
    plain = met(stage, "<joe@local.example>", DAEMON)
    assert (plain.verdict, plain.disposition) == (Verdict.UNTAGGED, wanted)
    assert plain.reason == "sender is a mail system; no tag"
    forged = met(stage, "<prvs=0787000000=joe@local.example>", DAEMON)
    assert (forged.verdict, forged.disposition) == (Verdict.BAD_SIGNATURE, wanted)
    good = met(stage, tagged("joe@local.example"), DAEMON)
    assert (good.verdict, good.path.octets) == (Verdict.VALID, b"<joe@local.example>")
    assert met(stage, "<joe@local.example>", NULL_REVERSE_PATH).disposition is Disposition.REJECT


@pytest.mark.parametrize("wanted", _WANTED)
def test_of_any_other_sender_the_header_tells_and_until_then_nothing_is_decided(wanted: Disposition) -> None:
    """The next hop is told of the same path, whatever comes."""
    stage = with_sender(wanted)
    for path in ("<joe@local.example>", "<prvs=0787000000=joe@local.example>", "<prvs=x=joe@local.example>"):
        decision = met(stage, path)
        ordinary = met(with_sender(None), path)
        assert (decision.verdict, decision.disposition, decision.path) == (
            ordinary.verdict,
            ordinary.disposition,
            ordinary.path,
        )
        (judged_so,) = together(stage, Clue.REPORT, path)
        assert (judged_so.disposition, judged_so.path, judged_so.undecided) == (wanted, decision.path, False)
        assert judged_so.verdict in FORGED
        assert judged_so.reason.startswith("report on delivery; ")


@pytest.mark.parametrize("wanted", _WANTED)
@pytest.mark.parametrize("clue", [Clue.REPLY, Clue.RECEIPT])
def test_an_automatic_reply_is_marked_at_most(wanted: Disposition, clue: Clue) -> None:
    """It is no bounce, and must not be lost for want of a tag."""
    (decision,) = together(with_sender(wanted), clue, "<joe@local.example>")
    assert decision.disposition is (Disposition.PASS if wanted is Disposition.PASS else Disposition.MARK)
    assert decision.status == (None if wanted is Disposition.PASS else b"invalid, missing")


@pytest.mark.parametrize("one", _WANTED)
@pytest.mark.parametrize("other", _WANTED)
def test_recipients_of_one_message_meet_the_mildest_that_one_of_them_wants(
    one: Disposition, other: Disposition
) -> None:
    """None meets more than alone: they were taken before anybody knew what the message is."""
    stage = VerifyingStage(
        Policy(
            {
                b"one.example": DomainPolicy(on_bounce_with_sender=one),
                b"other.example": DomainPolicy(on_bounce_with_sender=other),
            }
        )
    )
    found = together(stage, Clue.REPORT, "<joe@one.example>", "<ann@other.example>")
    least = min(SEVERITY[one], SEVERITY[other])
    assert {SEVERITY[each.disposition] for each in found} == {least}
    assert {each.status for each in found} == {b"invalid, missing" if least else None} or least > 1


@pytest.mark.parametrize("beside", ["<ann@other.example>", "good", "<postmaster@local.example>", "<Postmaster>"])
def test_a_bounce_that_somebody_is_to_get_passes_for_all_and_carries_no_field_that_is_not_true_of_all(
    beside: str,
) -> None:
    """Whoever is not judged, or has a good tag, must not lose it for others."""
    stage = with_sender(Disposition.REJECT, exempt_recipients=(Pattern.parse_local("postmaster"),))
    beside = tagged("ann@local.example") if beside == "good" else beside
    forged, other = together(stage, Clue.REPORT, "<joe@local.example>", beside)
    assert (forged.verdict, forged.disposition) == (Verdict.UNTAGGED, Disposition.PASS)
    assert forged.reason == "report on delivery; no tag; others get it too"
    assert other.disposition in {Disposition.PASS, Disposition.REWRITE}
    assert (forged.status, other.status) == (None, None)


def test_a_bounce_with_a_sender_may_be_rescued_exempt_or_worse_for_a_list() -> None:
    """As any bounce; a list makes it worse than the setting, which the site has asked for."""
    rescuing = with_sender(Disposition.MARK, rescue=True)
    for reverse_path in (SENDER, DAEMON):
        decision = met(rescuing, "<joe@local.example>", reverse_path)
        decision = decision.as_bounce or decision
        assert decision.undecided
        rescued = rescuing.content(decision, NO_CLAIMS, Found.KNOWN)
        assert (rescued.verdict, rescued.disposition, rescued.status) == (
            Verdict.RESCUED,
            Disposition.PASS,
            b"rescued",
        )
    listing = with_sender(Disposition.MARK, on_listed=Disposition.QUARANTINE)
    listed = met(listing, "<joe@local.example>", DAEMON, Client("192.0.2.1", listed="z.example"))
    assert (listed.disposition, listed.reason) == (
        Disposition.QUARANTINE,
        "sender is a mail system; no tag; z.example lists the client",
    )


@pytest.mark.parametrize("wanted", _WANTED)
@pytest.mark.parametrize("path", ["<joe@local.example>", "<prvs=0787000000=joe@local.example>"])
def test_mail_of_an_exempt_sender_is_not_judged_neither_for_that_nor_for_its_header(
    wanted: Disposition, path: str
) -> None:
    """Reports that a postmaster sends are no bounces; the journal says by which pattern they passed."""
    patterns = ("Mailer-Daemon@*.peer.example", "an*@")
    exempting = with_sender(wanted, exempt_senders=tuple(map(Pattern.parse, patterns)))
    bare = "<joe@local.example>"
    passed = Disposition.PASS if path == bare else Disposition.REWRITE
    for_sender = met(exempting, path, DAEMON)
    (for_header,) = together(exempting, Clue.REPORT, path)
    for decision, clue, pattern in (
        (for_sender, Clue.SENDER, "mailer-daemon@*.peer.example"),
        (for_header, Clue.REPORT, "an*@"),
    ):
        assert (decision.verdict, decision.disposition, decision.exempt) == (Verdict.NOT_JUDGED, passed, True)
        assert (decision.path.octets.decode(), decision.status) == (bare, None)
        assert decision.reason == f"{clue}; exempt: exempt_senders has {pattern}"


def test_an_exemption_of_senders_is_for_those_senders_in_that_domain_alone() -> None:
    """A good tag is good; bounces without a sender, other senders and other domains are judged as ever."""
    patterns = (Pattern.parse("mailer-daemon@mx.peer.example"),)
    exempting = DomainPolicy(Disposition.REJECT, on_bounce_with_sender=Disposition.REJECT, exempt_senders=patterns)
    judging = replace(exempting, exempt_senders=())
    stage = VerifyingStage(Policy({b"local.example": exempting, b"other.example": judging}))
    assert met(stage, tagged("joe@local.example"), DAEMON).verdict is Verdict.VALID
    signed = parse_mail(b"FROM:<prvs=1328aabbcc=mailer-daemon@mx.peer.example>").path
    assert met(stage, "<joe@local.example>", signed).verdict is Verdict.NOT_JUDGED
    postmaster = parse_mail(b"FROM:<postmaster@mx.peer.example>").path
    for path, reverse_path in (
        ("<joe@local.example>", NULL_REVERSE_PATH),
        ("<joe@local.example>", postmaster),
        ("<joe@other.example>", DAEMON),
    ):
        decision = met(stage, path, reverse_path)
        assert (decision.verdict, decision.disposition) == (Verdict.UNTAGGED, Disposition.REJECT)
    assert together(stage, Clue.REPORT, "<joe@local.example>")[0].disposition is Disposition.REJECT


def test_while_the_day_is_in_doubt_the_header_withholds_nothing() -> None:
    """A sender that is a mail system's is put off, as any forged bounce; other mail passes."""
    stage = DeferringStage(with_sender(Disposition.DISCARD), "the clock is wrong")
    assert met(stage, "<joe@local.example>").as_bounce is None
    assert met(stage, "<joe@local.example>", DAEMON).disposition is Disposition.DEFER
    assert stage.takes_for_bounce(DAEMON)
    marking = DeferringStage(with_sender(Disposition.MARK), "the clock is wrong")
    assert met(marking, "<joe@local.example>").as_bounce is not None
