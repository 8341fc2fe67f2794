"""What the journal tells about a domain that is to be enforced: mail that left unsigned, and bounces without a tag.

The journal has no content of messages, so most bounces without a tag stay unknown: what the address sent is all that
there is to go by, and what the ledger knew of the message. The classes are those of the rollout: `genuine` is what mail
of ours brought back, as far as can be seen; `forged` has a tag that none of our keys made; the rest is `unknown`.

Records are read in the order in which they were written. Counts are recipients, as the journal has a line for each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from batv.rescue import ANSWERED, IN_OUR_NAME
from batv.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batv.policy import Policy
    from batv.probe import ProbeSender

__all__ = ["Address", "Domain", "Guess", "Leak", "RolloutReport", "rollout_report"]

_MAX_ADDRESSES: Final = 100_000
"""Of those that get bounces, of each kind. Backscatter comes to invented addresses too."""

_MAX_CLIENTS: Final = 1000
_UNSIGNED: Final = "unsigned: "
_FORGED: Final = frozenset({Verdict.MALFORMED.value, Verdict.BAD_SIGNATURE.value, Verdict.UNKNOWN_KEY.value})
_NOT_OURS: Final = " is not a domain of ours"


class Guess(Enum):
    """Why an address may get bounces without a tag."""

    UNSIGNED = "unsigned"  # mail of it has left unsigned
    ANSWERED = "on the ledger"  # they answer mail that it sent
    IN_OUR_NAME = "in our name"  # they return mail that bears a name of ours, and that the ledger does not know
    SIGNED = "signed"  # its mail is signed: forged, or an answer to the address in the header
    NEVER_SEEN = "never seen"  # nothing of it has passed the outbound proxy: forged, or sent by another route
    LATE = "late"  # its tags had expired


@dataclass(slots=True)
class Address:
    """An address that gets bounces without a good tag.

    Attributes:
        path: the address.
        guess: why, as far as the journal tells.
        bounces: how many.
        withheld: how many of them nobody got.
        clients: servers that brought them.
        first: time of the first one, as in the journal.
        last: and of the last one.
    """

    path: str
    guess: Guess
    bounces: int = 0
    withheld: int = 0
    clients: Counter[str] = field(default_factory=Counter)
    first: str = ""
    last: str = ""


@dataclass(slots=True)
class Domain:
    """The bounces of a domain.

    Attributes:
        name: the domain.
        valid: those with a good tag.
        rescued: those without one that passed for what the sent ledger knows, or would have.
        genuine: those without one that mail of ours brought back, as far as can be seen.
        unknown: those without a tag of which nothing is known.
        forged: those with a tag that is none of ours.
    """

    name: str
    valid: int = 0
    rescued: int = 0
    genuine: int = 0
    unknown: int = 0
    forged: int = 0


@dataclass(slots=True)
class Leak:
    """Mail that left unsigned for one reason.

    Attributes:
        reason: why, as the journal has it.
        messages: how many recipients it had.
        senders: reverse paths.
        clients: servers that brought it to the outbound proxy.
        last: time of the last one.
    """

    reason: str
    messages: int = 0
    senders: Counter[str] = field(default_factory=Counter)
    clients: Counter[str] = field(default_factory=Counter)
    last: str = ""

    @property
    def on_purpose(self) -> bool:
        """Whether the settings want it so, or it is a bounce itself."""
        return self.reason == "null sender" or self.reason.startswith(("exempt", "leave_forms"))

    @property
    def foreign(self) -> str:
        """The domain that is none of ours, if that is the reason."""
        return self.reason.removesuffix(_NOT_OURS) if self.reason.endswith(_NOT_OURS) else ""


@dataclass(slots=True)
class RolloutReport:
    """What the journal tells.

    Attributes:
        leaks: mail that left unsigned, by reason.
        domains: bounces, by domain.
        addresses: who gets bounces without a good tag.
        signed: recipients of mail that left signed.
        records: how many records were read.
        first: time of the first one.
        last: and of the last one.
    """

    leaks: dict[str, Leak] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)
    addresses: dict[tuple[str, Guess], Address] = field(default_factory=dict)
    signed: int = 0
    records: int = 0
    first: str = ""
    last: str = ""

    def of(self, guess: Guess) -> list[Address]:
        """Return the addresses with a guess, those with the most bounces first."""
        found = [each for each in self.addresses.values() if each.guess is guess]
        return sorted(found, key=lambda each: (-each.bounces, each.path))


def rollout_report(
    records: Iterable[Mapping[str, object]], policy: Policy, since: str = "", prober: ProbeSender | None = None
) -> RolloutReport:
    """Return what records of the journal tell.

    Args:
        records: the records, the oldest first.
        policy: which domains are ours.
        since: time before which records say only what was sent, as in the journal; empty: none does.
        prober: addresses from which probes are sent: neither these nor their bounces are told of.
    """
    report = RolloutReport()
    signed: set[str] = set()
    unsigned: set[str] = set()
    for record in records:
        if prober is not None and _of_probe(record, prober):
            continue
        told = _text(record, "time") >= since
        if told:
            report.records += 1
            report.first = report.first or _text(record, "time")
            report.last = max(report.last, _text(record, "time"))
        if record.get("direction") == "outbound":
            sender = _address(_text(record, "reverse_path"))
            if record.get("verdict") == Verdict.SIGNED.value:
                signed.add(sender)
                report.signed += told
            elif record.get("verdict") == Verdict.UNSIGNED.value and record.get("disposition") == "pass":
                unsigned.add(sender)
                if told:
                    _leak(report, record)
        elif told and record.get("reverse_path", "<>") == "<>":  # replies with a sender tell of no way out
            _bounce(report, record, policy, signed, unsigned)
    return report


def _of_probe(record: Mapping[str, object], prober: ProbeSender) -> bool:
    path = "reverse_path" if record.get("direction") == "outbound" else "forward_path"
    return prober.word_in(_text(record, path)) is not None


def _leak(report: RolloutReport, record: Mapping[str, object]) -> None:
    reason = _text(record, "reason").removeprefix(_UNSIGNED)
    leak = report.leaks.setdefault(reason, Leak(reason))
    leak.messages += 1
    leak.last = max(leak.last, _text(record, "time"))
    _count(leak.senders, _text(record, "reverse_path"), _MAX_ADDRESSES)
    _count(leak.clients, _text(record, "client"), _MAX_CLIENTS)


def _bounce(
    report: RolloutReport, record: Mapping[str, object], policy: Policy, signed: set[str], unsigned: set[str]
) -> None:
    path = _address(_text(record, "forward_path"))
    name = path.rpartition("@")[2]
    ours = policy.for_domain(name.encode("utf-8", "replace"))
    if ours is None or not _text(record, "reply").startswith(("2", "5")):
        return  # somebody else's, or one that comes again
    domain = report.domains.setdefault(name, Domain(name))
    verdict = record.get("verdict")
    if verdict == Verdict.VALID.value:
        domain.valid += 1
    elif verdict == Verdict.RESCUED.value:
        domain.rescued += 1
    elif verdict in _FORGED:
        domain.forged += 1
    elif verdict == Verdict.EXPIRED.value:
        domain.genuine += 1
        _seen(report, path, Guess.LATE, record)
    elif verdict == Verdict.UNTAGGED.value:
        _untagged(report, domain, path, record, rescues=ours.rescue, sent=(signed, unsigned))


def _untagged(  # noqa: PLR0913 -- what is known of it
    report: RolloutReport,
    domain: Domain,
    path: str,
    record: Mapping[str, object],
    *,
    rescues: bool,
    sent: tuple[set[str], set[str]],
) -> None:
    signed, unsigned = sent
    reason = _text(record, "reason")
    if ANSWERED in reason and rescues:
        domain.rescued += 1  # looked at only, but it would have been
    elif ANSWERED in reason or path in unsigned:
        domain.genuine += 1
        _seen(report, path, Guess.ANSWERED if ANSWERED in reason else Guess.UNSIGNED, record)
    else:
        domain.unknown += 1
        guess = Guess.SIGNED if path in signed else Guess.NEVER_SEEN
        _seen(report, path, Guess.IN_OUR_NAME if IN_OUR_NAME in reason else guess, record)


def _seen(report: RolloutReport, path: str, guess: Guess, record: Mapping[str, object]) -> None:
    key = (path, guess)
    if key not in report.addresses:
        if len(report.addresses) >= _MAX_ADDRESSES:
            return
        report.addresses[key] = Address(path, guess, first=_text(record, "time"))
    address = report.addresses[key]
    address.bounces += 1
    address.withheld += record.get("disposition") in {"discard", "quarantine", "reject"}
    address.last = max(address.last, _text(record, "time"))
    _count(address.clients, _text(record, "client"), _MAX_CLIENTS)


def _count(counter: Counter[str], name: str, limit: int) -> None:
    if name in counter or len(counter) < limit:
        counter[name] += 1


def _text(record: Mapping[str, object], field_name: str) -> str:
    value = record.get(field_name)
    return value if isinstance(value, str) else ""


def _address(path: str) -> str:
    # Addresses that differ in capitals alone are one mailbox wherever it matters here.
    return path.removeprefix("<").removesuffix(">").lower()
