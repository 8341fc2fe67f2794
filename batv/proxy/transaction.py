"""A transaction: who was named, what was decided, and what passes between it and the next hop.

Rules:

1. What goes to the next hop for recipients that are forwarded goes over one connection, which no other transaction has
   meanwhile; a held recipient is asked about on another, and no transaction is left open there.
2. MAIL may be said twice, on a second connection, when one that was kept for reuse turns out to be closed. Nothing else
   is ever repeated. One limit holds for all that a command of the client takes, or it would not wait for the reply.
3. After a fault nothing of what the client was promised stands: the transaction has failed, and ends in 451.
4. A connection on which a message has begun is cut, not closed, unless the message has its dot.

Source: RFC 5321 sections 3.3 and 4.1.4.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from batv.net.next_hop import NextHopConnection, NextHopFault
from batv.observe.event import Direction, RecipientOutcome, TransactionEnded, clean, printable
from batv.smtp.header import HeaderPeek, StatusField
from batv.verdict import FORGED, Decision, Disposition

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from batv.address import ForwardPath, ReversePath
    from batv.day import Day
    from batv.errors import BatvError
    from batv.keyring import KeyRings
    from batv.net.next_hop import NextHop
    from batv.proxy.side import Side
    from batv.smtp.extension import Capabilities
    from batv.smtp.reply import Reply
    from batv.stage import Client, Stage
    from batv.store.quarantine import QuarantinedMessage

__all__ = ["START_CONTENT", "Recipient", "Transaction"]

START_CONTENT: Final = 354

_HELD: Final = frozenset({Disposition.DISCARD, Disposition.QUARANTINE, Disposition.REJECT})
_RESET_SECONDS: Final = 10.0
"""For the reply to RSET: the client waits meanwhile, and a slow one costs no more than a new connection."""

_REFUSED_KEPT: Final = 100
"""Recipients after which refused ones are only counted. A client of a list has fewer; a dictionary attack has more."""

_OFFER_GONE: Final = "the next hop no longer offers what the client was told"


ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Recipient:
    """One recipient that the client named.

    Attributes:
        decision: what the stage said.
        given: the path as the client gave it.
        reply: what the client was told.
    """

    decision: Decision[ForwardPath]
    given: bytes
    reply: Reply

    @property
    def accepted(self) -> bool:
        """Whether the client counts on this recipient."""
        return self.reply.positive

    @property
    def held(self) -> bool:
        """Whether the message is not to reach this recipient."""
        return self.decision.verdict in FORGED and self.decision.disposition in _HELD


@dataclass(slots=True)
class Transaction:
    """From MAIL to the reply to the message.

    Attributes:
        side: the proxy.
        identifier: unique name of the transaction.
        stage: who is asked about its paths.
        rings: the keys.
        day: the day in UTC.
        next_hop: where the mail goes on to.
        offered: what the client was told that the next hop can do.
        given: the reverse path as the client gave it.
        sender: what the stage said of it.
        parameters: those of MAIL, as written.
        named: how many recipients the client named.
        recipients: those of them that were accepted, and the first of those that were not, in their order.
        status: value of the status field that the message is to carry, or None.
        cause: what went wrong, for the log alone.
        failed: whether it can only end in 451.
        receiving: whether the client was told to send the message.
        octets: octets of the message so far, as received.
        quarantined: the copy for the quarantine, or None.
    """

    side: Side
    identifier: str
    stage: Stage
    rings: KeyRings
    day: Day
    next_hop: NextHop
    offered: Capabilities
    given: ReversePath
    sender: Decision[ReversePath]
    parameters: bytes
    named: int = 0
    recipients: list[Recipient] = field(default_factory=list)
    status: bytes | None = None
    cause: str = ""
    failed: bool = False
    receiving: bool = False
    octets: int = 0
    quarantined: QuarantinedMessage | None = None
    _connection: NextHopConnection | None = None
    _status_field: StatusField | None = None
    _last: bytes = b""
    _peek: HeaderPeek = field(default_factory=HeaderPeek)

    @property
    def forwarded(self) -> list[Recipient]:
        """The recipients whom the message is to reach."""
        return [recipient for recipient in self.recipients if recipient.accepted and not recipient.held]

    @property
    def held(self) -> list[Recipient]:
        """The recipients whom it is not to reach though the client was told that they are accepted."""
        return [recipient for recipient in self.recipients if recipient.accepted and recipient.held]

    @property
    def own_words(self) -> bool:
        """Whether the client hears our words for a 2yz of the next hop: replies must not tell what a tag is worth."""
        return self.side.direction is Direction.INBOUND and self.given.null

    def remember(self, recipient: Recipient) -> None:
        """Keep a recipient: an accepted one always, others up to a number, so that refusals do not fill the memory."""
        if recipient.accepted or len(self.recipients) < _REFUSED_KEPT:
            self.recipients.append(recipient)

    # What is said to the next hop. Each raises NextHopFault where it is unreachable, silent, broken or gone.

    async def open(self) -> Reply:
        """Say MAIL, and return the reply."""
        connection, reply = await self._within_limit(self._mail())
        if reply.positive:
            self._connection = connection
        elif reply.intermediate:
            connection.abort()
            raise NextHopFault(f"the next hop answered MAIL with {reply}")
        else:
            self.next_hop.release(connection)
        return reply

    async def ask(self, recipient: Recipient, parameters: bytes) -> Reply:
        """Say RCPT with the path that was decided on, and return the reply."""
        line = b"RCPT TO:%b%b" % (recipient.decision.path.octets, parameters)
        if recipient.held:
            reply = await self._ask_apart(line)
        else:
            connection = self._standing
            if not self._still_offered(connection, parameters):
                raise NextHopFault(_OFFER_GONE)
            reply = await connection.command(line, self.next_hop.settings.command_seconds)
        if reply.intermediate:
            raise NextHopFault(f"the next hop answered RCPT with {reply}")
        if reply.positive and not recipient.held:
            self.status = recipient.decision.status
        return reply

    async def open_content(self) -> Reply:
        """Say DATA, and return the reply."""
        reply = await self._standing.command(b"DATA", self.next_hop.settings.data_seconds)
        if reply.positive or (reply.intermediate and reply.code != START_CONTENT):
            raise NextHopFault(f"the next hop answered DATA with {reply}")
        if self.side.marks:
            self._status_field = StatusField(self.status)
        return reply

    async def send(self, octets: bytes, *, last: bool) -> None:
        """Send octets of the message, if it still goes to the next hop, and wait while that takes none.

        The last ones wait for the dot, and go with it.
        """
        self._peek.feed(octets)
        if self._connection is not None:
            if self._status_field is not None:
                octets = self._status_field.feed(octets)
            if last:
                self._last = octets
            else:
                await self._connection.write(octets, self.next_hop.settings.data_seconds)

    async def send_dot(self) -> Reply:
        """End the message, and return the reply."""
        connection = self._standing
        held = self._status_field.finish() if self._status_field is not None else b""
        reply = await connection.end_message(self._last + held, self.next_hop.settings.message_seconds)
        if reply.intermediate:
            raise NextHopFault(f"the next hop answered the message with {reply}")
        self._connection = None
        self.next_hop.release(connection)
        return reply

    async def reset(self) -> None:
        """Say RSET, and give the connection back; a fault ends the connection and is nobody's concern."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._reset(connection)

    def drop(self) -> None:
        """Give the connection up; a message under way stays without its dot."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.usable and not self.receiving:
            connection.close()
        else:
            connection.abort()

    def take_back(self) -> None:
        """Take the message out of the quarantine again: the client keeps it after all."""
        if self.quarantined is not None:
            self.quarantined.withdraw()

    def fail(self, error: BatvError) -> None:
        """Let the transaction end in 451 whatever comes: a part of what the client was promised cannot be kept."""
        self.failed = True
        self.cause = self.cause or str(error)
        self.drop()

    # The quarantine and the record.

    def begin_quarantine(self) -> None:
        """Begin a copy of the message for the held recipients.

        Raises:
            IoError: the quarantine takes none.
        """
        header = [("Return-Path", printable(self.given.octets))]
        for recipient in self.held:
            header.append(("X-Original-To", printable(recipient.given)))
            header.append(("X-Batv-Verdict", f"{recipient.decision.verdict} ({recipient.decision.reason})"))
        # After the verdicts, so that a message which begins with white space does not go on with one.
        header.append(("X-Batv-Transaction", self.identifier))
        name = f"{self.side.clock():.6f}.{self.identifier}.batv"
        self.quarantined = self.side.quarantine.begin(name, header)

    def ended(self, session: str, client: Client, reply: Reply | None) -> TransactionEnded:
        """Return the record of the transaction.

        Args:
            session: identifier of the session.
            client: who spoke to us.
            reply: the last reply that the client got, or None if it got none.
        """
        self._peek.finish()
        said = printable(str(reply).encode()) if reply is not None else ""
        outbound = self.side.direction is Direction.OUTBOUND
        outcomes = []
        for recipient in self.recipients:
            decision = self.sender if outbound else recipient.decision
            outcomes.append(
                RecipientOutcome(
                    printable(recipient.given),
                    decision.verdict,
                    decision.disposition,
                    clean(decision.reason),
                    decision.key_number,
                    said if said and recipient.accepted else printable(str(recipient.reply).encode()),
                )
            )
        return TransactionEnded(
            time=self.side.clock(),
            session=session,
            transaction=self.identifier,
            direction=self.side.direction,
            client=client.address,
            helo=client.name,
            reverse_path=printable(self.given.octets),
            recipients=tuple(outcomes),
            message_id=printable(self._peek.message_id),
            unnamed=self.named - len(self.recipients),
            size=self.octets,
            relay=str(self.next_hop),
            reply=said,
            cause=self.cause,
            null_sender=self.given.null,
        )

    # Parts.

    @property
    def _mail_line(self) -> bytes:
        return b"MAIL FROM:%b%b" % (self.sender.path.octets, self.parameters)

    @property
    def _standing(self) -> NextHopConnection:
        if self._connection is None:
            raise NextHopFault(self.cause or "the next hop is gone")
        return self._connection

    async def _acquire(self, *, fresh: bool = False) -> NextHopConnection:
        connection = await self.next_hop.acquire(fresh=fresh)
        if self._still_offered(connection, self.parameters):
            return connection
        self.next_hop.release(connection)
        raise NextHopFault(_OFFER_GONE)

    def _still_offered(self, connection: NextHopConnection, parameters: bytes) -> bool:
        return not parameters or connection.capabilities.carries(parameters, self.offered)

    async def _within_limit(self, said: Coroutine[Any, Any, ResultT]) -> ResultT:
        seconds = self.next_hop.settings.command_seconds
        try:
            async with asyncio.timeout(seconds):
                return await said
        except TimeoutError as error:
            raise NextHopFault(f"the next hop took longer than {seconds:g} s for a command") from error

    async def _mail(self) -> tuple[NextHopConnection, Reply]:
        """Say MAIL on a connection that has no transaction, and return both it and the reply."""
        line, seconds = self._mail_line, self.next_hop.settings.command_seconds
        connection = await self._acquire()
        try:
            return connection, await _said(connection, line, seconds)
        except NextHopFault:
            if not connection.reused:
                raise
        # It was closed while nobody used it, which no server announces.
        connection = await self._acquire(fresh=True)
        return connection, await _said(connection, line, seconds)

    async def _ask_apart(self, rcpt: bytes) -> Reply:
        """Ask about a recipient on a connection of its own, and leave no transaction there."""
        connection, mail, reply = await self._within_limit(self._mail_and_rcpt(rcpt))
        if reply.intermediate:
            connection.abort()  # whatever it waits for now, a command of ours it is not
        elif mail.positive:
            await self._reset(connection)
        else:
            self.next_hop.release(connection)
        return reply

    async def _mail_and_rcpt(self, rcpt: bytes) -> tuple[NextHopConnection, Reply, Reply]:
        connection, mail = await self._mail()
        if not mail.positive:
            return connection, mail, mail
        return connection, mail, await _said(connection, rcpt, self.next_hop.settings.command_seconds)

    async def _reset(self, connection: NextHopConnection) -> None:
        seconds = min(self.next_hop.settings.command_seconds, _RESET_SECONDS)
        try:
            reply = await _said(connection, b"RSET", seconds)
        except NextHopFault:
            return
        if reply.positive:
            self.next_hop.release(connection)
        else:
            connection.abort()


async def _said(connection: NextHopConnection, line: bytes, seconds: float) -> Reply:
    try:
        return await connection.command(line, seconds)
    except BaseException:
        connection.abort()
        raise
