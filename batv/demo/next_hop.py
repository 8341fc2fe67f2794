"""The next hop of both proxies, for the tour: a process of its own that behaves as mail servers do.

It listens twice. As the *queue* it takes what the outbound proxy hands on, plays the Internet behind it, and sends
genuine delivery status notifications to the reverse path that it was given, through the inbound proxy. As the *store*
it takes what the inbound proxy hands on, and refuses unknown users in the session.

Rules:

1. 250 after the dot only when the disk has the message: in the Maildirs of those who get it, and in the spool for those
   who are told about it. All of them or none, so that a client that tries again doubles nothing.
2. What is in the spool stays there until the inbound proxy took it. What the proxy refuses for good is answered with a
   notification; a notification that is refused for good goes to `undeliverable`.

Source: RFC 5321 sections 3.6, 4.2.5 and 6.1; RFC 3461 for the parameters, which aiosmtpd refuses.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click
from aiosmtpd.smtp import SMTP, Envelope, Session

from batv.config import Endpoint, NextHopSettings
from batv.demo.maildir import Maildir, deliver, mailbox_folder
from batv.demo.report import Fate, delivery_report
from batv.errors import BatvError, PathError, UnavailableError
from batv.net.connection import NextHopFault
from batv.net.next_hop import NextHop
from batv.net.reason import reason
from batv.net.submission import submit
from batv.smtp.path import MailArgument, RcptArgument, parse_mail, parse_rcpt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batv.address import Mailbox

__all__ = ["PATIENCE", "PRIVATE_NAMES", "READY", "main"]

PRIVATE_NAMES: Final = ("_create_envelope",)
"""Attributes of aiosmtpd's SMTP that are overridden here though it does not document them."""

READY: Final = "next hop: ready"
"""The line on standard error that says that it listens."""

PATIENCE: Final = NextHopSettings(
    connect_seconds=5, command_seconds=15, data_seconds=15, message_seconds=30, idle_seconds=1
)
"""How long the programs of the tour wait for each other; all are on this host."""

_COMMAND_OCTETS: Final = 4096
"""Parameters of RFC 3461 do not fit into aiosmtpd's 512."""

_LINE_OCTETS: Final = 1 << 20
"""The proxies hand on lines of any length; so does this server, within reason."""

_LOOK_SECONDS: Final = 0.05
"""Between two looks into the spool: a user of the tour waits for what is in it."""

_RETRY_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 5.0
_NO_ROOM: Final = "452 4.3.1 Cannot write the message"


class _Envelope(Envelope):
    """The envelope, with the paths and parameters as the client wrote them."""

    def __init__(self) -> None:
        super().__init__()
        self.sender: MailArgument | None = None
        self.recipients: list[RcptArgument] = []


class _Server(Protocol):
    """What differs between the queue and the store."""

    @property
    def hostname(self) -> str:
        """What it calls itself."""

    def recipient(self, argument: RcptArgument) -> str:
        """Return the reply to RCPT."""

    def message(self, sender: MailArgument, recipients: Sequence[RcptArgument], content: bytes) -> str:
        """Take a message and return the reply to it. Blocks."""


class _Handler:
    """What aiosmtpd calls."""

    def __init__(self, server: _Server) -> None:
        self.server = server

    async def handle_EHLO(  # noqa: N802 -- aiosmtpd's name
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-DSN", "250-ENHANCEDSTATUSCODES", responses[-1]]

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: _Envelope) -> str:  # noqa: N802 -- as above
        content = envelope.content
        if envelope.sender is None or not isinstance(content, bytes):
            return "503 5.5.1 Bad sequence of commands"
        try:
            return await asyncio.to_thread(self.server.message, envelope.sender, envelope.recipients, content)
        except OSError as error:
            _log(f"{_NO_ROOM}: {error}")
            return _NO_ROOM

    async def handle_exception(self, error: Exception) -> str:
        _log(f"fault: {type(error).__name__}: {error}")
        return "451 4.3.0 Temporary failure, try again later"


class _Connection(SMTP):
    """A session. Paths and parameters are taken apart by our own grammar: aiosmtpd's loses octets of both."""

    command_size_limit = _COMMAND_OCTETS
    line_length_limit = _LINE_OCTETS

    def __init__(self, server: _Server, loop: asyncio.AbstractEventLoop) -> None:
        self.command_size_limits = defaultdict(lambda: _COMMAND_OCTETS)  # aiosmtpd's is shared by all sessions
        super().__init__(_Handler(server), hostname=server.hostname, ident="next hop", enable_SMTPUTF8=True, loop=loop)
        self._answers = server

    def _create_envelope(self) -> _Envelope:
        return _Envelope()

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802 -- aiosmtpd's name
        """Answer MAIL."""
        if await self.check_helo_needed():
            return
        envelope = self._ours()
        if envelope.sender is not None:
            await self.push("503 5.5.1 Nested MAIL command")
            return
        try:
            envelope.sender = parse_mail(_octets(arg))
        except PathError:
            await self.push("501 5.1.7 Bad sender address syntax")
            return
        envelope.mail_from = "<>"
        await self.push("250 2.1.0 Ok")

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802 -- as above
        """Answer RCPT."""
        if await self.check_helo_needed():
            return
        envelope = self._ours()
        if envelope.sender is None:
            await self.push("503 5.5.1 Need MAIL command")
            return
        try:
            recipient = parse_rcpt(_octets(arg))
        except PathError:
            await self.push("501 5.1.3 Bad recipient address syntax")
            return
        reply = self._answers.recipient(recipient)
        if reply.startswith("2"):
            envelope.recipients.append(recipient)
            envelope.rcpt_tos.append(_shown(recipient))
        await self.push(reply)

    def _ours(self) -> _Envelope:
        if not isinstance(self.envelope, _Envelope):
            raise TypeError("the session has no envelope")
        return self.envelope


@dataclass(frozen=True, slots=True)
class _Store:
    """Plays the mail store: Maildirs of the users that it knows."""

    hostname: str
    mail: Path
    users: frozenset[str]

    def recipient(self, argument: RcptArgument) -> str:
        if self._user(argument) is None:
            return f"550 5.1.1 {_shown(argument)}: no such user here"
        return "250 2.1.5 Ok"

    def message(self, sender: MailArgument, recipients: Sequence[RcptArgument], content: bytes) -> str:
        users = dict.fromkeys(user for user in map(self._user, recipients) if user is not None)
        deliver(_delivery(self.mail, user, sender, content) for user in users)
        return "250 2.0.0 Delivered"

    def _user(self, argument: RcptArgument) -> str | None:
        mailbox = argument.path.mailbox
        if mailbox is None:  # <Postmaster>, whom every server has: RFC 5321 section 4.5.1
            return min((user for user in self.users if user.startswith("postmaster@")), default=None)
        name = _name(mailbox)
        return name if name in self.users else None


class _Queue:
    """Plays the queueing server, and the Internet behind it with the users that it knows."""

    def __init__(
        self, hostname: str, mail: Path, correspondents: frozenset[str], domains: frozenset[str], inbound: Endpoint
    ) -> None:
        self.hostname = hostname
        self._mail = mail
        self._correspondents = correspondents
        self._domains = domains
        self._inbound = NextHop((inbound,), PATIENCE, hostname)
        self._spool = Maildir(mail / "spool")
        self._undeliverable = Maildir(mail / "undeliverable")

    def recipient(self, argument: RcptArgument) -> str:
        # A queue takes first and finds out later.
        return "550 5.1.3 A domain is needed" if argument.path.mailbox is None else "250 2.1.5 Ok"

    def message(self, sender: MailArgument, recipients: Sequence[RcptArgument], content: bytes) -> str:
        work: list[tuple[Maildir, bytes]] = []
        fates = []
        for recipient in recipients:
            mailbox = recipient.path.mailbox
            if mailbox is None:
                continue
            if _domain(mailbox) in self._domains:
                work.append((self._spool, _job(sender, recipient, content)))
            elif _name(mailbox) in self._correspondents:
                work.append(_delivery(self._mail, _name(mailbox), sender, content))
                fates.append(Fate(recipient, delivered=True, status="2.0.0", diagnostic="250 2.0.0 Delivered"))
            else:
                diagnostic = f"550 5.1.1 {_shown(recipient)}: no such user here"
                fates.append(Fate(recipient, delivered=False, status="5.1.1", diagnostic=diagnostic))
        work.extend(self._report(sender, fates, content))
        deliver(work)
        return "250 2.0.0 Queued"

    async def work(self, stopping: asyncio.Event) -> None:
        """Hand on what the spool holds until told to stop, the message under way to its end."""
        while not stopping.is_set():
            for path in await asyncio.to_thread(self._spool.messages):
                if stopping.is_set():
                    break
                try:
                    await self._hand_on(path)
                except (NextHopFault, OSError) as error:
                    _log(f"stays in the spool: {error}")
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stopping.wait(), _RETRY_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _LOOK_SECONDS)
        self._inbound.close()

    async def _hand_on(self, path: Path) -> None:
        octets = await asyncio.to_thread(path.read_bytes)
        sender, recipient, content = _read_job(octets)
        body = b"" if content.isascii() else b" BODY=8BITMIME"
        mail = sender.path.octets + body
        said = (await submit(self._inbound, mail, [recipient.path.octets], content)).last
        if said.positive:
            _log(f"handed on: {said}")
        elif said.permanent:
            _log(f"refused: {said}")
            status = _enhanced(said.texts[0]) or "5.0.0"
            fate = Fate(recipient, delivered=False, status=status, diagnostic=" ".join(str(said).split()))
            report = self._report(sender, [fate], content)
            left = report or [(self._undeliverable, octets)] * sender.path.null
            await asyncio.to_thread(deliver, left)
        else:
            raise NextHopFault(f"the inbound proxy said {said}")
        await asyncio.to_thread(path.unlink)

    def _report(self, sender: MailArgument, fates: Sequence[Fate], content: bytes) -> list[tuple[Maildir, bytes]]:
        report = delivery_report(sender, fates, content, self.hostname, datetime.now(UTC))
        if report is None:
            return []
        to = parse_rcpt(b"TO:" + sender.path.octets)
        return [(self._spool, _job(parse_mail(b"FROM:<>"), to, report))]


def _delivery(mail: Path, user: str, sender: MailArgument, content: bytes) -> tuple[Maildir, bytes]:
    """Return where a message goes, and the message as it stands in a Maildir. Source: RFC 5321 section 4.4."""
    head = b"Return-Path: %b\nDelivered-To: %b\n" % (sender.path.octets, user.encode())
    return Maildir(mailbox_folder(mail, user)), head + content.replace(b"\r\n", b"\n")


def _job(sender: MailArgument, recipient: RcptArgument, content: bytes) -> bytes:
    arguments = [b"FROM:" + sender.path.octets + sender.parameters, b"TO:" + recipient.path.octets]
    arguments[1] += recipient.parameters
    return json.dumps([argument.decode("latin-1") for argument in arguments]).encode() + b"\n" + content


def _read_job(octets: bytes) -> tuple[MailArgument, RcptArgument, bytes]:
    head, _, content = octets.partition(b"\n")
    mail, rcpt = (argument.encode("latin-1") for argument in json.loads(head))
    return parse_mail(mail), parse_rcpt(rcpt), content


def _octets(argument: str | None) -> bytes:
    return (argument or "").encode("utf-8", "surrogateescape")


def _name(mailbox: Mailbox) -> str:
    return mailbox.octets.decode("utf-8", "backslashreplace").lower()


def _domain(mailbox: Mailbox) -> str:
    return mailbox.domain.decode("utf-8", "backslashreplace").lower()


def _shown(argument: RcptArgument) -> str:
    return argument.path.octets.decode("utf-8", "backslashreplace")


def _enhanced(text: bytes) -> str:
    word = text.split(b" ")[0].decode("ascii", "replace")
    return word if word.replace(".", "").isdigit() and word.count(".") == 2 else ""  # noqa: PLR2004 -- class.subject.detail


def _log(text: str) -> None:
    click.echo(f"next hop: {text}", err=True)


async def _listen(endpoint: Endpoint, server: _Server, setting: str) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(partial(_Connection, server, loop), endpoint.host, endpoint.port)
    except OSError as error:
        raise UnavailableError(
            f"the tour's next hop cannot listen on {endpoint}: {reason(error).lower()}",
            f"stop what listens there, or set another {setting}",
        ) from error


async def _serve(store: _Store, store_at: Endpoint, queue: _Queue, queue_at: Endpoint) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    servers = [
        await _listen(queue_at, queue, "outbound.next_hop"),
        await _listen(store_at, store, "inbound.next_hop"),
    ]
    click.echo(READY, err=True)
    working = loop.create_task(queue.work(stopping))
    await asyncio.wait({working, loop.create_task(stopping.wait())}, return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.close()
    # A message that the proxy has taken and the spool still holds would come twice.
    with suppress(TimeoutError):
        await asyncio.wait_for(working, _DRAIN_SECONDS)


@click.command()
@click.option("--queue", required=True, help="Address to listen on as outbound.next_hop.")
@click.option("--store", required=True, help="Address to listen on as inbound.next_hop.")
@click.option("--inbound", required=True, help="Address of the inbound proxy.")
@click.option("--mail", required=True, type=click.Path(path_type=Path), help="Folder of the Maildirs.")
@click.option("--user", "users", multiple=True, help="Mailbox of the store; may be repeated.")
@click.option("--correspondent", "correspondents", multiple=True, help="Mailbox elsewhere; may be repeated.")
def main(**options: Any) -> None:  # noqa: ANN401 -- as click hands them over
    """Play the next hop of both proxies until SIGTERM."""
    users = frozenset(user.lower() for user in options["users"])
    domains = frozenset(user.rpartition("@")[2] for user in users)
    store = _Store("store.example", options["mail"], users)
    inbound = Endpoint.parse(options["inbound"])
    queue = _Queue("queue.example", options["mail"], frozenset(options["correspondents"]), domains, inbound)
    try:
        asyncio.run(_serve(store, Endpoint.parse(options["store"]), queue, Endpoint.parse(options["queue"])))
    except BatvError as error:
        click.echo(f"batv: {error}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
