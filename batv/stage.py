"""The waist: a path goes in, a Decision comes out.

Proxies, and any other door to the same judgement, ask a Stage about each sender and each recipient, and once more about
a recipient that the content decides about. The outbound stage signs reverse paths, the inbound one verifies forward
paths. A stage holds no state: keys and the day are arguments.

Rules:

1. The outbound stage changes reverse paths only, the inbound one forward paths only.
2. Mail that is not a bounce is never refused for want of a tag; one tag is taken off whatever it is worth. What has a
   sender is a bounce only where the domain wants it judged, and then for its sender or for its header. An automatic
   reply is none: it is marked at most.
3. What the outbound stage leaves unsigned for the address alone, the inbound stage does not judge; where addresses that
   are too long for a tag are remembered, only those that are. Where client or recipient decided, the address does not
   tell: the content decides about bounces to those that are remembered.
4. A list of senders of backscatter can make worse what a bounce without a tag gets, never better, and nothing else.
5. A message that turns out to be a bounce by its header is one for all its recipients, who were taken by then: none
   of them meets more than the mildest of what they would meet alone.
6. The next hop trusts us, so the inbound stage lets nothing through that is not for a domain of ours, and no
   address by which a relay is told to send a message elsewhere, before or after the tag is taken off.

Source: draft-levine-smtp-batv-01 sections 3 and 5; RFC 5321 section 3.6.1 on relaying.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from batv.bounce import clue_of_sender
from batv.errors import NoSigningKeyError
from batv.rescue import ANSWERED, IN_OUR_NAME, Found
from batv.signing import DEFAULT_STYLE, Obstacle, Style, has_routing_characters, obstacle, sign_with, verify_any
from batv.tag import tag_and_rest
from batv.verdict import FORGED, SEVERITY, STATUS_BY_VERDICT, Decision, Disposition, Verdict
from batv.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batv.address import ForwardPath, Mailbox, ReversePath
    from batv.bounce import Clue
    from batv.budget import Account
    from batv.day import Day
    from batv.keyring import KeyRings
    from batv.policy import DomainPolicy, Policy
    from batv.rescue import Claims

__all__ = [
    "NOT_ON_RECORD",
    "OVERDRAWN",
    "Client",
    "DeferringStage",
    "SigningStage",
    "Stage",
    "VerifyingStage",
    "judged_together",
]


@dataclass(frozen=True, slots=True)
class Client:
    """Who speaks to the proxy.

    Attributes:
        address: its IP address; empty for a Unix socket.
        name: what it called itself in EHLO or HELO.
        local: whether a server in front that is believed says that the message was submitted there.
        listed: the list of senders of backscatter that has its address; empty if none has, or none was asked.
    """

    address: str
    name: str = ""
    local: bool = False
    listed: str = ""


class Stage(Protocol):
    """What a proxy asks about each path."""

    @property
    def marks(self) -> bool:
        """Whether messages get status fields, so that fields from outside must go."""

    def sender(self, path: ReversePath, client: Client, rings: KeyRings, day: Day) -> Decision[ReversePath]:
        """Return what becomes of a reverse path."""

    def takes_for_bounce(self, path: ReversePath) -> bool:
        """Whether mail with a reverse path is a bounce for that alone."""

    def wants_recipient(self, path: ReversePath, client: Client, day: Day) -> bool:
        """Whether what becomes of a reverse path that is signed could be another thing for some recipients."""

    def sender_for(
        self, path: ReversePath, recipient: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ReversePath]:
        """Return what becomes of a reverse path in mail to a recipient; both as the client gave them."""

    def recipient(
        self, reverse_path: ReversePath, path: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        """Return what becomes of a forward path; `reverse_path` is the one the client gave."""

    def recalled(self, decision: Decision[ForwardPath], *, on_record: bool) -> Decision[ForwardPath]:
        """Return what becomes of a recipient about whom the record of addresses with unsigned mail was to be asked.

        Args:
            decision: what was said of the recipient.
            on_record: whether mail of the address has left unsigned, or may have.
        """

    def overdrawn(self, decision: Decision[ForwardPath], account: Account) -> Decision[ForwardPath]:
        """Return what becomes of a recipient whose tag is good, and has had more bounces than its mail should have.

        Args:
            decision: what was said of the recipient.
            account: what was sent with the tag, and what has come back.
        """

    def content(self, decision: Decision[ForwardPath], claims: Claims, found: Found) -> Decision[ForwardPath]:
        """Return what becomes of a recipient that was undecided, or of whom it goes on record what the message answers.

        Args:
            decision: what was said of the recipient.
            claims: what the message says that it answers.
            found: what the sent ledger knows of that.
        """


NOT_ON_RECORD: Final = "too long for one, and no mail of it is on record"
"""In the reason for which an address too long for a tag is judged."""

OVERDRAWN: Final = "more bounces than its mail should have"
"""In the reason for which the content decides about a bounce with a good tag."""

_LEFT_UNSIGNED: Final = "unsigned: "

# An enum takes its time to find a member, so it is asked once.
_TOO_LONG: Final = Obstacle.TOO_LONG
_VALID: Final = Verdict.VALID
_REWRITE: Final = Disposition.REWRITE
_MARK: Final = Disposition.MARK


@dataclass(frozen=True, slots=True)
class SigningStage:
    """The outbound stage: signs the reverse paths of our domains.

    Attributes:
        policy: which domains are ours.
        style: how tags are written.
        local_only: whether only what was submitted at a server in front is signed: whoever can make us sign what came
            from the Internet has addresses signed at will.
    """

    policy: Policy
    style: Style = DEFAULT_STYLE
    local_only: bool = False

    @property
    def marks(self) -> bool:
        """Whether messages get status fields: what goes out gets none."""
        return False

    def sender(self, path: ReversePath, client: Client, rings: KeyRings, day: Day) -> Decision[ReversePath]:
        """Return the signed reverse path, or the path as it came and why.

        DEFER where no key signs: mail that went out unsigned could not get its bounces back. REJECT where the site
        wants no mail from an address that is too long to be signed.
        """
        mailbox = path.mailbox
        if mailbox is None:
            return self._unsigned(path, "null sender")
        domain = self.policy.for_domain(mailbox.domain)
        if domain is None:
            return self._unsigned(path, f"{_text(mailbox.domain)} is not a domain of ours")
        if self.local_only and not client.local:
            return self._unsigned(path, "no XFORWARD SOURCE=LOCAL, and require_local_source is set")
        form = domain.left_alone(mailbox)
        if form is not None:
            return self._unsigned(path, f"leave_forms has {form.value}")
        if self.policy.exemptions.every:
            exemption = self.policy.exemptions.of_mail(mailbox, client.address, day)
            if exemption is not None:
                return self._exempt(path, str(exemption))
        style = domain.style or self.style
        hindrance = obstacle(mailbox, style.scheme)
        if hindrance is _TOO_LONG and domain.refuse_too_long:
            return Decision(Verdict.UNSIGNED, Disposition.REJECT, path, _LEFT_UNSIGNED + _TOO_LONG.value)
        try:
            ring = rings.ring_for(mailbox.domain)
            if hindrance is not None:
                recall = hindrance is _TOO_LONG and domain.remember_too_long
                return self._unsigned(path, hindrance.value, recall=recall)
            key = ring.signing_key(day)
        except NoSigningKeyError as error:
            return Decision(Verdict.UNSIGNED, Disposition.DEFER, path, str(error))
        signed = path.with_mailbox(sign_with(mailbox, key, day, style))
        return Decision(Verdict.SIGNED, Disposition.REWRITE, signed, f"signed with key {key.number}", key.number)

    def takes_for_bounce(self, path: ReversePath) -> bool:
        """Whether the reverse path is null."""
        return path.null

    def wants_recipient(self, path: ReversePath, client: Client, day: Day) -> bool:
        """Whether the site has exemptions for recipients that this mail could have."""
        return path.mailbox is not None and self.policy.wants_recipient(path.mailbox, client.address, day)

    def sender_for(
        self, path: ReversePath, recipient: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ReversePath]:
        """Return what `sender` returns, or the path as it came where the site exempts the recipient.

        `<Postmaster>` without a domain is nobody that could be exempt.
        """
        decision = self.sender(path, client, rings, day)
        if decision.verdict is not Verdict.SIGNED or path.mailbox is None or recipient.mailbox is None:
            return decision
        why = self.policy.exempt_for(path.mailbox, client.address, recipient.mailbox, day)
        return decision if why is None else self._exempt(path, why)

    def recipient(
        self, reverse_path: ReversePath, path: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        """Return the forward path as it came: the outbound side judges nobody."""
        del reverse_path, client, rings, day
        return Decision(Verdict.NOT_A_BOUNCE, Disposition.PASS, path, "outbound")

    def recalled(self, decision: Decision[ForwardPath], *, on_record: bool) -> Decision[ForwardPath]:
        """Return the decision: the outbound side judges nobody."""
        del on_record
        return decision

    def overdrawn(self, decision: Decision[ForwardPath], account: Account) -> Decision[ForwardPath]:
        """Return the decision: the outbound side judges nobody."""
        del account
        return decision

    def content(self, decision: Decision[ForwardPath], claims: Claims, found: Found) -> Decision[ForwardPath]:
        """Return the decision: the outbound side looks into no message."""
        del claims, found
        return decision

    def _exempt(self, path: ReversePath, why: str) -> Decision[ReversePath]:
        return self._unsigned(path, why, recall=self.policy.recalls_exempt)._replace(exempt=True)

    @staticmethod
    def _unsigned(path: ReversePath, why: str, *, recall: bool = False) -> Decision[ReversePath]:
        return Decision(Verdict.UNSIGNED, Disposition.PASS, path, _LEFT_UNSIGNED + why, recall=recall)


@dataclass(frozen=True, slots=True)
class VerifyingStage:
    """The inbound stage: judges the recipients of bounces, and takes tags off.

    Attributes:
        policy: which domains are ours, and what forged bounces to them get.
        style: how tags are written where a domain does not say.
    """

    policy: Policy
    style: Style = DEFAULT_STYLE

    @property
    def marks(self) -> bool:
        """Whether any domain wants a status field."""
        return self.policy.marks

    def sender(self, path: ReversePath, client: Client, rings: KeyRings, day: Day) -> Decision[ReversePath]:
        """Return the reverse path as it came: the inbound side changes none."""
        del client, rings, day
        verdict = Verdict.NOT_JUDGED if path.null else Verdict.NOT_A_BOUNCE
        return Decision(verdict, Disposition.PASS, path, "inbound")

    def takes_for_bounce(self, path: ReversePath) -> bool:
        """Whether the reverse path is null, or a mail system's where a domain wants such mail judged."""
        return path.null or (self.policy.judges_senders and clue_of_sender(path.mailbox) is not None)

    def wants_recipient(self, path: ReversePath, client: Client, day: Day) -> bool:
        """Whether the reverse path depends on the recipient: it does not."""
        del path, client, day
        return False

    def sender_for(
        self, path: ReversePath, recipient: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ReversePath]:
        """Return what `sender` returns."""
        del recipient
        return self.sender(path, client, rings, day)

    def recipient(
        self, reverse_path: ReversePath, path: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        """Return what becomes of one recipient.

        REJECT stands only for what we never take: foreign domains and relay tricks have verdict FOREIGN.
        """
        mailbox = path.mailbox
        if mailbox is None:
            return Decision(Verdict.NOT_JUDGED, Disposition.PASS, path, "postmaster without a domain")
        domain = self.policy.for_domain(mailbox.domain)
        relayed = domain is None and self.policy.relays(mailbox.domain)
        if domain is None and not relayed:
            return self._refused(path, f"{_text(mailbox.domain)} is not a domain of ours")
        if path.routed:
            return self._refused(path, "source route")
        if has_routing_characters(mailbox):
            return self._refused(path, "routing character in the local part")
        if domain is None:
            return Decision(Verdict.NOT_JUDGED, Disposition.PASS, path, "relay_domains has the domain")
        if domain.left_alone(mailbox) is not None:
            return Decision(Verdict.NOT_JUDGED, Disposition.PASS, path, "leave_forms has the form")
        wanted = domain if reverse_path.null else domain.with_sender
        if wanted is None:
            return self._without_tag(path, mailbox)
        decision = self._judged(path, mailbox, wanted, rings, day)
        pattern = wanted.exempt_sender(reverse_path.mailbox)
        if pattern is None:
            decision = self._as_wanted(decision, mailbox, wanted, client, day)
        elif decision.verdict in FORGED:
            decision = self._not_judged(decision, f"exempt_senders has {pattern}")
        if reverse_path.null:
            return decision
        clue = clue_of_sender(reverse_path.mailbox)
        if clue is not None:
            return decision._replace(reason=f"{clue}; {decision.reason}")
        # The header comes when the next hop has been told of the recipient.
        ordinary = self._without_tag(path, mailbox)
        return ordinary._replace(as_bounce=decision._replace(path=ordinary.path))

    def recalled(self, decision: Decision[ForwardPath], *, on_record: bool) -> Decision[ForwardPath]:
        """Leave alone who is too long for a tag; where a part of the mail has one, let the content decide."""
        mailbox = decision.path.mailbox
        domain = self.policy.for_domain(mailbox.domain) if mailbox is not None else None
        decision = decision._replace(recall=False)
        if mailbox is None or domain is None:
            return decision
        if not self._too_long(mailbox, domain):
            return decision._replace(undecided=on_record)
        if on_record:
            return Decision(Verdict.NOT_JUDGED, Disposition.PASS, decision.path, _TOO_LONG.value)
        undecided = domain.rescue and decision.disposition is not Disposition.PASS
        return decision._replace(undecided=undecided, reason=f"{decision.reason}; {NOT_ON_RECORD}")

    def overdrawn(self, decision: Decision[ForwardPath], account: Account) -> Decision[ForwardPath]:
        """Let the content decide; but where bounces without a tag are delivered, nobody needs to steal one."""
        mailbox = decision.path.mailbox
        domain = self.policy.for_domain(mailbox.domain) if mailbox is not None else None
        if domain is None or SEVERITY[domain.disposition(Verdict.UNTAGGED)] < SEVERITY[Disposition.QUARANTINE]:
            return decision
        reason = f"{decision.reason}; {OVERDRAWN}: {account.bounces} for {counted(account.recipients, 'recipient')}"
        return decision._replace(disposition=Disposition.QUARANTINE, undecided=True, reason=reason)

    def content(self, decision: Decision[ForwardPath], claims: Claims, found: Found) -> Decision[ForwardPath]:
        """Let through what answers a message that this very recipient sent to the party that it speaks of.

        Where the domain looks on, nothing changes but the reason.
        """
        if found is not Found.KNOWN:
            ours = next((each for each in claims.origins if self.policy.for_domain(each) is not None), None)
            named = f"; {IN_OUR_NAME} {_text(ours)}" if decision.looks_on and ours is not None else ""
            return decision._replace(undecided=False, reason=f"{decision.reason}; {found}{named}")
        if decision.verdict is _VALID or not decision.undecided:
            disposition = _REWRITE if decision.verdict is _VALID else decision.disposition
            reason = f"{decision.reason}; {claims.kind}, {ANSWERED}"
            return decision._replace(disposition=disposition, undecided=False, reason=reason)
        status = STATUS_BY_VERDICT[Verdict.RESCUED] if decision.status is not None else None
        reason = f"no tag; {claims.kind}, {ANSWERED}"
        return Decision(Verdict.RESCUED, Disposition.PASS, decision.path, reason, status=status)

    def _as_wanted(
        self, decision: Decision[ForwardPath], mailbox: Mailbox, domain: DomainPolicy, client: Client, day: Day
    ) -> Decision[ForwardPath]:
        """Return what becomes of a bounce that was judged by its tag, for what else the site wants."""
        if decision.verdict is not _VALID and decision.verdict in FORGED:
            why = self._exempt(decision.verdict, mailbox, domain, client, day)
            if why is not None:
                return self._not_judged(decision, why)
        if client.listed:
            decision = self._worsened(decision, domain, client.listed)
        return self._to_be_asked(decision, mailbox, domain) if decision.verdict is Verdict.UNTAGGED else decision

    def _to_be_asked(
        self, decision: Decision[ForwardPath], mailbox: Mailbox, domain: DomainPolicy
    ) -> Decision[ForwardPath]:
        """Return what is said of a bounce without a tag, and whether it stands without a look at record or content."""
        if domain.remember_too_long and self._too_long(mailbox, domain):
            return decision._replace(recall=True, looks_on=domain.looks_on)
        if decision.disposition is Disposition.PASS:
            return decision._replace(looks_on=True) if domain.looks_on else decision
        recall = self.policy.recalls_exempt and not domain.rescue
        return decision._replace(undecided=domain.rescue, recall=recall, looks_on=domain.looks_on)

    @staticmethod
    def _without_tag(path: ForwardPath, mailbox: Mailbox) -> Decision[ForwardPath]:
        parts = tag_and_rest(mailbox)
        if parts is None:
            return Decision(Verdict.NOT_A_BOUNCE, Disposition.PASS, path, "sender is not null")
        tag, rest, _ = parts
        bare = path.with_mailbox(rest)
        return Decision(
            Verdict.NOT_A_BOUNCE, Disposition.REWRITE, bare, "sender is not null; tag taken off", tag.key_number
        )

    def _exempt(self, verdict: Verdict, mailbox: Mailbox, domain: DomainPolicy, client: Client, day: Day) -> str | None:
        """Return the exemption for which a bounce that would count as forged is not judged, or None.

        Addresses are exempt from having a tag. One that has a wrong tag is judged for it, whosoever it is.
        """
        network = self.policy.exempt_client(client.address)
        if network is not None:
            return f"exempt_clients has {network}"
        if verdict is not Verdict.UNTAGGED:
            return None
        pattern = domain.exempt_recipient(mailbox)
        if pattern is not None:
            return f"exempt_recipients has {pattern}"
        exemption = self.policy.exemptions.of_sender(mailbox, day) if self.policy.exemptions else None
        return None if exemption is None else exemption.name

    @staticmethod
    def _not_judged(decision: Decision[ForwardPath], why: str) -> Decision[ForwardPath]:
        """Return what becomes of a bounce that would count as forged and is exempt; its tag is taken off."""
        disposition = Disposition.PASS if decision.key_number is None else Disposition.REWRITE
        return decision._replace(
            verdict=Verdict.NOT_JUDGED, disposition=disposition, reason=f"exempt: {why}", status=None, exempt=True
        )

    def _judged(
        self, path: ForwardPath, mailbox: Mailbox, domain: DomainPolicy, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        found = verify_any(mailbox, rings.rings_for(mailbox.domain, day), day, domain.draft_until)
        if found.tag is None:
            hindrance = obstacle(mailbox, (domain.style or self.style).scheme)
            judged = hindrance is None or (
                hindrance is _TOO_LONG and (domain.refuse_too_long or domain.remember_too_long)
            )
            if hindrance is not None and not judged:
                return Decision(Verdict.NOT_JUDGED, Disposition.PASS, path, hindrance.value)
            bare, number = path, None
        else:
            bare, number = path.with_mailbox(found.mailbox), found.tag.key_number
        disposition = _REWRITE if found.verdict is _VALID else domain.disposition(found.verdict)
        status = None
        if domain.marks and disposition is not Disposition.PASS:
            status = STATUS_BY_VERDICT[found.verdict]
        return Decision(found.verdict, disposition, bare, found.reason, number, status)

    def _too_long(self, mailbox: Mailbox, domain: DomainPolicy) -> bool:
        return obstacle(mailbox, (domain.style or self.style).scheme) is _TOO_LONG

    @staticmethod
    def _worsened(decision: Decision[ForwardPath], domain: DomainPolicy, zone: str) -> Decision[ForwardPath]:
        """Return what a bounce gets whose client a list has: a tag is worth what it is worth, whoever brings it."""
        worse = domain.if_listed(decision.disposition)
        if decision.verdict is not Verdict.UNTAGGED or worse is decision.disposition:
            return decision
        return decision._replace(disposition=worse, reason=f"{decision.reason}; {zone} lists the client")

    @staticmethod
    def _refused(path: ForwardPath, why: str) -> Decision[ForwardPath]:
        return Decision(Verdict.FOREIGN, Disposition.REJECT, path, why)


def judged_together(decisions: Sequence[Decision[ForwardPath]], clue: Clue) -> list[Decision[ForwardPath]]:
    """Return what becomes of the recipients of a message with a sender whose header shows what it is.

    Args:
        decisions: what would become of each alone: `as_bounce`, or what was decided where that makes no difference.
        clue: what the header shows.
    """
    most = min((decision.disposition for decision in decisions), key=_severity)
    if not clue.bounce:
        most = min(most, _MARK, key=_severity)
    if not _severity(most):
        most = Disposition.PASS
    found = [_softened(decision, most, clue) for decision in decisions]
    # A message carries one field.
    alike = len({decision.status for decision in found}) == 1
    return found if alike else [decision._replace(status=None) for decision in found]


def _softened(decision: Decision[ForwardPath], most: Disposition, clue: Clue) -> Decision[ForwardPath]:
    """Return a decision with no more than a disposition."""
    if decision.verdict is Verdict.NOT_A_BOUNCE:
        return decision
    decision = decision._replace(reason=f"{clue}; {decision.reason}", undecided=False)
    if _severity(decision.disposition) <= _severity(most):
        return decision
    reason = f"{decision.reason}; others get it too" if clue.bounce else decision.reason
    return decision._replace(disposition=most, reason=reason, status=decision.status if most is _MARK else None)


def _severity(disposition: Disposition) -> int:
    return SEVERITY.get(disposition, 0)


_NOT_TO_BE_TAKEN_BACK: Final = frozenset({Disposition.DISCARD, Disposition.QUARANTINE, Disposition.REJECT})


@dataclass(frozen=True, slots=True)
class DeferringStage:
    """Asks another stage while the day is in doubt, and defers what a wrong day could do harm to.

    That is what would be signed, and forged bounces that nobody would see. What is let through is let through.

    Attributes:
        stage: the other stage.
        doubt: why the day is in doubt, as a clause.
    """

    stage: Stage
    doubt: str

    @property
    def marks(self) -> bool:
        """What the other stage says."""
        return self.stage.marks

    def sender(self, path: ReversePath, client: Client, rings: KeyRings, day: Day) -> Decision[ReversePath]:
        """Return what the other stage says, but sign nothing: such a tag would verify nowhere."""
        return self._unsigned(path, self.stage.sender(path, client, rings, day))

    def takes_for_bounce(self, path: ReversePath) -> bool:
        """Return what the other stage says."""
        return self.stage.takes_for_bounce(path)

    def wants_recipient(self, path: ReversePath, client: Client, day: Day) -> bool:
        """Return what the other stage says."""
        return self.stage.wants_recipient(path, client, day)

    def sender_for(
        self, path: ReversePath, recipient: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ReversePath]:
        """Return what the other stage says, but sign nothing."""
        return self._unsigned(path, self.stage.sender_for(path, recipient, client, rings, day))

    def recipient(
        self, reverse_path: ReversePath, path: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        """Return what the other stage says, but withhold nothing for good: a genuine bounce may look forged."""
        decision = self.stage.recipient(reverse_path, path, client, rings, day)
        if decision.as_bounce is not None and decision.as_bounce.disposition in _NOT_TO_BE_TAKEN_BACK:
            return decision._replace(as_bounce=None)
        if decision.verdict not in FORGED or decision.disposition not in _NOT_TO_BE_TAKEN_BACK:
            return decision
        return decision._replace(disposition=Disposition.DEFER, reason=f"{decision.reason}; {self.doubt}")

    def recalled(self, decision: Decision[ForwardPath], *, on_record: bool) -> Decision[ForwardPath]:
        """Return what the other stage says."""
        return self.stage.recalled(decision, on_record=on_record)

    def overdrawn(self, decision: Decision[ForwardPath], account: Account) -> Decision[ForwardPath]:
        """Return the decision: what was counted by the day may be wrong."""
        del account
        return decision

    def content(self, decision: Decision[ForwardPath], claims: Claims, found: Found) -> Decision[ForwardPath]:
        """Return what the other stage says."""
        return self.stage.content(decision, claims, found)

    def _unsigned(self, path: ReversePath, decision: Decision[ReversePath]) -> Decision[ReversePath]:
        if decision.verdict is not Verdict.SIGNED:
            return decision
        return Decision(Verdict.UNSIGNED, Disposition.DEFER, path, self.doubt)


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")
