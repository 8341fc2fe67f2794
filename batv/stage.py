"""The waist: a path goes in, a Decision comes out.

Proxies, and any other door to the same judgement, ask a Stage about each sender and each recipient. The outbound stage
signs reverse paths, the inbound one verifies forward paths. A stage holds no state: keys and the day are arguments.

Rules:

1. The outbound stage changes reverse paths only, the inbound one forward paths only.
2. Mail that is not a bounce is never refused for want of a tag; one tag is taken off whatever it is worth.
3. What the outbound stage leaves unsigned, the inbound stage does not judge.
4. A list of senders of backscatter can make worse what a bounce without a tag gets, never better, and nothing else.
5. The next hop trusts us, so the inbound stage lets nothing through that is not for a domain of ours, and no
   address by which a relay is told to send a message elsewhere, before or after the tag is taken off.

Source: draft-levine-smtp-batv-01 sections 3 and 5; RFC 5321 section 3.6.1 on relaying.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from batv.errors import NoSigningKeyError
from batv.signing import DEFAULT_STYLE, Style, has_routing_characters, obstacle, sign_with, verify_any
from batv.tag import tag_and_rest
from batv.verdict import FORGED, STATUS_BY_VERDICT, Decision, Disposition, Verdict

if TYPE_CHECKING:
    from batv.address import ForwardPath, Mailbox, ReversePath
    from batv.day import Day
    from batv.keyring import KeyRings
    from batv.policy import DomainPolicy, Policy

__all__ = ["Client", "DeferringStage", "SigningStage", "Stage", "VerifyingStage"]


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

    def sender(self, path: ReversePath, client: Client, rings: KeyRings, day: Day) -> Decision[ReversePath]:
        """Return what becomes of a reverse path."""

    def recipient(
        self, reverse_path: ReversePath, path: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        """Return what becomes of a forward path; `reverse_path` is the one the client gave."""


_LEFT_UNSIGNED: Final = "unsigned: "


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

    def sender(self, path: ReversePath, client: Client, rings: KeyRings, day: Day) -> Decision[ReversePath]:
        """Return the signed reverse path, or the path as it came and why.

        DEFER where no key signs: mail that went out unsigned could not get its bounces back.
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
        hindrance = obstacle(mailbox)
        try:
            ring = rings.ring_for(mailbox.domain)
            if hindrance is not None:
                return self._unsigned(path, hindrance.value)
            key = ring.signing_key(day)
        except NoSigningKeyError as error:
            return Decision(Verdict.UNSIGNED, Disposition.DEFER, path, str(error))
        signed = path.with_mailbox(sign_with(mailbox, key, day, self.style))
        return Decision(Verdict.SIGNED, Disposition.REWRITE, signed, f"signed with key {key.number}", key.number)

    def recipient(
        self, reverse_path: ReversePath, path: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        """Return the forward path as it came: the outbound side judges nobody."""
        del reverse_path, client, rings, day
        return Decision(Verdict.NOT_A_BOUNCE, Disposition.PASS, path, "outbound")

    @staticmethod
    def _unsigned(path: ReversePath, why: str) -> Decision[ReversePath]:
        return Decision(Verdict.UNSIGNED, Disposition.PASS, path, _LEFT_UNSIGNED + why)


@dataclass(frozen=True, slots=True)
class VerifyingStage:
    """The inbound stage: judges the recipients of bounces, and takes tags off.

    Attributes:
        policy: which domains are ours, and what forged bounces to them get.
    """

    policy: Policy

    def sender(self, path: ReversePath, client: Client, rings: KeyRings, day: Day) -> Decision[ReversePath]:
        """Return the reverse path as it came: the inbound side changes none."""
        del client, rings, day
        verdict = Verdict.NOT_JUDGED if path.null else Verdict.NOT_A_BOUNCE
        return Decision(verdict, Disposition.PASS, path, "inbound")

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
        if not reverse_path.null:
            return self._without_tag(path, mailbox)
        decision = self._judged(path, mailbox, domain, rings, day)
        return decision if not client.listed else self._worsened(decision, domain, client.listed)

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

    @staticmethod
    def _judged(
        path: ForwardPath, mailbox: Mailbox, domain: DomainPolicy, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        found = verify_any(mailbox, rings.rings_for(mailbox.domain, day), day)
        if found.tag is None:
            hindrance = obstacle(mailbox)
            if hindrance is not None:
                return Decision(Verdict.NOT_JUDGED, Disposition.PASS, path, hindrance.value)
            bare, number = path, None
        else:
            bare, number = path.with_mailbox(found.mailbox), found.tag.key_number
        status = STATUS_BY_VERDICT[found.verdict] if domain.marks else None
        disposition = domain.on_forged if found.verdict in FORGED else Disposition.REWRITE
        return Decision(found.verdict, disposition, bare, found.reason, number, status)

    @staticmethod
    def _worsened(decision: Decision[ForwardPath], domain: DomainPolicy, zone: str) -> Decision[ForwardPath]:
        """Return what a bounce gets whose client a list has: a tag is worth what it is worth, whoever brings it."""
        worse = domain.if_listed(decision.disposition)
        if decision.verdict is not Verdict.UNTAGGED or worse is decision.disposition:
            return decision
        return replace(decision, disposition=worse, reason=f"{decision.reason}; {zone} lists the client")

    @staticmethod
    def _refused(path: ForwardPath, why: str) -> Decision[ForwardPath]:
        return Decision(Verdict.FOREIGN, Disposition.REJECT, path, why)


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

    def sender(self, path: ReversePath, client: Client, rings: KeyRings, day: Day) -> Decision[ReversePath]:
        """Return what the other stage says, but sign nothing: such a tag would verify nowhere."""
        decision = self.stage.sender(path, client, rings, day)
        if decision.verdict is not Verdict.SIGNED:
            return decision
        return Decision(Verdict.UNSIGNED, Disposition.DEFER, path, self.doubt)

    def recipient(
        self, reverse_path: ReversePath, path: ForwardPath, client: Client, rings: KeyRings, day: Day
    ) -> Decision[ForwardPath]:
        """Return what the other stage says, but withhold nothing for good: a genuine bounce may look forged."""
        decision = self.stage.recipient(reverse_path, path, client, rings, day)
        if decision.verdict not in FORGED or decision.disposition not in _NOT_TO_BE_TAKEN_BACK:
            return decision
        return replace(decision, disposition=Disposition.DEFER, reason=f"{decision.reason}; {self.doubt}")


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")
