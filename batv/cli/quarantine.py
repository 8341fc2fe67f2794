"""`batv quarantine`: what is in the quarantine, what of it would pass today, and its way out.

A message is handed to the next hop of the inbound proxy as the proxy would have handed it on: null sender, the
recipient without a tag, the octets that came. It leaves the quarantine once the next hop has taken it, and not before.
Whatever goes wrong, a command hands it over once at most.

The quarantine keeps no signatures of tags, which are credentials: a bounce to an address with a tag cannot be judged
again, and is released by name alone. So is one whose tag was good and may have been guessed.
"""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batv.address import NULL_REVERSE_PATH
from batv.bounce import clue_in
from batv.cli.ledger import may_have_left_unsigned, opened_ledger
from batv.cli.output import json_option, print_json, print_table, remark, text_of
from batv.day import Day
from batv.errors import BatvError, ConfigError, IoError, PathError
from batv.net.connection import NextHopFault
from batv.net.next_hop import NextHop
from batv.observe.event import clean
from batv.proxy.rollout import Rollout
from batv.proxy.service import link_of
from batv.rescue import FIRST_PART_OCTETS, NO_CLAIMS, Found, claims_of
from batv.smtp.header import PEEK_OCTETS
from batv.smtp.path import parse_mail, parse_rcpt
from batv.stage import Client, VerifyingStage, judged_together
from batv.store.files import Owner, locked
from batv.store.quarantine import Quarantine
from batv.store.rollout import RolloutStore
from batv.tag import tag_and_rest
from batv.verdict import Disposition
from batv.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from batv.address import ForwardPath, ReversePath
    from batv.cli import Site
    from batv.config import Settings
    from batv.keyring import KeyRings
    from batv.net.connection import NextHopConnection
    from batv.policy import Policy
    from batv.rescue import Claims
    from batv.smtp.reply import Reply
    from batv.store.ledger import Ledger
    from batv.store.quarantine import KeptMessage, KeptRecipient

__all__ = ["quarantine"]

_NO: Final = 1
_START_CONTENT: Final = 354
_GOES_ON: Final = frozenset({Disposition.PASS, Disposition.REWRITE})

_CUT_TAG = re.compile(r"(prvs(2)?=[0-9]{4})\*{6}", re.IGNORECASE)
_AGAIN: Final = "look after the next hop, and try again"
_SIGNATURE: Final = "0" * 6
_LONG_SIGNATURE: Final = "0" * 10
_LISTED = re.compile(r"; (\S+) lists the client(?:;|\Z)")


@click.group(no_args_is_help=False)
def quarantine() -> None:
    """Look into the quarantine, and let out what is genuine."""


_names = click.argument("names", nargs=-1, metavar="[NAME]...")


@quarantine.command("list")
@json_option
@click.pass_obj
def list_(site: Site, *, as_json: bool) -> None:
    """Show what is in it, the newest first."""
    found = _all(_quarantine(site.settings()))
    if as_json:
        print_json({"messages": [_as_json(each) for each in found]})
        return
    print_table(
        ("name", "time", "size", "sender", "recipients", "verdict"),
        (
            (
                each.name,
                _time(each),
                str(each.octets),
                clean(each.sender),
                clean(" ".join(one.path for one in each.recipients)),
                clean("; ".join(dict.fromkeys(f"{one.verdict} ({one.reason})" for one in each.recipients))),
            )
            for each in found
        ),
        names=True,
    )


@quarantine.command()
@_names
@json_option
@click.pass_obj
def rejudge(site: Site, names: Sequence[str], *, as_json: bool) -> None:
    """Say which messages would pass now; without NAME of all.

    Judged by the settings, keys and ledger of now, on the day that they came. A message for several passes if it does
    for each. Nothing is changed.
    """
    settings = site.settings()
    kept = _quarantine(settings)
    judged = _judge(site, settings, _named(kept, names) if names else _all(kept))
    if as_json:
        print_json({"messages": [each.as_json() for each in judged]})
        return
    print_table(
        ("name", "passes", "recipient", "verdict", "disposition", "reason"),
        (
            (
                each.message.name,
                "yes" if each.passes else "no",
                clean(one.path),
                one.verdict,
                one.disposition,
                clean(one.reason),
            )
            for each in judged
            for one in each.recipients
        ),
        names=True,
    )


@quarantine.command()
@_names
@click.option("--rejudged", is_flag=True, help="Release what would pass now, as 'rejudge' says.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@click.pass_context
def release(ctx: click.Context, names: Sequence[str], *, rejudged: bool, dry_run: bool) -> None:
    """Hand messages on, and take out what the next hop has taken.

    They go to the next hop of the inbound proxy, to whom they were for, without a tag, octet for octet. One that it
    refuses, for any of its recipients, stays. Exit status 1 if there is such a message.
    """
    if bool(names) is rejudged:
        raise click.UsageError("name messages, or say --rejudged", ctx)
    site: Site = ctx.obj
    settings = site.settings()
    kept = _quarantine(settings)
    with _alone(kept):
        if rejudged:
            chosen = [each.message for each in _judge(site, settings, _all(kept)) if each.passes]
            if not chosen:
                remark("nothing in it would pass now: 'batv quarantine rejudge' says why")
        else:
            chosen = _named(kept, names)
        # The oldest first, as they came.
        envelopes = [(each, [_bare(one, settings.policy) for one in each.recipients]) for each in reversed(chosen)]
        if dry_run:
            for message, paths in envelopes:
                click.echo(f"{message.name}: would go to {_text(paths)}")
            return
        stays = asyncio.run(_hand_over(settings, envelopes)) if envelopes else 0
    ctx.exit(_NO if stays else 0)


@quarantine.command()
@_names
@click.option("--older-than", type=click.IntRange(0), metavar="DAYS", help="Delete what came more than DAYS days ago.")
@click.pass_context
def delete(ctx: click.Context, names: Sequence[str], *, older_than: int | None) -> None:
    """Delete messages, by name or by age (days in UTC)."""
    if bool(names) is (older_than is not None):
        raise click.UsageError("name messages, or say --older-than DAYS", ctx)
    site: Site = ctx.obj
    kept = _quarantine(site.settings())
    with _alone(kept):
        if older_than is None:
            chosen = _named(kept, names)
        else:
            last = site.today() + -older_than
            chosen = [each for each in _all(kept) if Day.at(each.time) < last]
        for message in chosen:
            message.remove()
    click.echo(f"{counted(len(chosen), 'message')} deleted")


# What is there.


def _quarantine(settings: Settings) -> Quarantine:
    return Quarantine(Path(settings.state.directory) / "quarantine")


def _all(kept: Quarantine) -> list[KeptMessage]:
    return sorted(kept.kept(), key=lambda each: (each.time, each.name), reverse=True)


def _named(kept: Quarantine, names: Iterable[str]) -> list[KeptMessage]:
    """Return the messages of these names, each once, the newest first."""
    wanted = set(names)
    found = [each for each in _all(kept) if each.name in wanted]
    missing = sorted(wanted - {each.name for each in found})
    if missing:
        raise IoError(clean(f"there is no {missing[0]} in {kept.directory}"), "see 'batv quarantine list'")
    return found


@contextmanager
def _alone(kept: Quarantine) -> Iterator[None]:
    """Keep other commands from releasing the same messages meanwhile."""
    try:
        folder = kept.directory.stat()
    except OSError:
        yield  # there is nothing to release
        return
    with locked(kept.directory, owner=Owner(folder.st_uid, folder.st_gid)):
        yield


def _as_json(message: KeptMessage) -> dict[str, object]:
    return {
        "name": message.name,
        "time": _time(message),
        "size": message.octets,
        "sender": message.sender,
        "recipients": [
            {"recipient": one.path, "verdict": one.verdict, "reason": one.reason} for one in message.recipients
        ],
        "transaction": message.transaction,
    }


def _time(message: KeptMessage) -> str:
    return datetime.fromtimestamp(message.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# What would become of it today.


@dataclass(frozen=True, slots=True)
class _JudgedRecipient:
    path: str
    verdict: str
    disposition: str
    reason: str
    passes: bool


@dataclass(frozen=True, slots=True)
class _Judged:
    message: KeptMessage
    recipients: tuple[_JudgedRecipient, ...]

    @property
    def passes(self) -> bool:
        return bool(self.recipients) and all(one.passes for one in self.recipients)

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.message.name,
            "passes": self.passes,
            "recipients": [
                {
                    "recipient": one.path,
                    "verdict": one.verdict,
                    "disposition": one.disposition,
                    "reason": one.reason,
                    "passes": one.passes,
                }
                for one in self.recipients
            ],
        }


def _judge(site: Site, settings: Settings, messages: Sequence[KeptMessage]) -> list[_Judged]:
    rollout = Rollout(settings)
    rollout.progress = RolloutStore(Path(settings.state.directory)).read()
    with opened_ledger(site, settings, site.today()) as ledger:
        judge = _Judge(
            VerifyingStage(rollout.applied(settings.policy)),
            site.rings(settings),
            ledger,
            _clients(settings, messages),
            frozenset(settings.dnsbl.zones),
        )
        return [judge.message(each) for each in messages]


@dataclass(frozen=True, slots=True)
class _Judge:
    """Judges what has been judged before.

    Attributes:
        stage: by what is wanted now.
        rings: the keys.
        ledger: the sent ledger; None if there is none.
        clients: addresses of clients by transaction, as far as they count and are known.
        zones: lists of senders of backscatter that are asked now.
    """

    stage: VerifyingStage
    rings: KeyRings
    ledger: Ledger | None
    clients: Mapping[str, str]
    zones: frozenset[str]

    def message(self, message: KeptMessage) -> _Judged:
        return _Judged(message, tuple(self._recipient(message, one) for one in message.recipients))

    def _recipient(self, message: KeptMessage, kept: KeptRecipient) -> _JudgedRecipient:
        if _CUT_TAG.search(kept.path):
            return _undecided(kept, "its tag is not kept")
        try:
            path = _path(kept.path)
        except PathError:
            return _undecided(kept, "its address cannot be read")
        listed = _LISTED.search(kept.reason)
        zone = listed[1] if listed is not None and listed[1] in self.zones else ""
        client = Client(self.clients.get(message.transaction, ""), listed=zone)
        decision = self.stage.recipient(_sender(message), path, client, self.rings, Day.at(message.time))
        clue = clue_in(message.content(PEEK_OCTETS)) if decision.as_bounce is not None else None
        if clue is not None:
            decision = decision.as_bounce or decision
        if decision.recall:
            on_record = may_have_left_unsigned(self.ledger, path.mailbox, self.rings)
            decision = self.stage.recalled(decision, on_record=on_record)
        if decision.undecided:
            decision = self.stage.content(decision, *self._looked_up(message, path))
        if clue is not None:
            (decision,) = judged_together([decision], clue)
        passes = decision.disposition in _GOES_ON
        return _JudgedRecipient(
            kept.path, str(decision.verdict), str(decision.disposition), decision.reason, passes=passes
        )

    def _looked_up(self, message: KeptMessage, path: ForwardPath) -> tuple[Claims, Found]:
        if self.ledger is None or path.mailbox is None:
            return NO_CLAIMS, Found.UNREADABLE
        claims = claims_of(message.content(FIRST_PART_OCTETS))
        if not claims.message_ids or not claims.parties:
            return claims, Found.CLAIMS_NOTHING
        try:
            known = self.ledger.knows(claims.message_ids, path.mailbox.octets, claims.parties)
        except BatvError:
            return claims, Found.UNREADABLE
        return claims, Found.KNOWN if known else Found.UNKNOWN


def _undecided(kept: KeptRecipient, why: str) -> _JudgedRecipient:
    reason = f"{kept.reason}; {why}: look at it, and release it by name"
    return _JudgedRecipient(kept.path, kept.verdict, Disposition.QUARANTINE.value, reason, passes=False)


def _clients(settings: Settings, messages: Sequence[KeptMessage]) -> dict[str, str]:
    """Return who brought the messages, which the journal knows; not where no exemption asks for it."""
    if not settings.policy.exempt_clients:
        return {}
    from batv.report.journal import JournalReader, rotated  # noqa: PLC0415 -- only where the journal is read

    wanted = {each.transaction for each in messages}
    reader = JournalReader(rotated(Path(settings.state.directory) / "journal.jsonl"))
    return {
        transaction: str(record.get("client", ""))
        for record in reader
        if (transaction := str(record.get("transaction"))) in wanted
    }


def _path(text: str) -> ForwardPath:
    """Return a forward path as it was written into the envelope; raises PathError where it cannot be read."""
    return parse_rcpt(b"TO:" + text.encode()).path


def _sender(message: KeptMessage) -> ReversePath:
    """Return the reverse path of a message, null where it cannot be read."""
    try:
        return parse_mail(b"FROM:" + _whole(message.sender).encode()).path
    except PathError:
        return NULL_REVERSE_PATH


def _whole(path: str) -> str:
    """Return a path with a signature in the place of the one that was not kept."""
    return _CUT_TAG.sub(lambda cut: cut[1] + (_LONG_SIGNATURE if cut[2] else _SIGNATURE), path)


def _bare(recipient: KeptRecipient, policy: Policy) -> ForwardPath:
    """Return the path without its tag, of which the signature is not known.

    Raises:
        ConfigError: its domain is ours no more: the next hop might send the message elsewhere.
        PathError: it cannot be read.
    """
    path = _path(_whole(recipient.path))
    if path.mailbox is None:
        return path
    if policy.for_domain(path.mailbox.domain) is None:
        domain = clean(text_of(path.mailbox.domain))
        raise ConfigError(f"{domain} is not a domain of the configuration", "delete the message, or add the domain")
    parts = tag_and_rest(path.mailbox)
    return path if parts is None else path.with_mailbox(parts[1])


# The way out.


async def _hand_over(settings: Settings, envelopes: Sequence[tuple[KeptMessage, list[ForwardPath]]]) -> int:
    """Hand messages to the next hop, and return how many of them stay."""
    if settings.inbound is None:
        raise ConfigError("there is no [inbound]", "run this where the settings of the inbound proxy are")
    hostname = settings.smtp.hostname or socket.gethostname()
    next_hop = NextHop(settings.inbound.next_hop, settings.next_hop, hostname, link_of(settings.inbound))
    stays = 0
    try:
        for message, paths in envelopes:
            if next_hop.lmtp and len(paths) > 1:
                click.echo(f"{message.name}: stays: the next hop speaks LMTP, and there is more than one recipient")
                stays += 1
                continue
            try:
                reply = await _offer(next_hop, message, paths)
            except NextHopFault as fault:
                raise NextHopFault(f"{message.name} stays: {fault.what}", fault.remedy or _AGAIN) from fault
            if reply.positive:
                _remove_delivered(message)
                click.echo(f"{message.name}: released to {_text(paths)}: {clean(str(reply))}")
            else:
                click.echo(f"{message.name}: stays: {clean(str(reply))}")
                stays += 1
    finally:
        next_hop.close()
    return stays


def _remove_delivered(message: KeptMessage) -> None:
    try:
        message.remove()
    except IoError as error:
        what = f"{message.name} is delivered, and stays: {error.what}"
        raise IoError(what, "remove it by hand, or it is delivered again") from error


async def _offer(next_hop: NextHop, message: KeptMessage, paths: Sequence[ForwardPath]) -> Reply:
    """Return the reply that settled the matter; a positive one is that to the message.

    Nothing is sent unless all recipients are taken: what stays must not have been delivered in part.

    Raises:
        NextHopFault: the next hop is not there, or broke down.
        IoError: the message cannot be read.
    """
    content = message.content()
    settings = next_hop.settings
    connection = await next_hop.route().acquire(fresh=True)
    try:
        parameters = b""
        if not content.isascii() and b"8BITMIME" in connection.capabilities:
            parameters += b" BODY=8BITMIME"
        header = content.partition(b"\r\n\r\n")[0]
        # Without its tag it is another address, which nobody is to answer to.
        sender = NULL_REVERSE_PATH if _CUT_TAG.search(message.sender) else _sender(message)
        wide = not all(octets.isascii() for octets in (header, sender.octets, *(path.octets for path in paths)))
        if wide and b"SMTPUTF8" in connection.capabilities:
            parameters += b" SMTPUTF8"
        lines = [b"MAIL FROM:" + sender.octets + parameters, *(b"RCPT TO:" + path.octets for path in paths)]
        for line in lines:
            reply = await connection.command(line, settings.command_seconds)
            if not reply.positive:
                connection.close()
                return reply
        reply = await _open_content(connection, settings.data_seconds)
        if not reply.intermediate:
            connection.close()
            return reply
        stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
        await connection.write(stuffed, settings.data_seconds)
        try:
            reply = await connection.end_message(b"", settings.message_seconds)
        except NextHopFault as fault:
            what = f"{fault.what}, after the final dot: it may have been delivered"
            raise NextHopFault(what, "look into the log of the next hop before you release it again") from fault
        connection.close()
    except BaseException:
        connection.abort()
        raise
    return reply


async def _open_content(connection: NextHopConnection, seconds: float) -> Reply:
    reply = await connection.command(b"DATA", seconds)
    if reply.positive or (reply.intermediate and reply.code != _START_CONTENT):
        raise NextHopFault(f"the next hop answered DATA with {reply}")
    return reply


def _text(paths: Iterable[ForwardPath]) -> str:
    return clean(" ".join(text_of(path.octets) for path in paths))
