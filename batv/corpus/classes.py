"""The classes of message of a corpus: what each is, how often it comes, and what must become of it.

What is expected of an address follows from how it was made, here, and from what the site wants for its verdict; the
verifier is never asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from batv.address import Mailbox
from batv.corpus.dialects import DIALECTS, Action, Report
from batv.corpus.letters import letter, ordinary, token
from batv.corpus.manifest import Answered, Ending, Entry, Outcome, Recipient
from batv.corpus.notices import NOTICES
from batv.corpus.replies import AUTOMATIC
from batv.day import SECONDS_A_DAY
from batv.keyring import Role
from batv.tag import ForeignForm, Placement, put_on
from batv.verdict import FORGED, SEVERITY, Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from batv.corpus.dialects import Dialect
    from batv.corpus.ground import Ground
    from batv.keyring import Key
    from batv.policy import DomainPolicy

__all__ = ["CLASSES", "CLIENTS", "UNKNOWN_USER", "Group", "Kind", "Scene"]

UNKNOWN_USER: Final = "unknown-user"
"""Local part of the users whom the sink does not know."""

_OUTCOMES: Final = {
    Disposition.DISCARD: Outcome.DISCARDED,
    Disposition.QUARANTINE: Outcome.QUARANTINED,
    Disposition.REJECT: Outcome.REJECTED,
    Disposition.MARK: Outcome.MARKED,
    Disposition.PASS: Outcome.DELIVERED,
    Disposition.REWRITE: Outcome.DELIVERED,
}
_HOSTS: Final = ("mx.peer.example", "mail.partner.example", "relay.isp.example", "smtp.uni.example", "gw.firm.example")
_REMOTES: Final = ("mx1.away.example", "mail.gone.example", "inbound.far.example", "mx.lost.example")
_PEER_DOMAINS: Final = ("peer.example", "partner.example", "isp.example", "uni.example")
CLIENTS: Final = tuple(f"127.{90 + host // 16}.{host % 16}.{10 + host}" for host in range(48))
"""Client addresses of a corpus: so many that sessions run side by side, and so few that each has several messages."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What one message is made from.

    Attributes:
        ground: the site.
        rng: where all choices come from.
        number: how many messages of the class come before it.
        serial: its place among all messages: makes Message-IDs unique.
        client: the address of the client.
    """

    ground: Ground
    rng: Random
    number: int
    serial: int
    client: str

    @property
    def now(self) -> int:
        """A moment of the day, POSIX seconds; the same for the same serial number."""
        return self.ground.day.number * SECONDS_A_DAY + self.serial * 7919 % SECONDS_A_DAY


@dataclass(frozen=True, slots=True)
class Address:
    """A recipient of ours, as it is made: the address, and what it is worth.

    Attributes:
        mailbox: as RCPT gives it.
        domain: the domain in lower case, whose wishes count.
        verdict: what it is worth to a bounce.
        bare: the address without its tag.
        why: one clause.
    """

    mailbox: Mailbox
    domain: bytes
    verdict: Verdict
    bare: Mailbox
    why: str


Made: TypeAlias = tuple[Entry, bytes | None]
"""An entry without a file, and the message; None for a call-out."""

Maker: TypeAlias = "Callable[[Scene], Made]"
Lacks: TypeAlias = "Callable[[Ground], str | None]"


@dataclass(frozen=True, slots=True)
class Group:
    """Classes that are asked the same question.

    Attributes:
        name: for the report.
        question: what its row answers.
    """

    name: str
    question: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A class.

    Attributes:
        name: as the manifest has it.
        weight: how often it comes, beside the others.
        group: for the report.
        make: makes a message.
        lacks: returns why a site cannot have such messages; None where it can.
    """

    name: str
    weight: float
    group: Group
    make: Maker
    lacks: Lacks


GENUINE: Final = Group("genuine bounces", "lost?")
FORGED_BOUNCES: Final = Group("forged bounces", "let through?")
UNJUDGED: Final = Group("left to others", "judged all the same?")
AUTOMATIC_REPLIES: Final = Group("automatic replies", "lost where the address is plain?")
CALLOUTS: Final = Group("call-outs", "told a lie?")
NULL_MAIL: Final = Group("mail with a null sender", "lost?")
OTHER_SENDERS: Final = Group("bounces with a sender", "touched?")
ORDINARY: Final = Group("ordinary mail", "touched?")
MIXTURES: Final = Group("several recipients", "confused?")
STORMS: Final = Group("storms", "let through?")


class Nature(Enum):
    """What a message is, and how that is known."""

    NULL = "a null sender"
    BOUNCE = "a bounce with a sender, known by that or by its header"
    REPLY = "an automatic reply with a sender, known by its header"
    ORDINARY = "mail with a sender"


# What must become of an address.


def _judging(scene: Scene, address: Address, nature: Nature) -> DomainPolicy | None:
    """Return by what is judged a message of this nature to an address of ours; None: it is not."""
    if nature is Nature.ORDINARY:
        return None
    wish = scene.ground.wish(address.domain)
    return wish if nature is Nature.NULL else wish.with_sender


def _expected(
    scene: Scene,
    address: Address,
    nature: Nature = Nature.NULL,
    *,
    reverse_path: str = "<>",
    ending: Ending = Ending.MESSAGE,
) -> Recipient:
    path = f"<{_text(address.mailbox)}>"
    passed = Disposition.REWRITE if address.bare != address.mailbox else Disposition.PASS
    if nature is not Nature.NULL and _judging(scene, address, nature) is None:
        return Recipient(
            path,
            "",
            Verdict.NOT_A_BOUNCE,
            passed,
            Outcome.DELIVERED,
            f"<{_text(address.bare)}>",
            "the sender is not null",
        )
    if scene.ground.exempt(address.verdict, address.mailbox, scene.client, reverse_path):
        address = replace(address, verdict=Verdict.NOT_JUDGED, why="exempt")
    policy = _judging(scene, address, nature) if address.verdict in FORGED else None
    if policy is not None:
        disposition = policy.disposition(address.verdict)
        if nature is Nature.REPLY and SEVERITY[disposition] > SEVERITY[Disposition.MARK]:
            disposition = Disposition.MARK
    elif address.verdict in {Verdict.NOT_JUDGED, Verdict.RESCUED}:
        disposition = passed
    elif address.verdict is Verdict.FOREIGN:
        disposition = Disposition.REJECT
    else:
        disposition = Disposition.REWRITE
    outcome = _OUTCOMES[disposition]
    if ending is not Ending.MESSAGE and address.verdict is not Verdict.FOREIGN:
        outcome = Outcome.ANSWERED  # refusals of forged bounces come at DATA, so that call-outs hear the truth
    arrives = outcome in {Outcome.DELIVERED, Outcome.MARKED}
    next_hop_path = f"<{_text(address.bare)}>" if arrives else ""
    return Recipient(path, "", address.verdict, disposition, outcome, next_hop_path, address.why)


def _text(mailbox: Mailbox) -> str:
    return mailbox.octets.decode()


# Addresses of each worth.


def _signing(scene: Scene) -> tuple[bytes, Key]:
    domain = scene.rng.choice(scene.ground.domains_with(Role.SIGNING))
    return domain, scene.ground.keys(domain, Role.SIGNING)[0]


def _valid(
    scene: Scene, days_ago: int = 0, placement: Placement | None = None, made: tuple[bytes, Key] | None = None
) -> Address:
    domain, key = made or _signing(scene)
    user = scene.ground.user(scene.rng, domain)
    signed = scene.ground.signed(user, key, scene.ground.day + -days_ago, placement)
    return Address(signed, domain, Verdict.VALID, user, f"signed {_ago(days_ago)} with key {key.number}")


def _ago(days: int) -> str:
    if days < 0:
        return f"on a clock {-days} days ahead" if days < -1 else "on a clock a day ahead"
    return "today" if days == 0 else f"{days} days ago"


def _of_each_day(scene: Scene) -> Address:
    domain, key = _signing(scene)
    return _valid(scene, scene.number % (key.lifetime + 1), None, (domain, key))


def _day_ahead(scene: Scene) -> Address:
    return _valid(scene, -1)


def _retiring(scene: Scene) -> Address:
    ground = scene.ground
    domain = scene.rng.choice(ground.domains_with(Role.RETIRING))
    key = scene.rng.choice(ground.keys(domain, Role.RETIRING))
    last = (key.retired or ground.day) + -1
    first = max(ground.day.number - key.lifetime, (key.signs_from or last).number)
    day = last + -scene.rng.randrange(max(1, last.number - first + 1))
    user = ground.user(scene.rng, domain)
    return Address(ground.signed(user, key, day), domain, Verdict.VALID, user, f"retiring key {key.number}")


def _other_case(scene: Scene) -> Address:
    address = _valid(scene)
    local, domain = address.mailbox.local, address.mailbox.domain
    bare = address.bare
    match scene.number % 3:
        case 0:
            local, bare = local.upper(), Mailbox(bare.local.upper(), bare.domain)
        case 1:
            domain = domain.upper()
            bare = Mailbox(bare.local, domain)
        case _:
            local, domain = local.title(), domain.title()
            bare = Mailbox(_same_letters(bare.local, local), domain)
    return replace(address, mailbox=Mailbox(local, domain), bare=bare, why="letters changed case on the way")


def _same_letters(bare: bytes, tagged: bytes) -> bytes:
    """Return the bare local part as the letters stand in the tagged one."""
    start = tagged.lower().rfind(bare.strip(b'"')) if bare.startswith(b'"') else tagged.lower().rfind(bare)
    found = tagged[start : start + len(bare.strip(b'"'))]
    return b'"' + found + b'"' if bare.startswith(b'"') else found


def _other_placement(scene: Scene) -> Address:
    domain, key = _signing(scene)
    address = _valid(scene, 0, scene.ground.other_placement(domain), (domain, key))
    return replace(address, why="the tag stands where this site does not write it")


def _untagged(scene: Scene) -> Address:
    domain = scene.rng.choice(scene.ground.domains)
    user = scene.ground.user(scene.rng, domain)
    return Address(user, domain, Verdict.UNTAGGED, user, "no tag")


def _random_tag(scene: Scene) -> Address:
    domain, key = _signing(scene)
    user = scene.ground.user(scene.rng, domain)
    guessed = scene.ground.guessed(scene.rng, user, key, scene.ground.day)
    return Address(guessed, domain, Verdict.BAD_SIGNATURE, user, "a signature made up")


def _other_user(scene: Scene) -> Address:
    domain, key = _signing(scene)
    ground = scene.ground
    owner = ground.user(scene.rng, domain)
    user = next(user for user in iter(lambda: ground.user(scene.rng, domain), None) if user != owner)
    tag = ground.tag_of(owner, key, ground.day)
    return Address(ground.put_on(user, tag), domain, Verdict.BAD_SIGNATURE, user, "the tag of another user")


def _other_domain(scene: Scene) -> Address:
    domain, key = _signing(scene)
    ground = scene.ground
    others = [other for other in (*ground.domains, b"elsewhere.example") if other != domain]
    user = ground.user(scene.rng, domain)
    tag = ground.tag_of(Mailbox(user.local, scene.rng.choice(others)), key, ground.day)
    return Address(ground.put_on(user, tag), domain, Verdict.BAD_SIGNATURE, user, "the tag of another domain")


_ATOM: Final = frozenset(b"#$&'*+-/0123456789=?ABCDEFGHIJKLMNOPQRSTUVWXYZ^_`abcdefghijklmnopqrstuvwxyz{|}~")
"""What may stand in a local part without quotes and tells no relay anything."""

_CASE_BIT: Final = 0x20


def _bit_flipped(scene: Scene) -> Address:
    """One bit of one octet, going through all positions of the local part, then through other bits."""
    domain, key = _signing(scene)
    ground = scene.ground
    user = ground.user(scene.rng, domain)
    while user.quoted:
        user = ground.user(scene.rng, domain)
    local = ground.signed(user, key, ground.day, Placement.PREFIX).local
    # "prvs=" or "prvs2=", then K, DDD, the signature, and "=".
    type_end = local.index(b"=") + 1
    value_end = local.index(b"=", type_end)
    position = scene.number % len(local)
    old = local[position]
    bits = [1 << shift for shift in range(7) if old ^ (1 << shift) in _ATOM]
    if chr(old).isalpha():
        bits.remove(_CASE_BIT)  # another case is no other address
    new = old ^ bits[scene.number // len(local) % len(bits)]
    changed = local[:position] + bytes((new,)) + local[position + 1 :]
    mailbox = Mailbox(changed, domain)
    why = f"bit {(old ^ new).bit_length() - 1} of octet {position} flipped"
    if position < type_end:
        return Address(mailbox, domain, Verdict.UNTAGGED, mailbox, why)
    digits = b"0123456789" if position < type_end + 4 else b"0123456789abcdefABCDEF"
    legal = b"=" if position == value_end else digits
    if position <= value_end and new not in legal:
        return Address(mailbox, domain, Verdict.MALFORMED, mailbox, why)
    bare = Mailbox(changed[value_end + 1 :], domain)
    if position == type_end and not ground.verdict_of_number(domain, new - ord("0")):
        return Address(mailbox, domain, Verdict.UNKNOWN_KEY, bare, why)
    return Address(mailbox, domain, Verdict.BAD_SIGNATURE, bare, why)


def _expired(scene: Scene) -> Address:
    domain, key = _signing(scene)
    days = key.longest + 1 + (0 if scene.number % 3 == 0 else scene.rng.randrange(980 - 2 * key.longest))
    address = _valid(scene, days, None, (domain, key))
    return replace(address, verdict=Verdict.EXPIRED)


def _future(scene: Scene) -> Address:
    domain, key = _signing(scene)
    days = key.step + 1 + (0 if scene.number % 3 == 0 else scene.rng.randrange(980 - 2 * key.longest))
    address = _valid(scene, -days, None, (domain, key))
    return replace(address, verdict=Verdict.EXPIRED)


def _revoked(scene: Scene) -> Address:
    ground = scene.ground
    domain = scene.rng.choice(ground.domains_with(Role.REVOKED))
    key = scene.rng.choice(ground.keys(domain, Role.REVOKED))
    user = ground.user(scene.rng, domain)
    signed = ground.signed(user, key, ground.day)
    return Address(signed, domain, Verdict.UNKNOWN_KEY, user, f"revoked key {key.number}")


def _unknown_key(scene: Scene) -> Address:
    ground = scene.ground
    domain = scene.rng.choice([domain for domain in _with_unused(ground) if ground.keys(domain, Role.SIGNING)])
    number = scene.rng.choice(ground.unused_numbers(domain))
    user = ground.user(scene.rng, domain)
    key = ground.keys(domain, Role.SIGNING)[0]
    # Every other one with the secret of a key that the site has: the number is part of what is signed.
    stranger = replace(key, number=number) if scene.number % 2 else ground.stranger(
        scene.rng, number, key.lifetime, ground.day
    )  # fmt: skip
    signed = ground.signed(user, stranger, ground.day)
    return Address(signed, domain, Verdict.UNKNOWN_KEY, user, f"no ring has key {number}")


def _nested(scene: Scene) -> Address:
    domain, key = _signing(scene)
    ground = scene.ground
    user = ground.user(scene.rng, domain)
    inner = put_on(user, ground.tag_of(user, key, ground.day), Placement.PREFIX)
    if scene.number % 2:
        outer = put_on(inner, ground.tag_of(user, key, ground.day), Placement.PREFIX)
        return Address(outer, domain, Verdict.BAD_SIGNATURE, inner, "a good tag twice")
    guessed = ground.tag_of(inner, key, ground.day)
    guessed = replace(guessed, signature=b"%06x" % (int(guessed.signature, 16) ^ scene.rng.randrange(1, 1 << 24)))
    return Address(put_on(inner, guessed, Placement.PREFIX), domain, Verdict.BAD_SIGNATURE, inner,
                   "a made-up tag around a good one")  # fmt: skip


def _malformed(scene: Scene) -> Address:
    domain, key = _signing(scene)
    ground = scene.ground
    user = ground.user(scene.rng, domain)
    while user.quoted:
        user = ground.user(scene.rng, domain)
    # Made up as a whole: with a digit too many, a good tag would still tell its signature to whoever reads a journal.
    tag = b"%d%b%06x" % (key.number, ground.day.stamp, scene.rng.randrange(1 << 24))
    value = (tag[:-1], tag + b"0", b"x" + tag[1:], tag[:4] + b"zz" + tag[6:], b"")[scene.number % 5]
    mailbox = Mailbox(b"prvs=%b=%b" % (value, user.local), domain)
    return Address(mailbox, domain, Verdict.MALFORMED, mailbox, "looks like a tag, is none")


_FORMS: Final = {
    ForeignForm.SRS: b"SRS0=aXb1=3K=other.example=joe",
    ForeignForm.EXCHANGE_SRS: b"joe+SRS=aXb1=3K=other.example=ann",
    ForeignForm.CISCO: b"prvs=joe=3789ab12cd",
    ForeignForm.BARRACUDA: b"btv1==789ab12cd34==joe",
    ForeignForm.SPARKPOST: b"msprvs1=20415aBcDe=joe",
}


def _foreign_form(scene: Scene, forms: Sequence[ForeignForm]) -> Address:
    form = forms[scene.number % len(forms)]
    domain = scene.rng.choice(scene.ground.domains)
    mailbox = Mailbox(_FORMS[form], domain)
    if form in scene.ground.wish(domain).leave_forms:
        return Address(mailbox, domain, Verdict.NOT_JUDGED, mailbox, f"leave_forms has {form.value}")
    verdict = Verdict.MALFORMED if form is ForeignForm.CISCO else Verdict.UNTAGGED
    return Address(mailbox, domain, verdict, mailbox, f"leave_forms has no {form.value}")


def _too_long(scene: Scene) -> Address:
    domain = scene.rng.choice(scene.ground.domains)
    mailbox = Mailbox(b"a-very-long-name." + token(scene.rng, 36, "abcdefghij").encode(), domain)
    if scene.ground.wish(domain).refuse_too_long:
        return Address(mailbox, domain, Verdict.UNTAGGED, mailbox, "too long for a tag, so that no mail came from it")
    return Address(mailbox, domain, Verdict.NOT_JUDGED, mailbox, "too long for a tag")


def _not_ours(scene: Scene) -> Address:
    mailbox = Mailbox(b"someone", b"elsewhere.example")
    if scene.ground.policy.for_domain(mailbox.domain) or scene.ground.policy.relays(mailbox.domain):
        mailbox = Mailbox(b"someone", b"nowhere.%s.example" % token(scene.rng, 8, "abcdef").encode())
    return Address(mailbox, mailbox.domain, Verdict.FOREIGN, mailbox, "a domain that is not ours")


def _relayed_domain(scene: Scene) -> Address:
    domain = scene.rng.choice(sorted(name for name in scene.ground.policy.relay_domains if name.isascii()))
    mailbox = Mailbox(b"someone", domain)
    return Address(mailbox, domain, Verdict.NOT_JUDGED, mailbox, "relay_domains has the domain")


# Messages.


def _report(scene: Scene, to: str, action: Action) -> Report:
    rng = scene.rng
    remote = rng.choice(_REMOTES)
    recipient = f"{rng.choice(('bob', 'eva.long', 'info', 'nobody', 'x12'))}@{remote.partition('.')[2]}"
    status, reply = _ANSWERS[action][rng.randrange(len(_ANSWERS[action]))]
    sent = scene.now - rng.randrange(600, 6 * 3600)
    return Report(
        rng,
        action,
        to,
        recipient,
        letter(rng, _header_address(to), recipient, sent),
        rng.choice(_HOSTS),
        remote,
        f"192.0.2.{rng.randrange(1, 255)}",
        status,
        reply.format(recipient=recipient),
        scene.now,
        f"{scene.serial:07d}.{token(rng, 8)}",
    )


def _header_address(to: str) -> str:
    """Return the address that the author has put into From: never signed, and no quotes to be careful about."""
    local, _, domain = to.rpartition("@")
    return f"{'joe' if not local.isalnum() else local}@{domain}"


_ANSWERS: Final = {
    Action.FAILED: (
        ("5.1.1", "550 5.1.1 <{recipient}>: Recipient address rejected: User unknown"),
        ("5.2.2", "552 5.2.2 <{recipient}>: mailbox full"),
        ("5.7.1", "554 5.7.1 Message refused by policy"),
    ),
    Action.DELAYED: (("4.4.1", "451 4.4.1 Connection timed out"), ("4.2.0", "450 4.2.0 <{recipient}>: Greylisted")),
    Action.RELAYED: (("2.0.0", "250 2.0.0 Ok: queued as 4F1A22"),),
    Action.EXPANDED: (("2.0.0", "250 2.0.0 Ok"),),
    Action.DELIVERED: (("2.0.0", "250 2.0.0 Ok: queued as 4F1A22"),),
}
_BY_ACTION: Final = {action: tuple(dialect for dialect in DIALECTS if action in dialect.actions) for action in Action}


def _dsn(
    scene: Scene, kind: str, addresses: Sequence[Address], action: Action = Action.FAILED, reverse_path: str = "<>"
) -> tuple[Entry, bytes]:
    """Return a bounce to these addresses, in the words of one system or another."""
    dialects: tuple[Dialect, ...] = _BY_ACTION[action]
    dialect = dialects[scene.number % len(dialects)]
    report = _report(scene, _text(addresses[0].mailbox), action)
    octets = dialect.write(report)
    nature = Nature.NULL if reverse_path == "<>" else Nature.BOUNCE
    recipients = [_expected(scene, address, nature, reverse_path=reverse_path) for address in addresses]
    return _entry(
        scene, kind, dialect.name, helo=report.host, reverse_path=reverse_path, recipients=recipients, octets=octets
    ), octets


def _entry(  # noqa: PLR0913 -- the fields of a line of the manifest
    scene: Scene,
    kind: str,
    dialect: str,
    *,
    helo: str,
    reverse_path: str,
    recipients: Sequence[Recipient],
    octets: bytes,
) -> Entry:
    eight_bit = not octets.isascii()
    parameters = []
    if scene.rng.random() < 0.5:  # noqa: PLR2004 -- half of all senders announce the size
        parameters.append(f"SIZE={len(octets)}")
    if eight_bit:
        parameters.append("BODY=8BITMIME")
    return Entry("", kind, dialect, scene.client, helo, reverse_path, " ".join(parameters), tuple(recipients))


def _bounce(name: str, address: Callable[[Scene], Address], action: Action = Action.FAILED) -> Maker:
    return lambda scene: _dsn(scene, name, (address(scene),), action)


def _automatic(
    name: str, kinds: Sequence[str], address: Callable[[Scene], Address], *, with_sender: bool = False
) -> Maker:
    def make(scene: Scene) -> tuple[Entry, bytes]:
        found = address(scene)
        what = kinds[scene.number % len(kinds)]
        report = _report(scene, _text(found.mailbox), Action.DELIVERED)
        octets = AUTOMATIC[what](report)
        nature = Nature.NULL
        if with_sender:
            nature = Nature.ORDINARY if what == "list" else Nature.REPLY  # a list's header may be that of any mail
        answers = None
        if found.verdict is Verdict.UNTAGGED:
            answers = _answered(report, found.bare, report.recipient)
        reverse_path = f"<{report.recipient}>" if with_sender else "<>"
        if _rescued(scene, found, nature, reverse_path):
            found = replace(found, verdict=Verdict.RESCUED, why="answers what this user has sent")
        entry = _entry(
            scene,
            name,
            what,
            helo=report.host,
            reverse_path=reverse_path,
            recipients=(_expected(scene, found, nature, reverse_path=reverse_path),),
            octets=octets,
        )
        return replace(entry, answers=answers), octets

    return make


def _answered(report: Report, sender: Mailbox, recipient: str) -> Answered:
    return Answered(report.letter.message_id.strip("<>"), _text(sender), recipient)


_FORGETFUL: Final = frozenset({"domino", "groupwise", "plain"})
"""Dialects that do not always say which message they are about."""

_NAMING: Final = (
    *AUTOMATIC.items(),
    *((each.name, each.write) for each in DIALECTS if each.name not in _FORGETFUL),
)
"""Who names the Message-ID of what is answered, by name."""


def _harvested(scene: Scene) -> tuple[Entry, bytes]:
    """Return what names mail of ours out of an archive: of another user's, or not to the party that it speaks of."""
    found = _untagged(scene)
    ground = scene.ground
    report = _report(scene, _text(found.mailbox), Action.FAILED)
    if scene.number % 2:
        owner = next(user for user in iter(lambda: ground.user(scene.rng, found.domain), None) if user != found.bare)
        answers, why = _answered(report, owner, report.recipient), "names mail of another user"
    else:
        answers, why = _answered(report, found.bare, "subscribers@elsewhere.example"), "names mail to another party"
    dialect, write = _NAMING[scene.number // 2 % len(_NAMING)]
    octets = write(report)
    entry = _entry(
        scene,
        "forged-harvested-id",
        dialect,
        helo=report.host,
        reverse_path="<>",
        recipients=(_expected(scene, replace(found, why=why)),),
        octets=octets,
    )
    return replace(entry, answers=answers), octets


def _rescued(scene: Scene, address: Address, nature: Nature, reverse_path: str) -> bool:
    exempt = scene.ground.exempt(address.verdict, address.mailbox, scene.client, reverse_path)
    if address.verdict is not Verdict.UNTAGGED or exempt:
        return False
    policy = _judging(scene, address, nature)
    return policy is not None and policy.rescue and policy.disposition(Verdict.UNTAGGED) is not Disposition.PASS


def _notice(scene: Scene) -> tuple[Entry, bytes]:
    found = _untagged(scene)
    what = tuple(NOTICES)[scene.number % len(NOTICES)]
    report = _report(scene, _text(found.mailbox), Action.FAILED)
    octets = NOTICES[what](report)
    recipient = _expected(scene, found, Nature.ORDINARY)
    reverse_path = f"<bounces-{scene.serial}@{report.host}>"
    return _entry(
        scene,
        "notice",
        what,
        helo=report.host,
        reverse_path=reverse_path,
        recipients=(recipient,),
        octets=octets,
    ), octets


def _callout(name: str, address: Callable[[Scene], Address]) -> Maker:
    def make(scene: Scene) -> tuple[Entry, None]:
        ending = (Ending.QUIT, Ending.RSET)[scene.number % 2]
        recipient = _expected(scene, address(scene), ending=ending)
        host = scene.rng.choice(_HOSTS)
        return Entry("", name, "", scene.client, host, "<>", "", (recipient,), ending), None

    return make


def _callout_unknown(scene: Scene) -> tuple[Entry, None]:
    def unknown(scene: Scene) -> Address:
        domain = scene.rng.choice(scene.ground.domains)
        user = Mailbox(f"{UNKNOWN_USER}-{scene.serial}".encode(), domain)
        return Address(user, domain, Verdict.UNTAGGED, user, "the next hop does not know the user")

    entry, _ = _callout("callout-unknown-user", unknown)(scene)
    return replace(entry, recipients=(replace(entry.recipients[0], outcome=Outcome.REJECTED),)), None


def _from(name: str, senders: Sequence[str], address: Callable[[Scene], Address]) -> Maker:
    def make(scene: Scene) -> tuple[Entry, bytes]:
        sender = scene.rng.choice(senders).format(domain=scene.rng.choice(_PEER_DOMAINS))
        return _dsn(scene, name, (address(scene),), Action.FAILED, f"<{sender}>")

    return make


def _ordinary(scene: Scene) -> tuple[Entry, bytes]:
    rng = scene.rng
    sender = f"{rng.choice(('ann', 'no-reply', 'office', 'm.mustermann'))}@{rng.choice(_PEER_DOMAINS)}"
    count = 1 + (rng.random() < 0.2)  # noqa: PLR2004 -- one in five goes to two users
    addresses = [_untagged(scene) for _ in range(count)]
    if rng.random() < 0.1:  # noqa: PLR2004 -- one in ten answers a signed sender
        addresses[0] = _valid(scene)
    unique = {address.bare: address for address in addresses}
    found = ordinary(rng, sender, _header_address(_text(addresses[0].bare)), scene.now - rng.randrange(60, 3600))
    octets = found.octets.replace(found.message_id.encode(), f"<{scene.serial:07d}.{token(rng, 8)}@{sender}>".encode())
    if rng.random() < 0.05:  # noqa: PLR2004 -- one in twenty claims what only a proxy may say
        octets = b"X-Batv-Status: valid\r\n" + octets
    recipients = [_expected(scene, address, Nature.ORDINARY) for address in unique.values()]
    entry = _entry(
        scene, "ordinary", "", helo=rng.choice(_HOSTS), reverse_path=f"<{sender}>", recipients=recipients, octets=octets
    )
    if rng.random() < 0.2:  # noqa: PLR2004 -- one in five asks for reports
        recipients = [
            replace(each, parameters=f"NOTIFY=FAILURE,DELAY ORCPT=rfc822;{sender}") for each in entry.recipients
        ]
        parameters = f"{entry.parameters} RET=HDRS ENVID=QQ{scene.serial}".strip()
        entry = replace(entry, parameters=parameters, recipients=tuple(recipients))
    return entry, octets


def _null_mail(scene: Scene) -> tuple[Entry, bytes]:
    rng = scene.rng
    address = _untagged(scene)
    sender = f"newsletter@{rng.choice(_PEER_DOMAINS)}"
    found = ordinary(rng, sender, _header_address(_text(address.bare)), scene.now)
    octets = found.octets.replace(found.message_id.encode(), f"<{scene.serial:07d}.{token(rng, 8)}@{sender}>".encode())
    recipient = replace(_expected(scene, address), why="real mail, sent with NOTIFY=NEVER through an old relay")
    return _entry(
        scene,
        "null-sender-mail",
        "",
        helo=rng.choice(_HOSTS),
        reverse_path="<>",
        recipients=(recipient,),
        octets=octets,
    ), octets


def _mixture(scene: Scene) -> tuple[Entry, bytes]:
    """Return a bounce to good and forged addresses of one domain at once; each is judged by itself."""
    makers = (_valid, _random_tag, _other_user, _untagged, _too_long, _not_ours, _expired)
    first = _valid(scene)
    addresses = {first.bare.octets: first}
    while len(addresses) < 2 + scene.number % 4:
        found = scene.rng.choice(makers)(scene)
        # One wish for all: what reject does beside good recipients is then settled.
        if found.domain == first.domain or found.verdict is Verdict.FOREIGN:
            addresses.setdefault(found.bare.octets, found)
    chosen = list(addresses.values())
    scene.rng.shuffle(chosen)
    entry, octets = _dsn(scene, "mixture", chosen)
    # With a good recipient beside it, a forged one cannot be refused any more: it is discarded. One that the content
    # could rescue has a transaction of its own.
    beside = FORGED - {Verdict.UNTAGGED} if scene.ground.wish(first.domain).rescue else FORGED
    recipients = tuple(
        replace(each, outcome=Outcome.DISCARDED, why=f"{each.why}; beside a good one, so not refused")
        if each.disposition is Disposition.REJECT and each.verdict in beside
        else each
        for each in entry.recipients
    )
    return replace(entry, recipients=recipients), octets


def _storm(scene: Scene) -> tuple[Entry, bytes]:
    """Return one of many bounces to the same victim, whose address somebody has forged."""
    domain = scene.ground.domains[0]
    victim = Mailbox(b"victim", domain)
    return _dsn(scene, "storm", (Address(victim, domain, Verdict.UNTAGGED, victim, "no tag"),))


def _postmaster(scene: Scene) -> tuple[Entry, bytes]:
    found = _untagged(scene)
    entry, octets = _dsn(scene, "unjudged-postmaster", (found,))
    path = scene.rng.choice(("<Postmaster>", "<postmaster>"))
    recipient = Recipient(
        path, "", Verdict.NOT_JUDGED, Disposition.PASS, Outcome.DELIVERED, path, "postmaster without a domain"
    )
    return replace(entry, recipients=(recipient,)), octets


# What a site must have for a class.


def _nothing(ground: Ground) -> None:
    del ground


def _needs_signing(ground: Ground) -> str | None:
    return None if ground.domains_with(Role.SIGNING) else "no key signs on that day"


def _needs_retiring(ground: Ground) -> str | None:
    return None if ground.domains_with(Role.RETIRING) else "no key is retiring"


def _needs_revoked(ground: Ground) -> str | None:
    return None if ground.domains_with(Role.REVOKED) else "no key was revoked"


def _with_unused(ground: Ground) -> list[bytes]:
    return [domain for domain in ground.domains if ground.unused_numbers(domain)]


def _needs_unused(ground: Ground) -> str | None:
    if not any(ground.keys(domain, Role.SIGNING) for domain in _with_unused(ground)):
        return "all ten key numbers are taken"
    return _needs_signing(ground)


def _needs_relay_domains(ground: Ground) -> str | None:
    return None if any(name.isascii() for name in ground.policy.relay_domains) else "there are no relay_domains"


_MAILER_DAEMON: Final = ("MAILER-DAEMON@{domain}", "mailer-daemon@{domain}")
_POSTMASTER: Final = ("postmaster@{domain}", "Postmaster@{domain}")
_TAGGED_SENDER: Final = ("prvs=3789ab12cd=mailer-daemon@{domain}", "prvs=0123abcdef=postmaster@{domain}")
_ROBOT: Final = ("robot@{domain}", "no-reply@{domain}", "bounce+4711@{domain}")


def _kinds() -> tuple[Kind, ...]:
    kinds = [
        Kind(f"genuine-{action.value}", 4 if action is Action.FAILED else 1.5, GENUINE,
             _bounce(f"genuine-{action.value}", _valid, action), _needs_signing)
        for action in Action
    ]  # fmt: skip
    genuine: tuple[tuple[str, Callable[[Scene], Address], Lacks], ...] = (
        ("genuine-each-day", _of_each_day, _needs_signing),
        ("genuine-day-ahead", _day_ahead, _needs_signing),
        ("genuine-retiring-key", _retiring, _needs_retiring),
        ("genuine-other-case", _other_case, _needs_signing),
        ("genuine-other-placement", _other_placement, _needs_signing),
    )
    kinds += [Kind(name, 3, GENUINE, _bounce(name, address), lacks) for name, address, lacks in genuine]
    forged: tuple[tuple[str, float, Callable[[Scene], Address], Lacks], ...] = (
        ("forged-untagged", 8, _untagged, _nothing),
        ("forged-random-tag", 3, _random_tag, _needs_signing),
        ("forged-other-user", 3, _other_user, _needs_signing),
        ("forged-other-domain", 3, _other_domain, _needs_signing),
        ("forged-bit-flipped", 6, _bit_flipped, _needs_signing),
        ("forged-expired", 3, _expired, _needs_signing),
        ("forged-revoked-key", 2, _revoked, _needs_revoked),
        ("forged-unknown-key", 2, _unknown_key, _needs_unused),
        ("forged-future-day", 2, _future, _needs_signing),
        ("forged-nested-tags", 2, _nested, _needs_signing),
        ("forged-malformed-tag", 2, _malformed, _needs_signing),
        ("forged-to-others", 1, _not_ours, _nothing),
    )
    kinds += [
        Kind(name, weight, FORGED_BOUNCES, _bounce(name, address), lacks) for name, weight, address, lacks in forged
    ]
    kinds.append(Kind("forged-harvested-id", 2, FORGED_BOUNCES, _harvested, _nothing))
    others = [form for form in ForeignForm if form is not ForeignForm.SRS]
    unjudged: tuple[tuple[str, Callable[[Scene], Address], Lacks], ...] = (
        ("unjudged-srs", lambda scene: _foreign_form(scene, (ForeignForm.SRS,)), _nothing),
        ("unjudged-other-forms", lambda scene: _foreign_form(scene, others), _nothing),
        ("unjudged-too-long", _too_long, _nothing),
        ("unjudged-relay-domain", _relayed_domain, _needs_relay_domains),
    )
    kinds += [Kind(name, 1, UNJUDGED, _bounce(name, address), lacks) for name, address, lacks in unjudged]
    kinds.append(Kind("unjudged-postmaster", 1, UNJUDGED, _postmaster, _nothing))
    for what in AUTOMATIC:
        name = f"automatic-{what}"
        kinds.append(Kind(name, 1, AUTOMATIC_REPLIES, _automatic(name, (what,), _valid), _needs_signing))
        name = f"automatic-{what}-plain"
        kinds.append(Kind(name, 1, AUTOMATIC_REPLIES, _automatic(name, (what,), _untagged), _nothing))
    callouts: tuple[tuple[str, Callable[[Scene], Address], Lacks], ...] = (
        ("callout-tagged", _valid, _needs_signing),
        ("callout-plain", _untagged, _nothing),
        ("callout-forged", _random_tag, _needs_signing),
    )
    kinds += [Kind(name, 1, CALLOUTS, _callout(name, address), lacks) for name, address, lacks in callouts]
    kinds.append(Kind("callout-unknown-user", 1, CALLOUTS, _callout_unknown, _nothing))
    kinds.append(Kind("null-sender-mail", 2, NULL_MAIL, _null_mail, _nothing))
    for name, senders in (
        ("mailer-daemon", _MAILER_DAEMON), ("postmaster", _POSTMASTER), ("tagged-sender", _TAGGED_SENDER),
        ("robot", _ROBOT),
    ):  # fmt: skip
        kinds.append(Kind(f"sender-{name}", 1, OTHER_SENDERS, _from(f"sender-{name}", senders, _valid), _needs_signing))
        plain_name = f"sender-{name}-plain"
        kinds.append(Kind(plain_name, 1, OTHER_SENDERS, _from(plain_name, senders, _untagged), _nothing))
    answering: tuple[tuple[str, Callable[[Scene], Address], Lacks], ...] = (
        ("sender-reply", _valid, _needs_signing),
        ("sender-reply-plain", _untagged, _nothing),
    )
    for name, address, lacks in answering:
        make = _automatic(name, tuple(AUTOMATIC), address, with_sender=True)
        kinds.append(Kind(name, 2, OTHER_SENDERS, make, lacks))
    kinds.append(Kind("ordinary", 16, ORDINARY, _ordinary, _nothing))
    kinds.append(Kind("notice", 4, ORDINARY, _notice, _nothing))
    kinds.append(Kind("mixture", 4, MIXTURES, _mixture, _needs_signing))
    kinds.append(Kind("storm", 12, STORMS, _storm, _nothing))
    return tuple(kinds)


CLASSES: Final = {kind.name: kind for kind in _kinds()}
"""All classes, by name, in the order of the report."""
