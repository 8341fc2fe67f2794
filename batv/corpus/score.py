"""What became of each message, from what really happened: the replies, what the sink got, the proxy's records.

Rules:

1. What the sink got is compared octet for octet with what was sent. Nothing may differ but what is promised: bare
   newlines and NUL made harmless, and the status field where the site marks.
2. A message that was taken and that nobody got was discarded only if the journal says so; else it is lost.
3. What the sink got and nobody sent is a mistake too.

Source: the rules of `batv.smtp.data` and `batv.smtp.header`, carried out here a second time and on whole messages.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from batv.corpus.classes import CLASSES
from batv.corpus.manifest import Ending, Outcome
from batv.corpus.proxies import Finding, key_of
from batv.observe.event import printable
from batv.verdict import FORGED, STATUS_BY_VERDICT, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batv.address import ForwardPath
    from batv.corpus.manifest import Recipient
    from batv.corpus.proxies import Proxy
    from batv.corpus.replay import Sent
    from batv.corpus.sink import Sink, Taken
    from batv.policy import Policy
    from batv.smtp.reply import Reply

__all__ = ["COLUMNS", "Fate", "Mistake", "Score", "score"]

COLUMNS: Final = (
    Outcome.DELIVERED, Outcome.DISCARDED, Outcome.REJECTED, Outcome.QUARANTINED, Outcome.MARKED, Outcome.ANSWERED,
    Outcome.DEFERRED, Outcome.LOST,
)  # fmt: skip
"""The columns of the matrix, in their order."""

_NEWLINE: Final = re.compile(rb"\r\n|[\r\n\0]")
_MESSAGE_ID: Final = re.compile(rb"(?im)^Message-ID[ \t]*:[ \t]*(?:\r\n[ \t]+)?([^\r\n]{1,998})")
_STATUS_FIELD: Final = re.compile(rb"(?im)^X-Batv-Status[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")
_OUR_STATUS: Final = re.compile(rb"X-Batv-Status: ([^\r\n]*)\r\n")
_REJECTED_FROM: Final = 500
_REFUSED_FROM: Final = 400


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one recipient of one message.

    Attributes:
        file: the message's file, or its place in the manifest for a call-out.
        kind: its class.
        recipient: what the manifest says of it.
        outcome: what became of it.
        reply: what the sender heard.
        finding: what the proxy says; None where it says nothing.
        faults: what is wrong about it, each one clause.
    """

    file: str
    kind: str
    recipient: Recipient
    outcome: Outcome
    reply: str
    finding: Finding | None
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One wrong fate, as text.

    Attributes:
        file: the message.
        kind: its class.
        recipient: its forward path, as the journal has it: tags cut short.
        expected: outcome and verdict.
        happened: likewise.
        faults: what is wrong.
        reason: the proxy's.
        why: what the manifest says about the address.
        reply: what the sender heard.
    """

    file: str
    kind: str
    recipient: str
    expected: str
    happened: str
    faults: str
    reason: str
    why: str
    reply: str


@dataclass(slots=True)
class Score:
    """The score of a replay.

    Attributes:
        fates: what became of every recipient, in the order of the manifest.
        strays: what the sink got and nobody sent, one clause each.
        messages: how many messages, call-outs among them.
        seconds: how long the replay took.
    """

    fates: list[Fate]
    strays: list[str] = field(default_factory=list)
    messages: int = 0
    seconds: float = 0.0

    @property
    def matrix(self) -> dict[str, Counter[Outcome]]:
        """How many recipients of each class met each outcome; classes in the order in which they are declared."""
        found: dict[str, Counter[Outcome]] = {name: Counter() for name in CLASSES}
        for fate in self.fates:
            found.setdefault(fate.kind, Counter())[fate.outcome] += 1
        return {kind: counts for kind, counts in found.items() if counts}

    @property
    def wrong(self) -> list[Fate]:
        """The fates with faults."""
        return [fate for fate in self.fates if fate.faults]

    @property
    def wrong_by_kind(self) -> Counter[str]:
        """How many fates of each class have faults."""
        return Counter(fate.kind for fate in self.wrong)

    @property
    def right(self) -> bool:
        """Whether everything met what was expected."""
        return not self.wrong and not self.strays

    @property
    def genuine_lost(self) -> int:
        """Bounces to good addresses that nobody got."""
        return self._count(Verdict.VALID, {Outcome.DELIVERED, Outcome.ANSWERED})

    @property
    def forged_delivered(self) -> int:
        """Forged bounces that somebody got, unmarked."""
        forged = [fate for fate in self.fates if fate.recipient.verdict in FORGED]
        return sum(fate.outcome is Outcome.DELIVERED for fate in forged)

    @property
    def ordinary_touched(self) -> int:
        """Recipients of mail that is no bounce who did not get it as it was sent."""
        ordinary = [fate for fate in self.fates if fate.recipient.verdict is Verdict.NOT_A_BOUNCE]
        return sum(bool(fate.faults) or fate.outcome is not Outcome.DELIVERED for fate in ordinary)

    def _count(self, verdict: Verdict, good: set[Outcome]) -> int:
        return sum(fate.recipient.verdict is verdict and fate.outcome not in good for fate in self.fates)

    def mistakes(self) -> list[Mistake]:
        """Return the wrong fates as text, strays last."""
        found = [_mistake(fate) for fate in self.wrong]
        return found + [Mistake("", "", "", "nothing", "delivered", stray, "", "", "") for stray in self.strays]


def score(results: Iterable[Sent], sink: Sink, proxy: Proxy, policy: Policy) -> Score:
    """Return what became of every recipient.

    Args:
        results: what was sent, and what the proxy answered.
        sink: what the next hop got; what is matched is taken away from it.
        proxy: its records.
        policy: what the site wants, for status fields.
    """
    proxy.read_journal()
    return _Scorer(sink, proxy, policy).score(list(results))


class _Scorer:
    def __init__(self, sink: Sink, proxy: Proxy, policy: Policy) -> None:
        self._proxy = proxy
        self._policy = policy
        self._taken: dict[str, list[Taken]] = defaultdict(list)
        for taken in sink.taken:
            self._taken[_message_id(taken.content)].append(taken)
        self._kept: dict[tuple[str, str], bytes] = {}
        for octets in proxy.quarantined():
            paths, message = _from_quarantine(octets)
            message_id = _message_id(message.replace(b"\n", b"\r\n"))
            self._kept.update({(path, message_id): message for path in paths})

    def score(self, results: list[Sent]) -> Score:
        fates = []
        for place, sent in enumerate(results, start=1):
            message_id = _message_id(_normalised(sent.content))
            name = sent.entry.file or f"call-out {place}"
            fates += [
                self._fate(sent, name, message_id, recipient, reply)
                for recipient, reply in zip(sent.entry.recipients, sent.replies, strict=True)
            ]
        strays = [
            f"the next hop got a message for {path.decode('utf-8', 'replace')} that was not sent to it"
            for messages in self._taken.values()
            for taken in messages
            for path in taken.recipients
        ]
        return Score(fates, strays, len(results))

    def _fate(self, sent: Sent, name: str, message_id: str, recipient: Recipient, reply: Reply) -> Fate:
        key = key_of(sent.entry, message_id, recipient)
        finding = self._proxy.findings.take(key)
        faults: list[str] = []
        if reply.code >= _REJECTED_FROM:
            outcome = Outcome.REJECTED
        elif reply.code >= _REFUSED_FROM:
            outcome = Outcome.DEFERRED
        elif sent.entry.ending is not Ending.MESSAGE:
            outcome = Outcome.ANSWERED
        else:
            outcome = self._after_250(sent, message_id, recipient, faults)
        if recipient.outcome is not None and outcome is not recipient.outcome:
            faults.insert(0, "another outcome")
        elif recipient.verdict is not None and finding is not None and finding.verdict != recipient.verdict.value:
            faults.append("another verdict")
        return Fate(name, sent.entry.kind, recipient, outcome, str(reply), finding, tuple(faults))

    def _after_250(self, sent: Sent, message_id: str, recipient: Recipient, faults: list[str]) -> Outcome:
        taken, argument = self._find(message_id, recipient)
        if taken is None:
            return self._withheld(sent, message_id, recipient, faults)
        taken.recipients.remove(argument)
        path, _, parameters = argument.decode("utf-8", "backslashreplace").partition("> ")
        path = path.removesuffix(">") + ">"
        if recipient.next_hop_path and path != recipient.next_hop_path:
            faults.append(f"the next hop got it for {path}")
        if parameters != recipient.parameters:
            faults.append("other RCPT parameters")
        if (
            taken.mail.decode("utf-8", "backslashreplace")
            != f"{sent.entry.reverse_path} {sent.entry.parameters}".strip()
        ):
            faults.append("another MAIL argument")
        marks = self._policy.marks
        status = _OUR_STATUS.match(taken.content) if marks else None
        expected = _normalised(sent.content)
        if marks:
            expected = _without_status(expected)
            if status is not None:
                expected = status[0] + expected
        if taken.content != expected:
            faults.append("other octets")
        if recipient.verdict is not None and (status[1] if status else None) != self._status(sent, recipient):
            faults.append("another status field")
        marked = status is not None and status[1].startswith(b"invalid")
        return Outcome.MARKED if marked else Outcome.DELIVERED

    def _find(self, message_id: str, recipient: Recipient) -> tuple[Taken | None, bytes]:
        """Return the message that the next hop got for a recipient, and what RCPT said there."""
        wanted = [path for path in (recipient.next_hop_path, _bare(recipient.path), recipient.forward_path) if path]
        for path in wanted:
            for taken in self._taken.get(message_id, ()):
                for argument in taken.recipients:
                    if argument == path.encode() or argument.startswith(path.encode() + b" "):
                        return taken, argument
        return None, b""

    def _withheld(self, sent: Sent, message_id: str, recipient: Recipient, faults: list[str]) -> Outcome:
        key = key_of(sent.entry, message_id, recipient)
        kept = self._kept.get((key[2], message_id))
        if kept is not None:
            if kept != _normalised(sent.content).replace(b"\r\n", b"\n"):
                faults.append("other octets in the quarantine")
            return Outcome.QUARANTINED
        recorded = self._proxy.findings.recorded
        return Outcome.DISCARDED if recorded is None or recorded[key] else Outcome.LOST

    def _status(self, sent: Sent, recipient: Recipient) -> bytes | None:
        mailbox = recipient.path.mailbox
        domain = self._policy.for_domain(mailbox.domain) if mailbox is not None else None
        if domain is not None and not sent.entry.null_sender:
            domain = domain.with_sender
        if domain is None or not domain.marks or recipient.verdict is None:
            return None
        return STATUS_BY_VERDICT.get(recipient.verdict)


_TAG: Final = re.compile(r"(?i)(?<=<)(\"?)prvs(2)?=[0-9]{4}[0-9a-f]{6}(?(2)[0-9a-f]{4})=")
_EXTENSION: Final = re.compile(r"(?i)\+prvs(2)?=[0-9]{4}[0-9a-f]{6}(?(1)[0-9a-f]{4})(?=\"?@)")


def _bare(path: ForwardPath) -> str:
    """Return a path without its tag, whatever that is worth: where mail may arrive that was not to."""
    text = path.octets.decode()
    without, count = _TAG.subn(r"\1", text, count=1)
    return without if count else _EXTENSION.sub("", text, count=1)


def _normalised(content: bytes) -> bytes:
    """Return a message as it must arrive: bare newlines and NUL made harmless, the last line ended."""
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"
    return _NEWLINE.sub(lambda match: b"\r\n" if match[0] in {b"\r\n", b"\n"} else b" ", content)


def _without_status(content: bytes) -> bytes:
    end = content.find(b"\r\n\r\n")
    header, body = (content, b"") if end < 0 else (content[: end + 2], content[end + 2 :])
    return _STATUS_FIELD.sub(b"", header) + body


def _message_id(content: bytes) -> str:
    """Return the Message-ID as the journal prints it; empty where there is none."""
    end = content.find(b"\r\n\r\n")
    match = _MESSAGE_ID.search(content if end < 0 else content[: end + 2])
    return printable(match[1].strip()) if match is not None else ""


_QUARANTINE_FIELD: Final = re.compile(rb"(Return-Path|X-Original-To|X-Batv-Verdict|X-Batv-Transaction): ([^\n]*)\n")


def _from_quarantine(octets: bytes) -> tuple[list[str], bytes]:
    """Return the recipients and the message of a file of the quarantine."""
    paths, at = [], 0
    while (match := _QUARANTINE_FIELD.match(octets, at)) is not None:
        if match[1] == b"X-Original-To":
            paths.append(match[2].decode())
        elif match[1] == b"Return-Path" and paths:
            break  # a field of the message itself
        at = match.end()
        if match[1] == b"X-Batv-Transaction":
            break  # the last of ours
    return paths, octets[at:]


def _mistake(fate: Fate) -> Mistake:
    from batv.tag import shorten  # noqa: PLC0415 -- tags are bearer credentials: none stands whole in a report

    recipient = fate.recipient
    verdict = recipient.verdict.value if recipient.verdict is not None else "open"
    outcome = recipient.outcome.value if recipient.outcome is not None else "open"
    found = fate.finding.verdict if fate.finding is not None else "?"
    return Mistake(
        fate.file,
        fate.kind,
        shorten(recipient.forward_path),
        f"{outcome} ({verdict})",
        f"{fate.outcome} ({found})",
        shorten("; ".join(fate.faults)),
        fate.finding.reason if fate.finding is not None else "the proxy gave none",
        recipient.why,
        shorten(fate.reply),
    )
