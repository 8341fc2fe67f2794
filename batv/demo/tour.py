"""The tour: eight messages, what became of each, and a count of what is in all mailboxes together.

What became of a message is read from what is there afterwards: the mailboxes, the journal, the quarantine. A reply
alone proves nothing.

Source: draft-levine-smtp-batv-01 section 5 for what has to become of them.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass, field, replace
from email.message import Message
from email.parser import BytesParser
from email.utils import formatdate, make_msgid
from typing import TYPE_CHECKING, Any, Final, TypeVar

from batv.address import Mailbox
from batv.demo.maildir import Maildir, mailbox_folder
from batv.demo.next_hop import PATIENCE
from batv.net.connection import NextHopFault
from batv.net.next_hop import NextHop
from batv.net.submission import Submission, submit
from batv.signing import sign_with, strip, verify
from batv.smtp.path import parse_mail
from batv.tag import put_on, shorten, take_off
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from batv.config import Endpoint
    from batv.day import Day
    from batv.keyring import Key, KeyRing
    from batv.signing import Style

FoundT = TypeVar("FoundT")

__all__ = ["CORRESPONDENTS", "FORGED_FATES", "Course", "Row", "Tour", "users_of"]

CORRESPONDENTS: Final = ("friend@remote.example",)
"""Those who have a mailbox elsewhere; mail to any other address there bounces."""

FORGED_FATES: Final = {
    Disposition.DISCARD: "discarded",
    Disposition.QUARANTINE: "quarantined",
    Disposition.REJECT: "rejected",
    Disposition.MARK: "marked",
    Disposition.PASS: "delivered",
}
"""What has to become of a forged bounce, in the words of the table, by `on_forged`."""

_STRANGER: Final = b"nobody@remote.example"
_CONTACT: Final = CORRESPONDENTS[0].encode()
_BOUNCE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.05
_ARRIVED: Final = ("delivered", "marked")
_DISPOSITIONS: Final[dict[str, set[str]]] = {
    "delivered": {"pass", "rewrite"},
    "marked": {"mark"},
    "quarantined": {"quarantine"},
    "discarded": {"discard"},
    "rejected": {"reject"},
}


def users_of(domain: str) -> tuple[str, ...]:
    """Return those who have a mailbox in the store: joe, whose mail the tour is about, and others."""
    return tuple(f"{name}@{domain}" for name in ("joe", "ann", "postmaster"))


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        step: what was tried.
        sent_to: the recipient, tags shortened.
        expected: what should become of it.
        happened: what became of it.
    """

    step: str
    sent_to: str
    expected: str
    happened: str

    @property
    def ok(self) -> bool:
        """Whether it is as it should be."""
        return self.expected == self.happened


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A message in a mailbox."""

    path: Path
    message: Message


class _Evidence:
    """Mailboxes, journal and quarantine, as far as they came to be since the evidence was begun."""

    def __init__(self, state: Path, mail: Path) -> None:
        self._mail = mail
        self._quarantine = Maildir(state / "quarantine")
        self._journal = state / "journal.jsonl"
        self._begin = self._journal.stat().st_size if self._journal.exists() else 0
        known = (*self._all(set()), *self._of(self._quarantine, set()))
        self._before = {arrival.path.name for arrival in known}

    def arrivals(self, mailbox: str, message_id: str) -> list[_Arrival]:
        """Return the copies of a message in a mailbox."""
        return self._of(Maildir(mailbox_folder(self._mail, mailbox)), self._before, message_id)

    def quarantined(self, message_id: str) -> list[_Arrival]:
        """Return the copies of a message in the quarantine."""
        return self._of(self._quarantine, self._before, message_id)

    def bounces(self, mailbox: str, envelope_id: str) -> list[_Arrival]:
        """Return the notifications in a mailbox that are about the message of that envelope identifier."""
        found = self._of(Maildir(mailbox_folder(self._mail, mailbox)), self._before)
        return [arrival for arrival in found if envelope_id in _original_envelopes(arrival.message)]

    def delivered(self, message_ids: set[str]) -> int:
        """Return how many copies of the messages are in all mailboxes together."""
        return sum(arrival.message["Message-ID"] in message_ids for arrival in self._all(self._before))

    def records(self, message_id: str, forward_path: bytes) -> list[dict[str, Any]]:
        """Return the journal's records of a message to a recipient."""
        path = shorten(f"<{forward_path.decode()}>")
        with self._journal.open("rb") as file:
            file.seek(self._begin)
            records = [json.loads(line) for line in file.read().splitlines() if line]
        # A message that was refused at DATA was never seen: its record has no Message-ID.
        ids = {message_id, ""}
        return [each for each in records if each["message_id"] in ids and each["forward_path"] == path]

    def _all(self, before: set[str]) -> list[_Arrival]:
        folders = self._mail.iterdir() if self._mail.is_dir() else ()
        maildirs = [Maildir(folder) for folder in folders if "@" in folder.name]
        return [arrival for maildir in maildirs for arrival in self._of(maildir, before)]

    @staticmethod
    def _of(maildir: Maildir, before: set[str], message_id: str | None = None) -> list[_Arrival]:
        read = BytesParser().parsebytes
        new = [path for path in maildir.messages() if path.name not in before]
        found = [_Arrival(path, read(path.read_bytes())) for path in new]
        return [each for each in found if message_id is None or each.message["Message-ID"] == message_id]


@dataclass(frozen=True, slots=True)
class Course:
    """Where the tour leads, and what is expected there.

    Attributes:
        domain: domain of the senders; one that the proxies sign for.
        on_forged: what the settings want for its forged bounces.
        ring: the ring that signs for it.
        style: how tags are written.
        today: the day in UTC.
        outbound: where the outbound proxy listens.
        inbound: where the inbound proxy listens.
        state: folder of journal and quarantine.
        mail: folder of the mailboxes.
        by_verdict: what the settings want for forged bounces with these verdicts instead.
    """

    domain: str
    on_forged: Disposition
    ring: KeyRing
    style: Style
    today: Day
    outbound: Endpoint
    inbound: Endpoint
    state: Path
    mail: Path
    by_verdict: Mapping[Verdict, Disposition] = field(default_factory=dict)


class Tour:
    """The tour through a pair of running proxies.

    Args:
        course: where it leads.
        tell: called with each line of the narration.

    Raises:
        NoSigningKeyError: no key of the ring signs today.
    """

    def __init__(self, course: Course, tell: Callable[[str], None]) -> None:
        self._course = course
        self._key: Key = course.ring.signing_key(course.today)
        self._outbound = NextHop((course.outbound,), PATIENCE, "submission.example")
        self._inbound = NextHop((course.inbound,), PATIENCE, "mx.example")
        self._say = tell
        self._joe, self._ann = (Mailbox.parse(user.encode()) for user in users_of(course.domain)[:2])
        self._evidence = _Evidence(course.state, course.mail)
        self._ids: set[str] = set()

    async def take(self) -> list[Row]:
        """Take the tour and return the table."""
        out, signed, envelope_id = await self._message_goes_out()
        rows = [out]
        bounced, bounce = await self._bounce_comes_home(signed, envelope_id)
        rows.append(bounced)
        rows += await self._replays(bounce)
        rows.append(await self._ordinary_message())
        rows.append(await self._unknown_user(bounce))
        rows.append(self._count(rows))
        return rows

    # The steps.

    async def _message_goes_out(self) -> tuple[Row, Mailbox | None, str]:
        envelope_id = f"tour-{secrets.token_hex(6)}"
        content, message_id = self._letter(self._joe.octets, _CONTACT, "Hello", "Good day.")
        self._say(f"1. joe writes to {_CONTACT.decode()} and {_STRANGER.decode()}.")
        self._say(f"   the client says    MAIL FROM:<{self._joe}>")
        recipients = [b"<%b> NOTIFY=FAILURE ORCPT=rfc822;%b" % (each, each) for each in (_CONTACT, _STRANGER)]
        sender = b"<%b> RET=HDRS ENVID=%b" % (self._joe.octets, envelope_id.encode())
        said = await _offer(self._outbound, sender, recipients, content)
        found = self._evidence.arrivals(_CONTACT.decode(), message_id)
        records = self._evidence.records(message_id, _CONTACT) + self._evidence.records(message_id, _STRANGER)
        signed = _envelope_sender(found[0].message) if found else None
        if signed is not None:
            # In full, this once: it is what the tour is about, and the folder's owner can sign as many as they like.
            self._say(f"   the next hop got   MAIL FROM:<{signed}>")
        happened = self._outbound_fate(said, signed, len(found), records)
        return Row("mail out", _CONTACT.decode(), "signed", happened), signed, envelope_id

    async def _bounce_comes_home(self, signed: Mailbox | None, envelope_id: str) -> tuple[Row, bytes | None]:
        self._say(f"2. {_STRANGER.decode()} does not exist: the next hop sends a bounce.")
        row = Row("its bounce", _short(signed or self._joe), "delivered", "nothing came")
        if signed is None:
            return row, None
        try:
            async with asyncio.timeout(_BOUNCE_SECONDS):
                bounces = await _seen(lambda: self._evidence.bounces(str(self._joe), envelope_id))
                message_id = str(bounces[0].message["Message-ID"])
                # The store has the message a moment before the proxy hears so and records it.
                records = await _seen(lambda: self._evidence.records(message_id, signed.octets))
        except TimeoutError:
            return row, None
        self._ids.add(message_id)
        bounces = self._evidence.arrivals(str(self._joe), message_id)
        happened = _told(_arrived(bounces), records, Verdict.VALID)
        self._say(f"   it came to         {self._joe}")
        return replace(row, happened=happened), await asyncio.to_thread(_as_sent, bounces[0].path)

    async def _replays(self, bounce: bytes | None) -> list[Row]:
        key, day, style = self._key, self._course.today, self._course.style
        good = sign_with(self._joe, key, day, style)
        others = sign_with(self._ann, key, day, style)
        expired = sign_with(self._joe, key, day + -(key.longest + 2), style)
        self._say("3. to 6. Somebody replays that bounce to addresses that were never signed.")
        return [
            await self._replay("no tag", self._joe, Verdict.UNTAGGED, bounce),
            await self._replay("ann's tag", self._with_tag_of(others), Verdict.BAD_SIGNATURE, bounce),
            await self._replay("one digit", self._with_other_digit(good), Verdict.BAD_SIGNATURE, bounce),
            await self._replay("expired tag", expired, Verdict.EXPIRED, bounce),
        ]

    async def _replay(self, step: str, to: Mailbox, verdict: Verdict, bounce: bytes | None) -> Row:
        expected = FORGED_FATES[self._course.by_verdict.get(verdict, self._course.on_forged)]
        row = Row(step, _short(to), expected, "not tried")
        if bounce is None:
            return row
        message_id = str(BytesParser().parsebytes(bounce)["Message-ID"])
        before = len(self._evidence.arrivals(str(self._joe), message_id))
        kept_before = len(self._evidence.quarantined(message_id))
        recorded = len(self._evidence.records(message_id, to.octets))
        said = await _offer(self._inbound, b"<>", [b"<%b>" % to.octets], bounce)
        fate = _arrived(self._evidence.arrivals(str(self._joe), message_id)[before:])
        kept = len(self._evidence.quarantined(message_id)) - kept_before
        if not fate and kept:
            fate = "quarantined" if kept == 1 else "quarantined twice"
        # Two tags may look alike when shortened, so that records are told apart by their number.
        records = self._evidence.records(message_id, to.octets)[recorded:]
        happened = _told(fate or _refusal(said) or ("discarded" if records else ""), records, verdict)
        self._say(f"   {_short(to)}: {_last(said)}")
        return replace(row, happened=happened)

    async def _ordinary_message(self) -> Row:
        self._say(f"7. An ordinary message comes for {self._joe}, to the plain address.")
        content, message_id = self._letter(_CONTACT, self._joe.octets, "Re: Hello", "Good day to you too.")
        said = await _offer(self._inbound, b"<%b>" % _CONTACT, [b"<%b>" % self._joe.octets], content)
        found = self._evidence.arrivals(str(self._joe), message_id)
        self._say(f"   {self._joe}: {_last(said)}")
        return Row("plain mail", str(self._joe), "delivered", _arrived(found) or _refusal(said) or "lost")

    async def _unknown_user(self, bounce: bytes | None) -> Row:
        nobody = Mailbox(b"nobody", self._joe.domain)
        self._say(f"8. A forged bounce comes for {nobody}: the store is asked first.")
        said = await _offer(self._inbound, b"<>", [b"<%b>" % nobody.octets], bounce or b"\r\n")
        self._say(f"   {nobody}: {_last(said)}")
        return Row("unknown user", str(nobody), "refused", _refusal(said) or "taken")

    def _count(self, rows: Iterable[Row]) -> Row:
        """Look at all mailboxes once more: what was taken for discarded may have come late, or twice."""
        expected = sum(row.expected in (*_ARRIVED, "signed") for row in rows)
        count = self._evidence.delivered(self._ids)
        return Row("mailboxes", "everybody", f"{expected} messages", f"{count} messages")

    # Parts.

    def _letter(self, author: bytes, to: bytes, subject: str, text: str) -> tuple[bytes, str]:
        """Return a message and its Message-ID."""
        message_id = make_msgid(domain="tour.example")
        self._ids.add(message_id)
        fields = (
            f"Date: {formatdate(localtime=False)}",
            f"From: {author.decode()}",
            f"To: {to.decode()}",
            f"Subject: {subject}",
            f"Message-ID: {message_id}",
        )
        return "\r\n".join((*fields, "", text, "")).encode(), message_id

    def _outbound_fate(
        self, said: Submission | None, signed: Mailbox | None, copies: int, records: list[dict[str, Any]]
    ) -> str:
        if signed is None:
            return _refusal(said) or "lost"
        if copies > 1:
            return f"came {copies} times"
        if (
            strip(signed) != self._joe
            or verify(signed, self._course.ring, self._course.today).verdict is not Verdict.VALID
        ):
            return "not signed"
        if [record["verdict"] for record in records] != [str(Verdict.SIGNED)] * 2:
            return "signed, not on record"
        return "signed"

    def _with_tag_of(self, other: Mailbox) -> Mailbox:
        tagged = take_off(other)
        return put_on(self._joe, tagged.tag, tagged.placement) if tagged is not None else other

    def _with_other_digit(self, signed: Mailbox) -> Mailbox:
        tagged = take_off(signed)
        if tagged is None:
            return signed
        # The first: the others are not shown.
        signature = (b"0" if tagged.tag.signature[:1] != b"0" else b"1") + tagged.tag.signature[1:]
        return put_on(self._joe, replace(tagged.tag, signature=signature), tagged.placement)


async def _seen(look: Callable[[], list[FoundT]]) -> list[FoundT]:
    """Look until there is something to see."""
    while True:
        found = look()
        if found:
            return found
        await asyncio.sleep(_LOOK_SECONDS)


async def _offer(server: NextHop, sender: bytes, recipients: list[bytes], content: bytes) -> Submission | None:
    """Offer a message; None if nobody answers."""
    try:
        return await submit(server, sender, recipients, content)
    except NextHopFault:
        return None


def _arrived(copies: list[_Arrival]) -> str:
    """Return the word for a message in a mailbox; empty if it is not there."""
    if not copies:
        return ""
    if len(copies) > 1:
        return f"came {len(copies)} times"
    status = str(copies[0].message["X-Batv-Status"] or "")
    return "marked" if status.startswith("invalid") else "delivered"


def _refusal(said: Submission | None) -> str:
    """Return the word for a message that was not taken; empty if it was."""
    if said is None:
        return "no answer"
    if said.last.positive:
        return ""
    if not said.last.permanent:
        return "deferred"
    return "refused" if said.message is None else "rejected"


def _told(fate: str, records: list[dict[str, Any]], verdict: Verdict) -> str:
    """Return the word for what became of a bounce, with what the journal says where that is something else."""
    if not records:
        return f"{fate or 'lost'}, not on record"
    record = records[-1]
    if len(records) > 1:
        return f"{fate}, {len(records)} records"
    if record["disposition"] not in _DISPOSITIONS.get(fate, ()):
        return f"{fate}, on record: {record['disposition']}"
    return fate if record["verdict"] == str(verdict) else f"{fate} as {record['verdict']}"


def _last(said: Submission | None) -> str:
    return "no answer" if said is None else " ".join(str(said.last).split())


def _short(mailbox: Mailbox) -> str:
    return shorten(str(mailbox))


def _as_sent(path: Path) -> bytes:
    """Return a message without the two fields that its delivery put before it, with CRLF line ends."""
    _, _, rest = path.read_bytes().partition(b"\n")
    _, _, message = rest.partition(b"\n")
    return message.replace(b"\n", b"\r\n")


def _envelope_sender(message: Message) -> Mailbox | None:
    return parse_mail(b"FROM:" + str(message["Return-Path"]).encode()).path.mailbox


def _original_envelopes(message: Message) -> set[str]:
    """Return the envelope identifiers that a notification is about. Source: RFC 3464 section 2.2.1."""
    blocks = (
        block
        for part in message.walk()
        if part.get_content_type() == "message/delivery-status" and part.is_multipart()
        for block in part.get_payload()
    )
    return {str(block["Original-Envelope-Id"]) for block in blocks if isinstance(block, Message)}
