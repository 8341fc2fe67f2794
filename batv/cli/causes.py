"""What decided about an address: the rule, what would have to differ, and how to change it.

Asked about an outcome that is known, from the stages or from the journal; nothing is judged here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from batv.bounce import Clue
from batv.cli.output import text_of
from batv.rollout import Phase
from batv.signing import Obstacle
from batv.stage import NOT_ON_RECORD, OVERDRAWN
from batv.verdict import APART, FORGED, Disposition, Verdict

if TYPE_CHECKING:
    from batv.address import Mailbox
    from batv.config import Settings
    from batv.policy import DomainPolicy, Policy
    from batv.proxy.rollout import Rollout

__all__ = ["Cause", "Causes"]

_WITHHELD: Final = frozenset({Disposition.DISCARD, Disposition.QUARANTINE, Disposition.REJECT})
_OTHERWISE: Final = {
    Verdict.UNTAGGED: "the bounce would have to come to the signed address: mail from this one must leave signed",
    Verdict.MALFORMED: "the tag would have to be whole: key, day and signature, as the outbound proxy writes them",
    Verdict.UNKNOWN_KEY: "the key that the tag names would have to be in the ring, and not revoked",
    Verdict.BAD_SIGNATURE: "the tag would have to be one that a key of the ring made for this very address",
    Verdict.EXPIRED: "the bounce would have to come before the last day of its tag",
}
_LISTED: Final = re.compile(r"; (\S+) lists the client(?=;|$)")
_KEYS: Final = frozenset({Verdict.UNKNOWN_KEY, Verdict.BAD_SIGNATURE})
_REPLIES: Final = tuple(f"{clue};" for clue in Clue if not clue.bounce)


class Cause(NamedTuple):
    """Why an address met what it met.

    Attributes:
        rule: what decided, with the setting where it is one.
        otherwise: what would have to differ for another outcome; None: there is none.
        to_change_it: the command, or the setting and the command that puts it in force; None: nothing is to be set.
    """

    rule: str
    otherwise: str | None = None
    to_change_it: str | None = None


_PUT_OFF: Final = Cause(
    "beside those named before it the message would be another: the client was told to try again",
    "it would have to come in a transaction of its own, as it does when the client tries again",
)


class Causes:
    """Tells the causes of outcomes under the settings of a site.

    Args:
        settings: the settings as they are today.
        rollout: how far domains have been switched on.
        config: path of the configuration file, as it is to be named.
    """

    def __init__(self, settings: Settings, rollout: Rollout, config: str) -> None:
        self._settings = settings
        self._policy = settings.policy
        self._applied = rollout.applied(settings.policy)
        self._rollout = rollout
        self._config = config

    def rule(self, address: Mailbox, verdict: Verdict, reason: str, *, with_sender: bool = False) -> str:
        """Return the rule by which a bounce to an address with this verdict meets what it meets."""
        policy = _judging(self._policy, address, with_sender=verdict in FORGED and with_sender)
        table = self._table(address)
        if verdict in FORGED and policy is not None:
            option = _option(policy, verdict, with_sender=with_sender)
            rule = f'{table} {option} = "{policy.disposition(verdict)}"'
            if with_sender and reason.startswith(_REPLIES):
                rule += "; but replies are marked at most"
            if (phase := self._phase(address)) is not Phase.ENFORCE:
                rule += f'; but rollout = "auto", which is at {phase.value}'
            if verdict is Verdict.UNTAGGED and self._list_matters(address):
                option, wanted = self._on_listed(address, policy)
                rule += f'; but {option} = "{wanted}" where a list of [dnsbl] zones has the client'
            if verdict is Verdict.UNTAGGED and policy.rescue:
                rule += "; but rescue = true, and what answers mail from it passes"
            if NOT_ON_RECORD in reason:
                rule = f'[tags] on_too_long = "remember"; {rule}'
            return rule
        if verdict is Verdict.VALID:
            return "a genuine bounce goes on, its tag taken off"
        if verdict is Verdict.FOREIGN and policy is None:
            return f"there is no {table}, and [inbound] relay_domains does not have it"
        return self._left_alone(address, policy, reason) if verdict is Verdict.NOT_JUDGED else reason

    def of_recipient(
        self,
        address: Mailbox | None,
        verdict: Verdict,
        disposition: Disposition | None,
        reason: str,
        *,
        with_sender: bool = False,
    ) -> Cause:
        """Return why the recipient of a message met what it met; None for the address of `<Postmaster>`."""
        if reason.endswith(APART):
            return _PUT_OFF
        if verdict is Verdict.NOT_A_BOUNCE:
            return self._of_ordinary(address)
        if address is None:
            return Cause(reason)
        rule = self.rule(address, verdict, reason, with_sender=with_sender)
        policy, table = self._policy.for_domain(address.domain), self._table(address)
        if verdict in FORGED:
            return self._of_forged(address, verdict, disposition, reason, with_sender=with_sender)
        if verdict is Verdict.VALID:
            if "; many failed tags from" in reason:
                rule = f"[guessing] max_failures = {self._settings.guessing.max_failures}"
                return Cause(
                    rule,
                    "its client's network would have to try fewer tags",
                    self._edit("set [guessing] max_failures = 0"),
                )
            if OVERDRAWN in reason:
                rule = f"[ledger] max_bounces_per_recipient = {self._settings.ledger.max_bounces_per_recipient}"
                otherwise = "fewer bounces would have to have come to its tag, or this one to answer mail on the ledger"
                return Cause(rule, otherwise, self._edit("change [ledger] max_bounces_per_recipient"))
            return Cause(rule, "the key of its tag would have to be revoked", "batv key list, then batv key revoke")
        if verdict is Verdict.RESCUED and policy is not None and not policy.rescue:
            otherwise = "its mail would have to leave signed to everybody"
            return Cause("[[exemptions]], which some of its mail meets", otherwise, self._edit("change [[exemptions]]"))
        if verdict is Verdict.RESCUED:
            otherwise = "without rescue it would count as untagged"
            return Cause(f"{table} rescue = true", otherwise, self._edit(f"set {table} rescue = false"))
        if verdict is Verdict.FOREIGN:
            if policy is not None:
                return Cause(rule, "the address would have to be a plain one, by which no relay is told anything")
            change = self._edit(f"add {table}, or relay_domains under [inbound]")
            return Cause(rule, "the domain would have to be of ours", change)
        return self._of_left_alone(rule, reason)

    def of_sender(
        self, address: Mailbox | None, verdict: Verdict, disposition: Disposition | None, reason: str
    ) -> Cause:
        """Return why the sender of outbound mail met what it met; None for the address of the null sender."""
        if reason == APART:
            return _PUT_OFF
        if address is None:
            return Cause("a null sender is never signed")
        table = self._table(address)
        if verdict is Verdict.SIGNED:
            otherwise = "an exemption would have to name sender, client or recipient"
            return Cause(f"{table} is there: its mail is signed", otherwise, self._edit("change [[exemptions]]"))
        reason = reason.removeprefix("unsigned: ")
        if disposition is Disposition.DEFER:
            if reason.startswith("the clock"):
                return _doubted(reason)
            return Cause(reason, "a key would have to sign on that day", "batv key list, then batv key new")
        if "is not a domain of ours" in reason:
            return Cause(f"there is no {table}", "the domain would have to be of ours", self._edit(f"add {table}"))
        if reason.startswith("no XFORWARD"):
            otherwise = "a server in front that is believed would have to say SOURCE=LOCAL"
            return Cause(
                "[outbound] require_local_source", otherwise, self._edit("change [outbound] require_local_source")
            )
        if reason.startswith("leave_forms"):
            return Cause(
                f"{table} leave_forms", "leave_forms would have to lack the form", self._edit(f"change {table}")
            )
        if reason.startswith("local part too long"):
            change = self._edit("change [tags] on_too_long")
            return Cause(f"[tags] on_too_long: {reason}", "the address would have to be shorter", change)
        return self._of_left_alone(reason, reason)

    def today(
        self, address: Mailbox | None, verdict: Verdict, reason: str, *, with_sender: bool = False
    ) -> Disposition | None:
        """Return what a forged bounce with this verdict gets as things are set today; None for any other.

        What came from a client that a list had is taken for one that it still has.
        """
        policy = _judging(self._applied, address, with_sender=with_sender) if address is not None else None
        if policy is None or verdict not in FORGED:
            return None
        found = policy.disposition(verdict)
        return policy.if_listed(found) if _LISTED.search(reason) else found

    def _of_forged(
        self,
        address: Mailbox,
        verdict: Verdict,
        disposition: Disposition | None,
        reason: str,
        *,
        with_sender: bool,
    ) -> Cause:
        rule, otherwise = self.rule(address, verdict, reason, with_sender=with_sender), _OTHERWISE[verdict]
        policy = _judging(self._policy, address, with_sender=with_sender)
        if policy is None:
            then = f"{self._table(address)}{' on_bounce_with_sender' if with_sender else ''}"
            return Cause(f"{then} was there then, and is no more", otherwise)
        if disposition is Disposition.DEFER:
            return _doubted(reason.rpartition("; ")[2])
        if NOT_ON_RECORD in reason:
            otherwise = "mail of the address would have to be on the ledger"
            return Cause(rule, otherwise, self._edit("change [tags] on_too_long"))
        if verdict is Verdict.UNTAGGED and policy.rescue:
            otherwise += "; or to answer mail of this recipient that the ledger knows"
        full = ""
        if "; quarantine full" in reason:
            full = f"; but [state] quarantine_max_mib = {self._settings.state.quarantine_max_mib}, which were full"
        listed = _LISTED.search(reason)
        if listed is not None:
            option, wanted = self._on_listed(address, policy)
            change = self._edit(f"change {option}, or take {listed[1]} out of [dnsbl] zones")
            otherwise += f"; or {listed[1]} would have to lack the client"
            return Cause(f'{option} = "{wanted}", and {listed[1]} lists the client{full}', otherwise, change)
        rule += full
        option = _option(policy, verdict, with_sender=with_sender)
        if with_sender and reason.startswith(_REPLIES) and disposition is Disposition.MARK:
            return Cause(rule, otherwise, self._edit(f'set {self._table(address)} {option} = "pass"'))
        if self._phase(address) is not Phase.ENFORCE:
            name = self._settings.automatic[self._policy.name_for(address.domain) or b""]
            return Cause(rule, otherwise, f"batv rollout {'back' if disposition in _WITHHELD else 'advance'} {name}")
        wanted = Disposition.MARK if disposition in _WITHHELD else Disposition.DISCARD
        change = self._edit(f'set {self._table(address)} {option} = "{wanted}"')
        return Cause(rule, otherwise, f"batv key list; or {change}" if verdict in _KEYS else change)

    def _of_ordinary(self, address: Mailbox | None) -> Cause:
        if address is None or _judging(self._policy, address, with_sender=True) is None:
            return Cause("mail whose sender is not null is not judged", "its sender would have to be null")
        rule = f"{self._table(address)} on_bounce_with_sender: neither sender nor header shows a bounce"
        return Cause(rule, "its sender would have to be null, or a mail system's")

    def _left_alone(self, address: Mailbox, policy: DomainPolicy | None, reason: str) -> str:
        """Return the rule by which a bounce to an address is not judged."""
        if policy is None:
            return "[inbound] relay_domains"
        if policy.left_alone(address) is not None:
            return f"{self._table(address)} leave_forms"
        if "exempt: exempt_senders has " in reason:
            return f"{self._table(address)} exempt_senders"
        if policy.exempt_recipient(address) is not None:
            return f"{self._table(address)} exempt_recipients"
        return self._too_long(reason) if reason == Obstacle.TOO_LONG.value else reason

    def _of_left_alone(self, rule: str, reason: str) -> Cause:
        exempt = reason.partition("exempt: ")[2]
        if exempt == "exempt_own_domains":
            change = self._edit("set [outbound] exempt_own_domains = false")
            return Cause(
                "[outbound] exempt_own_domains = true", "mail to domains of ours would have to be signed", change
            )
        if exempt.startswith("exempt_clients has "):
            change = self._edit("change [inbound] exempt_clients")
            return Cause(f"[inbound] {exempt}", "the client would have to be in no such network", change)
        if reason == Obstacle.TOO_LONG.value:
            return Cause(rule, "the address would have to be shorter", self._edit("change [tags] on_too_long"))
        if rule.startswith("["):  # the rule is a setting
            return Cause(rule, "the setting would have to lack it", self._edit(f"change {rule}"))
        if exempt:
            return Cause(
                f'[[exemptions]] "{exempt}"', "no exemption would have to fit", self._edit("change [[exemptions]]")
            )
        return Cause(rule)

    def _too_long(self, reason: str) -> str:
        wanted = self._settings.tags.on_too_long
        rule = f'[tags] on_too_long = "{wanted}": {reason}'
        if wanted != "remember":
            return rule
        if not self._settings.ledger.enabled:
            return f"{rule}; and [ledger] enabled = false, so that nothing is remembered"
        return f"{rule}; and the ledger has mail of it, or has not been kept for long enough"

    def _list_matters(self, address: Mailbox) -> bool:
        """Whether a bounce without a tag gets something worse where a list has its client."""
        policy = self._applied.for_domain(address.domain)
        if policy is None:
            return False
        usual = policy.disposition(Verdict.UNTAGGED)
        return policy.if_listed(usual) is not usual

    def _on_listed(self, address: Mailbox, policy: DomainPolicy) -> tuple[str, Disposition]:
        """Return the option for clients that a list has, and its value; of two with the same, that for all domains."""
        everywhere = self._settings.dnsbl.on_listed
        if policy.on_listed is None or policy.on_listed is everywhere:
            return "[dnsbl] on_listed", everywhere
        return f"{self._table(address)} on_listed", policy.on_listed

    def _edit(self, what: str) -> str:
        return f"{what} in {self._config}, then: batv config check && systemctl reload batv"

    def _table(self, address: Mailbox) -> str:
        return f'[domains."{text_of(self._policy.name_for(address.domain) or address.domain)}"]'

    def _phase(self, address: Mailbox) -> Phase:
        name = self._settings.automatic.get(self._policy.name_for(address.domain) or b"")
        if name is None:
            return Phase.ENFORCE
        progress = self._rollout.progress.get(name)
        return progress.phase if progress is not None else Phase.OBSERVE


def _judging(policy: Policy, address: Mailbox, *, with_sender: bool) -> DomainPolicy | None:
    """Return what is wanted for bounces to an address; None where they are not judged."""
    found = policy.for_domain(address.domain)
    return found.with_sender if found is not None and with_sender else found


def _option(policy: DomainPolicy, verdict: Verdict, *, with_sender: bool) -> str:
    if with_sender:
        return "on_bounce_with_sender"
    return f"on_{verdict.word.replace('-', '_')}" if verdict in policy.by_verdict else "on_forged"


def _doubted(doubt: str) -> Cause:
    return Cause(
        f"nothing is lost while {doubt}", "the clock would have to be right", "batv clock, then batv clock trust"
    )
