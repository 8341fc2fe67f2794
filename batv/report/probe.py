"""A probe of the whole loop: mail that a remote site cannot deliver, its bounce, and a bounce that nobody sent.

Steps, each told as soon as it is over:

1. `mailbox`: the inbound proxy is asked whether there is one for the address that the probe is sent from.
2. `sent`: the message is handed in where mail of users is signed.
3. `signed`: the outbound proxy has it on record as signed. Where that proxy is another host's, the bounce alone tells.
4. `bounce`: a bounce to that address is on record, as one with a good tag that the next hop took. Any other says
   that the loop is broken, but for one that is to come again.
5. `untagged`: a bounce without a tag, to the same address, is handed to the inbound proxy, and fares as it is to.

Whatever keeps the message from being sent says nothing about the loop: the probe is inconclusive, and nothing more is
tried. What is on record is read from the journal; a reply alone proves nothing.

Both messages say what they are, and that nobody wrote them (RFC 3834).

Source: draft-levine-smtp-batv-01 section 5; RFC 3834 section 5 for Auto-Submitted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from email.utils import formatdate, make_msgid
from typing import TYPE_CHECKING, Final

from batv.errors import BatvError
from batv.net.connection import NextHopFault
from batv.net.next_hop import NextHop
from batv.net.submission import submit
from batv.observe.event import Direction, clean
from batv.probe import Loop
from batv.report.journal import JournalFollower
from batv.smtp.origin import Origin, Source
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from batv.address import Mailbox
    from batv.config import Endpoint, NextHopSettings
    from batv.probe import ProbeSender
    from batv.smtp.reply import Reply

__all__ = ["Course", "Step", "probe"]

_LOOK_SECONDS: Final = 0.2
"""Between two looks into the journal."""

_SAME_RINGS: Final = "give both proxies the same key rings"
_REMEDIES: Final = {
    Verdict.UNTAGGED.word: "let this mail leave by the outbound proxy; if it did, the other site bounces to the"
    " address in the header, or a server on the way takes tags off",
    Verdict.UNKNOWN_KEY.word: _SAME_RINGS,
    Verdict.BAD_SIGNATURE.word: _SAME_RINGS,
}
"""What to do about a bounce that came home in another way than it should, by its verdict."""

_ABOUT: Final = (
    "This message tests whether bounces come home to the site that sent it. Its\r\n"
    "recipient does not exist, and the bounce is what is wanted. Nobody need read or\r\n"
    "answer it; if it is in your way, please tell postmaster@{domain}.\r\n"
)
_ABOUT_UNTAGGED: Final = (
    "This message tests what becomes of a bounce of mail that {domain} has not\r\n"
    "sent. Nobody need read or answer it.\r\n"
)


@dataclass(frozen=True, slots=True)
class Course:
    """Where the probe leads.

    Attributes:
        senders: the addresses from which probes are sent.
        word: what stands for the star in this one's.
        recipient: who does not exist.
        via: where the message is handed in.
        inbound: where the inbound proxy listens.
        patience: how long these may take.
        hostname: what we call ourselves.
        journal: the journal of both proxies, or of the inbound one.
        wait_seconds: how long the bounce may take.
        untagged: returns what a bounce without a tag is to get now: while the bounce is waited for, a domain may come
            further. Raises BatvError where that is not known, or where none is judged any more.
    """

    senders: ProbeSender
    word: str
    recipient: Mailbox
    via: Endpoint
    inbound: Endpoint
    patience: NextHopSettings
    hostname: str
    journal: Path
    wait_seconds: float
    untagged: Callable[[], Disposition]

    @property
    def sender(self) -> Mailbox:
        """The address that this probe is sent from."""
        return self.senders.of(self.word)


@dataclass(frozen=True, slots=True)
class Step:
    """How a step ended.

    Attributes:
        name: the step.
        loop: what it says of the loop.
        found: a clause.
        seconds: how long the bounce took, of the step that waits for it.
    """

    name: str
    loop: Loop
    found: str
    seconds: float | None = None


async def probe(course: Course, tell: Callable[[Step], None], begin: Callable[[], None]) -> list[Step]:
    """Probe the loop, and return the steps.

    Args:
        course: where the probe leads.
        tell: called with each step when it is over.
        begin: called before the message is sent; what it raises keeps it from being sent.

    Raises:
        IoError: the journal cannot be read.
    """
    steps: list[Step] = []

    def over(step: Step) -> bool:
        steps.append(step)
        tell(step)
        return step.loop is Loop.WORKS

    with JournalFollower(course.journal) as journal:
        run = _Probe(course, journal)
        if not over(await run.mailbox()):
            return steps
        begin()
        if not over(await run.send()):
            return steps
        async for step in run.home():
            over(step)
        over(await run.untagged())
    return steps


class _Probe:
    def __init__(self, course: Course, journal: JournalFollower) -> None:
        self._course = course
        self._journal = journal
        self._inbound = NextHop((course.inbound,), course.patience, course.hostname)
        self._message_id = make_msgid(domain=course.hostname)
        self._sent_at = 0.0

    async def mailbox(self) -> Step:
        """Ask about the mailbox: without one no bounce could ever come home."""
        path = b"<%b>" % self._course.sender.octets
        try:
            said = (await submit(self._inbound, b"<>", [path], None)).last
        except NextHopFault as fault:
            return Step("mailbox", Loop.INCONCLUSIVE, clean(f"the inbound proxy {self._course.inbound}: {fault}"))
        if not said.positive:
            remedy = "let your mail store take all addresses of probe.sender"
            return Step("mailbox", Loop.INCONCLUSIVE, f"{_path(path)} has none, {_text(said)}: {remedy}")
        return Step("mailbox", Loop.WORKS, f"{_path(path)}: {_text(said)}")

    async def send(self) -> Step:
        """Hand in the message."""
        course = self._course
        # Who signs only what was submitted in front is told that this was, as it is.
        server = NextHop((course.via,), course.patience, course.hostname)
        sender, recipient = (b"<%b>" % each.octets for each in (course.sender, course.recipient))
        content = self._content(str(course.sender), str(course.recipient), "Test of bounces", _ABOUT)
        self._sent_at = asyncio.get_running_loop().time()
        try:
            said = (await submit(server, sender, [recipient], content, Origin(source=Source.LOCAL))).last
        except NextHopFault as fault:
            return Step("sent", Loop.INCONCLUSIVE, clean(f"{course.via}: {fault}"))
        if not said.positive:
            return Step("sent", Loop.INCONCLUSIVE, f"{course.via} does not take it: {_text(said)}")
        return Step("sent", Loop.WORKS, f"to {_path(recipient)}, by {course.via}: {_text(said)}")

    async def home(self) -> AsyncIterator[Step]:
        """Wait until the bounce is on record, and yield what is seen of the message meanwhile."""
        loop = asyncio.get_running_loop()
        until = self._sent_at + self._course.wait_seconds
        while True:
            over = loop.time() >= until
            for record in self._journal.records():
                step = self._step(record)
                if step is not None:
                    yield step
                    if step.name == "bounce" or step.loop is Loop.BROKEN:
                        return
            if over:
                yield Step("bounce", Loop.BROKEN, f"none came home within {self._course.wait_seconds:g} s")
                return
            await asyncio.sleep(min(_LOOK_SECONDS, max(until - loop.time(), 0.0)))

    async def untagged(self) -> Step:
        """Hand in a bounce that nobody sent."""
        course = self._course
        path = b"<%b>" % course.sender.octets
        self._message_id = make_msgid(domain=course.hostname)
        author = f"MAILER-DAEMON@{course.hostname}"
        content = self._content(author, str(course.sender), "Test of a bounce without a tag", _ABOUT_UNTAGGED)
        try:
            wanted = course.untagged()
        except BatvError as error:
            return Step("untagged", Loop.INCONCLUSIVE, clean(str(error)))
        try:
            said = (await submit(self._inbound, b"<>", [path], content)).last
        except NextHopFault as fault:
            return Step("untagged", Loop.INCONCLUSIVE, clean(f"the inbound proxy {course.inbound}: {fault}"))
        if said.transient:
            return Step("untagged", Loop.INCONCLUSIVE, f"the inbound proxy does not take it now: {_text(said)}")
        record = next(filter(self._is_untagged, self._journal.records()), None)
        if record is None:
            return Step("untagged", Loop.INCONCLUSIVE, f"{course.journal} does not have it: {_text(said)}")
        got = _word(record, "disposition")
        if got != wanted.value:
            found = f"{got}, and not {wanted}: {_word(record, 'reason')}: {_text(said)}"
            return Step("untagged", Loop.MISJUDGED, found)
        return Step("untagged", Loop.WORKS, f"{got}, as it is to be: {_text(said)}")

    def _step(self, record: Mapping[str, object]) -> Step | None:
        """Return the step that is over with a record of the journal, or None."""
        reply = _word(record, "reply")
        if _word(record, "direction") == Direction.OUTBOUND.word:
            if _word(record, "message_id") != self._message_id or not reply.startswith("2"):
                return None
            works = _word(record, "verdict") == Verdict.SIGNED.word
            return Step("signed", Loop.WORKS if works else Loop.BROKEN, _word(record, "reason"))
        if not self._is_ours(record) or reply.startswith("4"):
            return None  # somebody else's, or one that comes again
        verdict, disposition = _word(record, "verdict"), _word(record, "disposition")
        seconds = asyncio.get_running_loop().time() - self._sent_at
        found = f"{verdict}, {disposition}, from {_word(record, 'client')}, after {seconds:.0f} s"
        if (verdict, disposition) == (Verdict.VALID.word, Disposition.REWRITE.word) and reply.startswith("2"):
            return Step("bounce", Loop.WORKS, found, round(seconds, 3))
        remedy = _REMEDIES.get(verdict)
        why = ": ".join([found, _word(record, "reason"), reply, *([remedy] if remedy else [])])
        return Step("bounce", Loop.BROKEN, why, round(seconds, 3))

    def _is_ours(self, record: Mapping[str, object]) -> bool:
        """Whether a record is of a message that came to the address of this probe."""
        inbound = _word(record, "direction") == Direction.INBOUND.word
        return inbound and self._course.senders.word_in(_word(record, "forward_path")) == self._course.word

    def _is_untagged(self, record: Mapping[str, object]) -> bool:
        # Of a message that was refused at DATA nobody has seen the Message-ID.
        return self._is_ours(record) and _word(record, "message_id") in {self._message_id, ""}

    def _content(self, author: str, to: str, subject: str, about: str) -> bytes:
        fields = (
            f"Date: {formatdate()}",
            f"From: {author}",
            f"To: {to}",
            f"Subject: {subject}",
            f"Message-ID: {self._message_id}",
            "Auto-Submitted: auto-generated",
        )
        text = about.format(domain=self._course.sender.domain.decode())
        return "\r\n".join((*fields, "", text)).encode()


def _word(record: Mapping[str, object], name: str) -> str:
    value = record.get(name)
    return clean(value) if isinstance(value, str) else ""


def _path(octets: bytes) -> str:
    return octets.decode("ascii", "backslashreplace")


def _text(reply: Reply) -> str:
    return clean(" ".join(str(reply).split()))
