"""A client's session with a proxy: what each command does at the next hop, and what the client hears.

The same for both proxies; they differ in the stage that is asked about each path.

Rules:

1. MAIL and RCPT go to the next hop as they come, and its replies come back unchanged. No reply is given before the
   next hop gave it, but for recipients that are held.
2. 250 after the final dot only if the next hop said 2yz to exactly these octets, or the message is on record as
   discarded or quarantined.
3. A fault of the next hop is `451 4.3.0` to the command or the message. The connection is cut, and never gets the dot.
4. A forged bounce is held: the next hop is asked about the recipient on a connection that serves nobody else, so that
   unknown users stay unknown and call-outs hear the truth; the content never reaches it.
5. Who sends with a null sender hears our own words, the same for valid and forged tags: replies must not help guessing.

Source: RFC 5321 sections 3.3, 4.1.4 and 6.1; draft-levine-smtp-batv-01 section 5.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from batv.errors import BatvError, PathError
from batv.net.next_hop import NextHopConnection, NextHopFault
from batv.observe.event import Direction, Level, Notice, RecipientOutcome, TransactionEnded, printable
from batv.smtp.extension import Capabilities, hidden_parameter
from batv.smtp.header import HeaderPeek, StatusField
from batv.smtp.path import keywords, parameter, parse_mail, parse_rcpt
from batv.smtp.reply import Reply
from batv.stage import Client
from batv.verdict import FORGED, Decision, Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from batv.address import ForwardPath, ReversePath
    from batv.config import SmtpSettings
    from batv.day import Day
    from batv.keyring import KeyRings
    from batv.net.next_hop import NextHop
    from batv.observe.event import Observer
    from batv.smtp.data import DataScanner
    from batv.stage import Stage
    from batv.store.quarantine import Quarantine, QuarantinedMessage

__all__ = ["ProxySession", "Recorder", "Side"]

_OK: Final = Reply.of(250, "2.0.0 Ok")
_RECIPIENT_OK: Final = Reply.of(250, "2.1.5 Ok")
_GO_AHEAD: Final = Reply.of(354, "End data with <CR><LF>.<CR><LF>")
_LATER: Final = Reply.of(451, "4.3.0 Temporary failure, try again later")
_SEPARATELY: Final = Reply.of(452, "4.5.3 Send to this recipient in a transaction of its own")
_TOO_MANY: Final = Reply.of(452, "4.5.3 Too many recipients")
_BAD_SENDER: Final = Reply.of(501, "5.1.7 Bad sender address syntax")
_BAD_RECIPIENT: Final = Reply.of(501, "5.1.3 Bad recipient address syntax")
_SEQUENCE: Final = Reply.of(503, "5.5.1 Bad sequence of commands")
_NO_RELAY: Final = Reply.of(550, "5.7.1 Relaying denied")
_REJECTED: Final = Reply.of(550, "5.7.1 Message refused")
_BARE: Final = Reply.of(550, "5.6.11 Bare carriage return, line feed or NUL in the message")
_TOO_BIG: Final = Reply.of(552, "5.3.4 Message too big")
_PARAMETER: Final = Reply.of(555, "5.5.4 Unsupported parameter")

_HELD: Final = frozenset({Disposition.DISCARD, Disposition.QUARANTINE, Disposition.REJECT})
_START_CONTENT: Final = 354
_OFFER_GONE: Final = "the next hop no longer offers what the client was told"


class Recorder(Protocol):
    """What keeps the records of messages."""

    fsync: bool

    def write(self, event: TransactionEnded) -> bool:
        """Write the records of a transaction, and return whether it has any; raises BatvError if they are not kept."""

    def sync(self) -> None:
        """Wait until the disk has them; raises BatvError if it does not take them."""


@dataclass(slots=True)
class Side:
    """One of the two proxies, as its sessions see it.

    A reload puts new values in; a transaction keeps those that it began with.

    Attributes:
        direction: which proxy.
        stage: who is asked about each path.
        marks: whether status fields are put on and taken out.
        rings: returns the keys as they are now.
        next_hop: where the mail goes on to.
        journal: keeps the records.
        quarantine: keeps forged bounces of domains that want it.
        observer: told of each transaction that has ended, and of what goes wrong.
        settings: limits on clients.
        hostname: what we call ourselves.
        clock: returns POSIX seconds.
        day: returns the day in UTC.
    """

    direction: Direction
    stage: Stage
    marks: bool
    rings: Callable[[], KeyRings]
    next_hop: NextHop
    journal: Recorder
    quarantine: Quarantine
    observer: Observer
    settings: SmtpSettings
    hostname: str
    clock: Callable[[], float]
    day: Callable[[], Day]


@dataclass(slots=True)
class _Recipient:
    decision: Decision[ForwardPath]
    given: bytes
    reply: Reply

    @property
    def accepted(self) -> bool:
        return self.reply.positive

    @property
    def held(self) -> bool:
        return self.decision.verdict in FORGED and self.decision.disposition in _HELD


@dataclass(slots=True)
class _Transaction:
    identifier: str
    stage: Stage
    rings: KeyRings
    day: Day
    next_hop: NextHop
    given: ReversePath
    sender: Decision[ReversePath]
    parameters: bytes
    connection: NextHopConnection | None
    recipients: list[_Recipient] = field(default_factory=list)
    status: bytes | None = None
    cause: str = ""
    failed: bool = False
    receiving: bool = False
    status_field: StatusField | None = None
    quarantined: QuarantinedMessage | None = None
    peek: HeaderPeek = field(default_factory=HeaderPeek)
    octets: int = 0

    @property
    def forwarded(self) -> list[_Recipient]:
        return [recipient for recipient in self.recipients if recipient.accepted and not recipient.held]

    @property
    def held(self) -> list[_Recipient]:
        return [recipient for recipient in self.recipients if recipient.accepted and recipient.held]


class ProxySession:
    """One client's session.

    Args:
        side: the proxy.
        address: IP address of the client; empty for a Unix socket.
    """

    def __init__(self, side: Side, address: str) -> None:
        self._side = side
        self._client = Client(address)
        self._identifier = secrets.token_hex(6)
        self._count = 0
        self._greeted = False
        self._offered = Capabilities({})
        self._transaction: _Transaction | None = None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._transaction is not None

    # Commands.

    async def hello(self, name: bytes, *, extended: bool) -> Reply:
        """Answer EHLO with what the next hop offers and we can carry; with our own where it cannot be asked."""
        await self.reset()
        self._client = Client(self._client.address, printable(name))
        self._greeted = True
        self._offered = Capabilities({})
        hostname = self._side.hostname.encode("ascii", "replace")
        if not extended:
            return Reply(250, (hostname,))
        try:
            self._offered = await self._side.next_hop.capabilities()
        except NextHopFault as fault:
            self._warn("next hop does not answer", fault)
        added = StatusField(b"invalid, bad-signature").added_octets if self._side.marks else 0
        offered = self._offered.offered(self._side.settings.max_message_octets, added)
        return Reply(250, (hostname, *offered))

    async def mail(self, argument: bytes) -> Reply:
        """Answer MAIL: ask the stage about the reverse path, and the next hop about the one that results."""
        if self._transaction is not None or not self._greeted:
            return _SEQUENCE
        try:
            mail = parse_mail(argument)
        except PathError:
            return _BAD_SENDER
        if not self._takes(mail.path, mail.parameters):
            return _BAD_SENDER
        if hidden_parameter(mail.parameters):
            return _PARAMETER
        size = parameter(mail.parameters, b"SIZE") or b""
        if size.isdigit() and (len(size) > 19 or int(size) > self._side.settings.max_message_octets):  # noqa: PLR2004 -- RFC 1870
            return _TOO_BIG
        side = self._side
        rings, day = side.rings(), side.day()
        sender = side.stage.sender(mail.path, self._client, rings, day)
        transaction = _Transaction(
            self._next_identifier(), side.stage, rings, day, side.next_hop, mail.path, sender, mail.parameters, None
        )
        self._transaction = transaction
        if sender.disposition is Disposition.DEFER:
            transaction.cause = sender.reason
            return self._end(_LATER)
        try:
            reply = await self._open(transaction)
        except NextHopFault as fault:
            return self._end(_LATER, str(fault))
        return reply if reply.positive else self._end(reply)

    async def rcpt(self, argument: bytes) -> Reply:
        """Answer RCPT: ask the stage about the forward path, and the next hop about the one that results."""
        transaction = self._transaction
        if transaction is None:
            return _SEQUENCE
        if len(transaction.recipients) >= self._side.settings.max_recipients:
            return _TOO_MANY
        try:
            rcpt = parse_rcpt(argument)
        except PathError as error:
            inbound = self._side.direction is Direction.INBOUND
            return _NO_RELAY if error.relay_trick and inbound else _BAD_RECIPIENT
        if not self._takes(rcpt.path, transaction.parameters):
            return _BAD_RECIPIENT
        if hidden_parameter(rcpt.parameters):
            return _PARAMETER
        decision = transaction.stage.recipient(
            transaction.given, rcpt.path, self._client, transaction.rings, transaction.day
        )
        recipient = _Recipient(decision, rcpt.path.octets, _LATER)
        transaction.recipients.append(recipient)
        if decision.verdict is Verdict.FOREIGN:
            recipient.reply = _NO_RELAY
        elif not self._offered_still(transaction.connection, rcpt.parameters):
            transaction.cause = _OFFER_GONE
        elif not recipient.held and transaction.forwarded and decision.status != transaction.status:
            recipient.reply = _SEPARATELY
        else:
            try:
                recipient.reply = await self._ask(transaction, recipient, rcpt.parameters)
            except NextHopFault as fault:
                if recipient.held:
                    transaction.cause = str(fault)
                else:
                    self._fail(transaction, fault)
        return recipient.reply

    async def data(self) -> Reply:
        """Answer DATA: 354 once the next hop said so, or once it is settled that the message is for nobody there."""
        transaction = self._transaction
        if transaction is None:
            return _SEQUENCE
        forwarded, held = transaction.forwarded, transaction.held
        if transaction.failed:
            return self._end(_LATER)
        if not forwarded and not held:
            return _SEQUENCE
        if not forwarded and all(recipient.decision.disposition is Disposition.REJECT for recipient in held):
            await self._reset_next_hop(transaction)
            return await self._finish(transaction, _REJECTED)
        if any(recipient.decision.disposition is Disposition.QUARANTINE for recipient in held):
            self._quarantine(transaction)
            if transaction.failed:
                return self._end(_LATER)
        reply = _GO_AHEAD
        if forwarded:
            try:
                reply = await self._open_content(transaction)
            except NextHopFault as fault:
                return self._end(_LATER, str(fault))
            if reply.code != _START_CONTENT:
                await self._reset_next_hop(transaction)
                return await self._finish(transaction, reply)
        else:
            await self._reset_next_hop(transaction)
        transaction.receiving = True
        return _GO_AHEAD if self._own_words(transaction) else reply

    async def content(self, octets: bytes, scanner: DataScanner) -> None:
        """Send octets of the message on to where it goes; where that fails, swallow the rest of it."""
        transaction = self._transaction
        if transaction is None:
            return
        transaction.octets = scanner.octets
        transaction.peek.feed(octets)
        if scanner.octets > self._side.settings.max_message_octets or (
            scanner.bare and self._side.settings.bare_newlines == "reject"
        ):
            # Refused in the end; what is on its way stays without its dot.
            self._drop_connection(transaction)
        if transaction.quarantined is not None and not transaction.failed:
            try:
                transaction.quarantined.write(octets)
            except BatvError as error:
                self._fail(transaction, error)
        connection = transaction.connection
        if connection is None:
            return
        try:
            if transaction.status_field is not None:
                octets = transaction.status_field.feed(octets)
            await connection.write(octets, transaction.next_hop.settings.data_seconds)
        except NextHopFault as fault:
            self._fail(transaction, fault)

    async def end_of_content(self, scanner: DataScanner) -> Reply:
        """Answer the message."""
        transaction = self._transaction
        if transaction is None:
            return _LATER
        transaction.octets = scanner.octets
        transaction.peek.finish()
        goes_on = bool(transaction.forwarded)
        if (goes_on or transaction.quarantined is not None) and scanner.octets > self._side.settings.max_message_octets:
            return await self._finish(transaction, _TOO_BIG)
        if goes_on and scanner.bare and self._side.settings.bare_newlines == "reject":
            return await self._finish(transaction, _BARE)
        if transaction.failed:
            return await self._finish(transaction, _LATER)
        reply = _OK
        if goes_on:
            try:
                reply = await self._send_dot(transaction)
            except NextHopFault as fault:
                self._fail(transaction, NextHopFault(f"{fault}, after the final dot: it may have the message"))
                return await self._finish(transaction, _LATER)
        if not reply.positive:
            return await self._finish(transaction, reply)
        if transaction.quarantined is not None:
            try:
                await asyncio.to_thread(transaction.quarantined.commit)
            except BatvError as error:
                self._fail(transaction, error)
                return await self._finish(transaction, _LATER)
        return await self._finish(transaction, _OK if self._own_words(transaction) else reply)

    async def reset(self) -> Reply:
        """Answer RSET."""
        if self._transaction is not None:
            await self._reset_next_hop(self._transaction)
        self._end(_OK, heard=False)
        return _OK

    def fault(self, error: Exception) -> None:
        """Give up the transaction after an error of ours."""
        self._end(_LATER, f"{type(error).__name__}: {error}")

    def gone(self, cause: str) -> None:
        """End the session."""
        if self._transaction is not None:
            self._end(_LATER, cause if self._transaction.receiving else "", heard=False)

    # What passes between a transaction and the next hop.

    async def _open(self, transaction: _Transaction) -> Reply:
        line = b"MAIL FROM:%b%b" % (transaction.sender.path.octets, transaction.parameters)
        seconds = transaction.next_hop.settings.command_seconds
        connection = await self._acquire(transaction)
        try:
            reply = await self._said(connection, line, seconds)
        except NextHopFault:
            if not connection.reused:
                raise
            # It was closed while nobody used it, which no server announces; MAIL can be said twice.
            connection = await self._acquire(transaction, fresh=True)
            reply = await self._said(connection, line, seconds)
        if reply.positive:
            transaction.connection = connection
        elif reply.intermediate:
            connection.abort()
            raise NextHopFault(f"the next hop answered MAIL with {reply}")
        else:
            transaction.next_hop.release(connection)
        return reply

    async def _acquire(self, transaction: _Transaction, *, fresh: bool = False) -> NextHopConnection:
        connection = await transaction.next_hop.acquire(fresh=fresh)
        if self._offered_still(connection, transaction.parameters):
            return connection
        transaction.next_hop.release(connection)
        raise NextHopFault(_OFFER_GONE)

    @staticmethod
    async def _said(connection: NextHopConnection, line: bytes, seconds: float) -> Reply:
        try:
            return await connection.command(line, seconds)
        except BaseException:
            connection.abort()
            raise

    async def _ask(self, transaction: _Transaction, recipient: _Recipient, parameters: bytes) -> Reply:
        line = b"RCPT TO:%b%b" % (recipient.decision.path.octets, parameters)
        seconds = transaction.next_hop.settings.command_seconds
        if recipient.held:
            reply = await self._ask_apart(transaction, line)
        elif transaction.connection is None:
            raise NextHopFault(transaction.cause or "the next hop is gone")
        else:
            reply = await transaction.connection.command(line, seconds)
        if reply.intermediate:
            raise NextHopFault(f"the next hop answered RCPT with {reply}")
        if not reply.positive:
            return reply
        if not recipient.held and not transaction.status_field:
            transaction.status = recipient.decision.status
        return _RECIPIENT_OK if self._own_words(transaction) else reply

    async def _ask_apart(self, transaction: _Transaction, rcpt: bytes) -> Reply:
        """Ask about one recipient on a connection of its own, and leave no transaction there."""
        mail = b"MAIL FROM:%b%b" % (transaction.sender.path.octets, transaction.parameters)
        connection = await self._acquire(transaction)
        try:
            return await self._probe(transaction.next_hop, connection, mail, rcpt)
        except NextHopFault:
            if not connection.reused:
                raise
        connection = await self._acquire(transaction, fresh=True)
        return await self._probe(transaction.next_hop, connection, mail, rcpt)

    @staticmethod
    async def _probe(next_hop: NextHop, connection: NextHopConnection, mail: bytes, rcpt: bytes) -> Reply:
        seconds = next_hop.settings.command_seconds
        try:
            reply = await connection.command(mail, seconds)
            if reply.positive:
                reply = await connection.command(rcpt, seconds)
                if not (await connection.command(b"RSET", seconds)).positive:
                    connection.abort()
                    return reply
        except BaseException:
            connection.abort()
            raise
        next_hop.release(connection)
        return reply

    async def _open_content(self, transaction: _Transaction) -> Reply:
        connection = transaction.connection
        if connection is None:
            raise NextHopFault(transaction.cause or "the next hop is gone")
        reply = await connection.command(b"DATA", transaction.next_hop.settings.data_seconds)
        if reply.positive or (reply.intermediate and reply.code != _START_CONTENT):
            raise NextHopFault(f"the next hop answered DATA with {reply}")
        if reply.code == _START_CONTENT and self._side.marks:
            transaction.status_field = StatusField(transaction.status)
        return reply

    async def _send_dot(self, transaction: _Transaction) -> Reply:
        connection = transaction.connection
        if connection is None:
            raise NextHopFault(transaction.cause or "the next hop is gone")
        settings = transaction.next_hop.settings
        rest = transaction.status_field.finish() if transaction.status_field is not None else b""
        await connection.write(rest, settings.data_seconds)
        reply = await connection.command(b".", settings.message_seconds)
        if reply.intermediate:
            raise NextHopFault(f"the next hop answered the message with {reply}")
        transaction.connection = None
        transaction.next_hop.release(connection)
        return reply

    async def _reset_next_hop(self, transaction: _Transaction) -> None:
        connection, transaction.connection = transaction.connection, None
        if connection is None:
            return
        try:
            reply = await connection.command(b"RSET", transaction.next_hop.settings.command_seconds)
        except NextHopFault:
            return
        except BaseException:
            connection.abort()
            raise
        if reply.positive:
            transaction.next_hop.release(connection)
        else:
            connection.abort()

    def _fail(self, transaction: _Transaction, error: BatvError) -> None:
        """Let the transaction end in 451 whatever comes: a part of what the client was promised cannot be kept."""
        transaction.failed = True
        transaction.cause = transaction.cause or str(error)
        self._drop_connection(transaction)

    @staticmethod
    def _drop_connection(transaction: _Transaction) -> None:
        connection, transaction.connection = transaction.connection, None
        if connection is None:
            return
        if connection.usable and not transaction.receiving:
            connection.close()
        else:
            connection.abort()

    # Records and the end of a transaction.

    def _quarantine(self, transaction: _Transaction) -> None:
        header = [("Return-Path", printable(transaction.given.octets))]
        for recipient in transaction.held:
            header.append(("X-Original-To", printable(recipient.given)))
            header.append(("X-Batv-Verdict", f"{recipient.decision.verdict} ({recipient.decision.reason})"))
        try:
            transaction.quarantined = self._side.quarantine.begin(
                f"{self._side.clock():.6f}.{transaction.identifier}.batv", header
            )
        except BatvError as error:
            self._fail(transaction, error)

    async def _finish(self, transaction: _Transaction, reply: Reply) -> Reply:
        """End a transaction with the reply to its message, or with another if a record that is owed cannot be kept."""
        event = self._event(transaction, reply)
        try:
            if self._side.journal.write(event) and self._side.journal.fsync:
                await asyncio.to_thread(self._side.journal.sync)
        except BatvError as error:
            self._warn("journal not written", error)
            if reply.positive and transaction.held:
                reply = _LATER
                transaction.cause = str(error)
        return self._end(reply, transaction.cause)

    def _end(self, reply: Reply, cause: str = "", *, heard: bool = True) -> Reply:
        """Close the transaction, whatever state it is in, and tell the observer."""
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return reply
        self._drop_connection(transaction)
        if transaction.quarantined is not None:
            transaction.quarantined.abandon()
        transaction.cause = transaction.cause or cause
        self._side.observer(self._event(transaction, reply if heard else None))
        return reply

    def _event(self, transaction: _Transaction, reply: Reply | None) -> TransactionEnded:
        said = printable(str(reply).encode()) if reply is not None else ""
        outbound = self._side.direction is Direction.OUTBOUND
        outcomes = []
        for recipient in transaction.recipients:
            decision = transaction.sender if outbound else recipient.decision
            outcomes.append(
                RecipientOutcome(
                    printable(recipient.given),
                    decision.verdict,
                    decision.disposition,
                    decision.reason,
                    decision.key_number,
                    said if said and recipient.accepted else printable(str(recipient.reply).encode()),
                )
            )
        return TransactionEnded(
            time=self._side.clock(),
            session=self._identifier,
            transaction=transaction.identifier,
            direction=self._side.direction,
            client=self._client.address,
            helo=self._client.name,
            reverse_path=printable(transaction.given.octets),
            recipients=tuple(outcomes),
            message_id=printable(transaction.peek.message_id.encode()),
            size=transaction.octets,
            relay=str(transaction.next_hop),
            reply=said,
            cause=transaction.cause,
            null_sender=transaction.given.null,
            finished=transaction.receiving,
        )

    def _own_words(self, transaction: _Transaction) -> bool:
        return self._side.direction is Direction.INBOUND and transaction.given.null

    def _takes(self, path: ReversePath | ForwardPath, mail_parameters: bytes) -> bool:
        """Whether the path may come here: octets above 127 want SMTPUTF8. Source: RFC 6531 section 3.4."""
        return path.octets.isascii() or b"SMTPUTF8" in keywords(mail_parameters)

    def _offered_still(self, connection: NextHopConnection | None, parameters: bytes) -> bool:
        return not parameters or connection is None or connection.capabilities.carries(parameters, self._offered)

    def _next_identifier(self) -> str:
        self._count += 1
        return f"{self._identifier}.{self._count}"

    def _warn(self, what: str, error: Exception) -> None:
        fields = {"session": self._identifier, "relay": self._side.next_hop, "cause": error}
        self._side.observer(Notice(Level.WARNING, what, fields))
