"""`batv explain`: an address, a message, or what the journal has of a session: what becomes of it, and why.

An address is judged by the same stages as mail. A message is judged so too, unless it says what it met: a file of the
quarantine does, and so does one that was marked. Of both, and of the journal, tags are only ever shown cut short.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import click

from batv import stage
from batv.address import NULL_REVERSE_PATH, ForwardPath, Mailbox
from batv.bounce import clue_in, clue_of_sender
from batv.cli import Site
from batv.cli.address import HERE, day_option, parsed_mailbox, reverse_path, verified
from batv.cli.causes import Causes
from batv.cli.ledger import may_have_left_unsigned, opened_ledger
from batv.cli.output import json_option, print_fields, print_json, remark, text_of
from batv.day import CYCLE, Day, stamp_distance
from batv.errors import BatvError, IoError, PathError
from batv.observe.event import Direction, clean, printable
from batv.proxy.rollout import Rollout
from batv.rescue import FIRST_PART_OCTETS, Claims, Found, addresses_in, claims_of
from batv.smtp.path import parse_mail, parse_rcpt
from batv.store.rollout import RolloutStore
from batv.tag import take_off
from batv.verdict import STATUS_BY_VERDICT, Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batv.bounce import Clue
    from batv.config import Settings
    from batv.keyring import KeyRings
    from batv.tag import Tagged

__all__ = ["explain"]

_NO: Final = 1
_MAX_RECIPIENTS: Final = 32
"""Addresses that are explained of a message that does not say which one it came to."""

_QUARANTINE_FIELD: Final = re.compile(
    rb"(Return-Path|X-Original-To|X-Batv-Verdict|X-Batv-Transaction): ([^\r\n]*+)\r\n"
)
# A long reason was cut, and its bracket with it.
_VERDICT: Final = re.compile(r"([a-z-]+) \((.*?)\)?")
_NEWLINE: Final = re.compile(rb"\r?\n")
_FOLD: Final = re.compile(rb"\r\n[ \t]++")
_FIELD: Final = re.compile(rb"(?i)(return-path|x-original-to|delivered-to|to|x-batv-status)[ \t]*+:[ \t]*+([^\r\n]*+)")
_RECIPIENT_FIELDS: Final = (b"x-original-to", b"delivered-to", b"to")
_VALUE_OCTETS: Final = 16_384

WordT = TypeVar("WordT", Verdict, Disposition)


@click.command()
@click.argument("address", required=False)
@click.option(
    "--message", "file", metavar="FILE", type=click.Path(path_type=Path), help="A message, or a file of the quarantine."
)
@click.option("--session", metavar="ID", help="A session or a transaction, as the log and the journal name it.")
@day_option
@json_option
@click.pass_context
def explain(  # noqa: PLR0913 -- one argument for each option
    ctx: click.Context,
    *,
    address: str | None,
    file: Path | None,
    session: str | None,
    day: Day | None,
    as_json: bool,
) -> None:
    """Say what the proxies would do with an address, and why.

    With --message: what they do with that message, or did where it says so. With --session: what they did, as the
    journal has it; exit status 1 if it has nothing.
    """
    if sum(each is not None for each in (address, file, session)) != 1:
        raise click.UsageError("give one of ADDRESS, --message FILE and --session ID")
    mailbox = parsed_mailbox(address) if address is not None else None
    site = ctx.ensure_object(Site)
    settings = site.settings()
    rollout = Rollout(settings)
    rollout.progress = RolloutStore(Path(settings.state.directory)).read()
    causes = Causes(settings, rollout, site.config_path)
    if session is not None:
        records = [_record_fields(record, causes) for record in _records(settings, session)]
        if not records:
            remark(f"the journal has nothing of {clean(session)}: look into the log of the service")
            ctx.exit(_NO)
        _print({"session": clean(session)}, "records", records, as_json=as_json)
        return
    day = day or site.today()
    if mailbox is not None:
        explained = _Explained(mailbox, settings, site, site.rings(settings), day, rollout, causes)
        fields = explained.parts() | explained.bounce() | explained.mail()
        if as_json:
            print_json(fields)
        else:
            _print_block(fields)
        return
    if file is not None:
        message = _Message.read(file)
        reader = _MessageReader(message, settings, site, day, rollout, causes)
        claims = claims_of(message.octets)
        recipients = reader.recipients(claims)
        if not recipients:
            remark(f"{file} names no recipient: give its address, batv explain ADDRESS")
            ctx.exit(_NO)
        _print(reader.fields(claims), "recipients", recipients, as_json=as_json)


def _print(head: Mapping[str, object], name: str, blocks: Sequence[Mapping[str, object]], *, as_json: bool) -> None:
    if as_json:
        print_json({**head, name: blocks})
        return
    _print_block(head)
    for block in blocks:
        click.echo()
        _print_block(block)


def _print_block(fields: Mapping[str, object]) -> None:
    print_fields((name.replace("_", " "), _shown(value)) for name, value in fields.items())


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


# An address.


@dataclass(frozen=True, slots=True)
class _Explained:
    """Everything there is to say about an address on a day."""

    address: Mailbox
    settings: Settings
    site: Site
    rings: KeyRings
    day: Day
    rollout: Rollout
    causes: Causes

    def parts(self) -> dict[str, object]:
        """Return the address, its tag piece by piece, and the key."""
        fields: dict[str, object] = {
            "address": text_of(self.address.octets),
            "today": self.day.iso(),
            "stamp_of_today": self.day.stamp.decode(),
        }
        tagged = take_off(self.address)
        if tagged is None:
            return fields | {"tag": None}
        tag = tagged.tag
        fields |= {
            "tag": tag.octets.decode(),
            "placement": tagged.placement.value,
            "without_tag": text_of(tagged.mailbox.octets),
            "key_number": tag.key_number,
            "key": self._key(tagged),
            "stamp": tag.stamp.decode(),
            "stamp_is_day": self._stamp_day(tagged).iso(),
            "signature": tag.signature.decode(),
        }
        found = verified(self.address, self.settings, self.rings, self.day)
        if found.case is not None:
            fields["hashed_as"] = "lower case" if found.case.value == "fold" else "written"
        if found.days_left is not None:
            fields["days_left"] = found.days_left
        return fields

    def bounce(self) -> dict[str, object]:
        """Return what a bounce to the address would meet."""
        verifier = stage.VerifyingStage(self.rollout.applied(self.settings.policy))
        path = ForwardPath(b"<%b>" % self.address.octets, self.address)
        decision = verifier.recipient(NULL_REVERSE_PATH, path, HERE, self.rings, self.day)
        if decision.recall:
            with opened_ledger(self.site, self.settings, self.day) as ledger:
                on_record = may_have_left_unsigned(ledger, self.address, self.rings)
            decision = verifier.recalled(decision, on_record=on_record)
        goes_to = None
        if decision.disposition in {Disposition.PASS, Disposition.REWRITE, Disposition.MARK}:
            goes_to = text_of(decision.path.octets)
        return {
            "verdict": str(decision.verdict),
            "reason": decision.reason,
            "a_bounce_to_it": str(decision.disposition),
            "goes_on_to": goes_to,
            "rule": self.causes.rule(self.address, decision.verdict, decision.reason),
        }

    def mail(self) -> dict[str, object]:
        """Return what mail from the address would meet."""
        signer = stage.SigningStage(self.settings.policy, self.settings.tags.style)
        path = reverse_path(self.address)
        decision = signer.sender(path, HERE, self.rings, self.day)
        if decision.verdict is Verdict.SIGNED:
            becomes = f"signed with key {decision.key_number}: {text_of(decision.path.octets)}"
            if signer.wants_recipient(path, HERE, self.day):
                becomes += "; unsigned to recipients that are exempt"
        elif decision.disposition is Disposition.REJECT:
            becomes = f"answered 550: {decision.reason.removeprefix('unsigned: ')}"
        elif decision.disposition is Disposition.DEFER:
            becomes = f"answered 451: {decision.reason}"
        else:
            becomes = decision.reason
        return {"mail_from_it": becomes}

    def _key(self, tagged: Tagged) -> str:
        number = tagged.tag.key_number
        rings = self.rings.rings_for(self.address.domain, self.day)
        said = []
        for ring in rings:
            name = "default" if ring is self.rings.default else "own"
            key = ring.key(number)
            if key is None:
                said.append(f"not in the {name} ring")
                continue
            until = f", its tags are good until {key.last_alive}" if key.last_alive is not None else ""
            step = f", a tag for {key.step} days" if key.step != 1 else ""
            said.append(f"{key.role(self.day)} in the {name} ring, lifetime {key.lifetime} days{step}{until}")
        return "; ".join(said) or "there is no key ring"

    def _stamp_day(self, tagged: Tagged) -> Day:
        ahead = stamp_distance(tagged.tag.stamp, self.day)
        # A stamp names a day of every cycle; the nearest one is meant.
        return self.day + (ahead if ahead <= CYCLE // 2 else ahead - CYCLE)


# A message.


class _Fate(NamedTuple):
    """What a message says that it met for one recipient."""

    verdict: Verdict
    disposition: Disposition
    reason: str


@dataclass(frozen=True, slots=True)
class _Message:
    """What a file has of a message.

    Attributes:
        octets: the first of them, line ends CRLF.
        sender: the reverse path as text; None where nothing tells it.
        recipients: as written, each with what it met; None where the file does not say.
        status: what the inbound proxy marked it with; empty if it did not.
        transaction: its name in the journal; None where the file does not say.
        named_by: the field that names the recipients.
    """

    octets: bytes
    sender: bytes | None
    recipients: Sequence[tuple[bytes, _Fate | None]]
    status: bytes
    transaction: str | None
    named_by: str

    @classmethod
    def read(cls, path: Path) -> _Message:
        """Read the first part of a file.

        Raises:
            IoError: it cannot be read, or is no regular file.
        """
        remedy = "name a message, or a file of the quarantine"
        try:
            # A pipe would keep us waiting.
            if path.exists() and not path.is_file():
                raise IoError(f"{path} is no regular file", remedy)
            with path.open("rb") as file:
                octets = file.read(FIRST_PART_OCTETS)
        except OSError as error:
            raise IoError(f"cannot read {path}: {(error.strerror or '').lower()}", remedy) from error
        if octets.startswith(b"From "):  # the line with which a message begins in an mbox
            octets = octets.partition(b"\n")[2]
        octets = _NEWLINE.sub(b"\r\n", octets)
        return cls._of_quarantine(octets) or cls._of_mail(octets)

    @classmethod
    def _of_quarantine(cls, octets: bytes) -> _Message | None:
        """Return what stands before a message in the quarantine; None if this is another file."""
        sender: bytes | None = None
        found: list[tuple[bytes, _Fate | None]] = []
        recipient, at = b"", 0
        while (match := _QUARANTINE_FIELD.match(octets, at)) is not None:
            name, value, at = match[1], match[2], match.end()
            if name == b"Return-Path":
                sender = value
            elif name == b"X-Original-To":
                recipient = value
            elif name == b"X-Batv-Verdict":
                said = _VERDICT.fullmatch(printable(value))
                verdict = _word(Verdict, said[1]) if said is not None else None
                if said is None or verdict is None:
                    return None
                found.append((recipient, _Fate(verdict, Disposition.QUARANTINE, said[2])))
            else:  # the last of ours: what follows is the message itself
                return cls(octets[at:], sender, found, b"", printable(value), "X-Original-To") if found else None
        return None

    @classmethod
    def _of_mail(cls, octets: bytes) -> _Message:
        fields: dict[bytes, bytes] = {}
        head = b"" if octets.startswith(b"\r\n") else octets.partition(b"\r\n\r\n")[0]
        for line in _FOLD.sub(b" ", head).split(b"\r\n"):
            if (match := _FIELD.match(line)) is not None:
                fields.setdefault(match[1].lower(), match[2].strip()[:_VALUE_OCTETS])
        name = next((each for each in _RECIPIENT_FIELDS if addresses_in(fields.get(each, b""), 1)), b"")
        most = _MAX_RECIPIENTS if name == b"to" else 1  # an envelope's field has one
        recipients = [(b"<%b>" % each, None) for each in addresses_in(fields.get(name, b""), most)]
        status = fields.get(b"x-batv-status", b"")
        return cls(octets, fields.get(b"return-path"), recipients, status, None, name.decode().title())


@dataclass(frozen=True, slots=True)
class _MessageReader:
    """Everything there is to say about a message on a day."""

    message: _Message
    settings: Settings
    site: Site
    day: Day
    rollout: Rollout
    causes: Causes

    def fields(self, claims: Claims) -> dict[str, object]:
        """Return what holds for all its recipients."""
        sender = self.message.sender
        return {
            "today": self.day.iso(),
            "return_path": "none: taken for a bounce; else put it first, as Return-Path: <...>"
            if sender is None
            else printable(sender),
            "bounce_by": "null sender" if self._sender is None else str(self._clue or "nothing"),
            "recipients_from": self.message.named_by,
            "transaction": self.message.transaction,
            "kind": str(claims.kind),
            "answers": [printable(each) for each in claims.message_ids],
            "speaks_of": [printable(each) for each in claims.parties],
        }

    def recipients(self, claims: Claims) -> list[dict[str, object]]:
        """Return what there is to say of each recipient."""
        rings = self.site.rings(self.settings)
        # Where no domain marks, such a field is not taken out, and anybody may have written it.
        marked = _marked(self.message.status) if self.settings.policy.marks else None
        found: list[dict[str, object]] = []
        for path, said in self.message.recipients:
            mailbox = _mailbox_of(path, sender=False)
            known = self._known(claims, mailbox)
            fate, judged_by = said or marked, "the file, which says what it met"
            if fate is None:
                if mailbox is None:
                    continue
                fate, judged_by = self._judged(mailbox, rings, claims, known), "today's settings and keys"
            tagged = take_off(mailbox) if mailbox is not None else None
            with_sender = self._sender is not None
            cause = self.causes.of_recipient(
                mailbox, fate.verdict, fate.disposition, fate.reason, with_sender=with_sender
            )
            found.append(
                {
                    "recipient": printable(path),
                    "key": tagged.tag.key_number if tagged is not None else None,
                    "stamp": tagged.tag.stamp.decode() if tagged is not None else None,
                    "verdict": str(fate.verdict),
                    "disposition": str(fate.disposition),
                    "reason": clean(fate.reason),
                    "judged_by": judged_by,
                    "ledger": "there is none" if known is None else str(known),
                    "rule": clean(cause.rule),
                    "otherwise": cause.otherwise,
                    "to_change_it": cause.to_change_it,
                }
            )
        return found

    def _judged(self, mailbox: Mailbox, rings: KeyRings, claims: Claims, known: Found | None) -> _Fate:
        """Return what the message would meet if it came today, from a client of which nothing is known."""
        verifier = stage.VerifyingStage(self.rollout.applied(self.settings.policy), self.settings.tags.style)
        reverse = NULL_REVERSE_PATH if self._sender is None else reverse_path(self._sender)
        path = ForwardPath(b"<%b>" % mailbox.octets, mailbox)
        decision = verifier.recipient(reverse, path, HERE, rings, self.day)
        clue = self._clue if decision.as_bounce is not None else None
        if clue is not None:
            decision = decision.as_bounce or decision
        if decision.recall:
            with opened_ledger(self.site, self.settings, self.day) as ledger:
                on_record = may_have_left_unsigned(ledger, mailbox, rings)
            decision = verifier.recalled(decision, on_record=on_record)
        if decision.undecided:
            decision = verifier.content(decision, claims, known or Found.UNREADABLE)
        if clue is not None:
            (decision,) = stage.judged_together([decision], clue)
        return _Fate(decision.verdict, decision.disposition, decision.reason)

    @property
    def _sender(self) -> Mailbox | None:
        """The sender; None for a null one."""
        return _mailbox_of(self.message.sender, sender=True)

    @property
    def _clue(self) -> Clue | None:
        """What shows that the message is a bounce though it has a sender; None where nothing does."""
        return clue_of_sender(self._sender) or clue_in(self.message.octets)

    def _known(self, claims: Claims, mailbox: Mailbox | None) -> Found | None:
        """Return what the ledger knows of the message for a recipient; None where there is no ledger."""
        if not self.settings.ledger.enabled or mailbox is None:
            return None
        if not claims.message_ids or not claims.parties:
            return Found.CLAIMS_NOTHING
        try:
            with opened_ledger(self.site, self.settings, self.day) as ledger:
                if ledger is None:
                    return None
                known = ledger.knows(claims.message_ids, mailbox.octets, claims.parties)
        except (BatvError, OSError):
            return Found.UNREADABLE
        return Found.KNOWN if known else Found.UNKNOWN


def _marked(status: bytes) -> _Fate | None:
    """Return what a message met that the inbound proxy has marked."""
    for verdict, value in STATUS_BY_VERDICT.items():
        if value == status:
            genuine = {Verdict.VALID: Disposition.REWRITE, Verdict.RESCUED: Disposition.PASS}
            return _Fate(verdict, genuine.get(verdict, Disposition.MARK), f"X-Batv-Status: {value.decode()}")
    return None


# The journal.


def _records(settings: Settings, name: str) -> Iterator[Mapping[str, object]]:
    """Yield the records of a session or of a transaction.

    Raises:
        IoError: there is no journal, or it cannot be read.
    """
    from batv.report.journal import JournalReader, rotated  # noqa: PLC0415 -- only where the journal is read

    journal = Path(settings.state.directory) / "journal.jsonl"
    paths = rotated(journal)
    if not paths:
        raise IoError(f"there is no {journal}", "let mail pass the proxies first")
    for record in JournalReader(paths, holding=name.encode("utf-8", "surrogateescape")):
        if name in (record.get("session"), record.get("transaction")):
            yield record


def _record_fields(record: Mapping[str, object], causes: Causes) -> dict[str, object]:
    """Return a record with its causes."""
    fields = {name: clean(value) if isinstance(value, str) else value for name, value in record.items()}
    verdict = _word(Verdict, record.get("verdict"))
    disposition = _word(Disposition, record.get("disposition"))
    if verdict is None:
        return fields
    outbound = record.get("direction") == Direction.OUTBOUND.word
    path = str(record.get("reverse_path" if outbound else "forward_path", "")).encode("utf-8", "surrogateescape")
    mailbox = _mailbox_of(path, sender=outbound)
    reason, with_sender = str(record.get("reason", "")), record.get("reverse_path") != "<>"
    if outbound:
        cause, today = causes.of_sender(mailbox, verdict, disposition, reason), None
    else:
        cause = causes.of_recipient(mailbox, verdict, disposition, reason, with_sender=with_sender)
        today = causes.today(mailbox, verdict, reason, with_sender=with_sender)
    return fields | {
        "rule": clean(cause.rule),
        "otherwise": cause.otherwise,
        "to_change_it": cause.to_change_it,
        "today_it_would_get": str(today) if today is not None else None,
    }


def _mailbox_of(path: bytes | None, *, sender: bool) -> Mailbox | None:
    """Return the mailbox of a path as the proxies print it; None where it has none."""
    path = path or b"<>"
    if not path.startswith(b"<"):
        path = b"<%b>" % path
    try:
        return parse_mail(b"FROM:" + path).path.mailbox if sender else parse_rcpt(b"TO:" + path).path.mailbox
    except PathError:
        return None


def _word(words: type[WordT], text: object) -> WordT | None:
    return next((each for each in words if each.word == text), None)
