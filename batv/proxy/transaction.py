"""One transaction, and what of it passes to the next hop: the path that was decided on, the message, and nothing else.

Rules:

1. What the stage returned is what the next hop hears: no path is taken apart or written anew here. The octets after
   RCPT TO there are those of the Decision.
2. A connection that was used before may have been closed since, which no server announces, and a server may break
   down at any time: until the reply to MAIL, all that was said is said again on another connection. The client is
   kept waiting no longer than `command_seconds` for all that, or it would not wait for the reply.
3. After a fault nothing of what the client was promised stands: the transaction has failed, and ends in 451.
4. A connection on which a message has begun is cut, not closed, unless the message has its dot.

Source: RFC 5321 sections 3.3 and 4.1.4; RFC 2920 section 3.1.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from batv.net.connection import NextHopFault, SilenceFault
from batv.net.destination import taken_of_client
from batv.observe.event import Direction, Misnamed, RecipientOutcome, TransactionEnded, clean, printable
from batv.smtp.header import StatusField
from batv.smtp.reply import Reply
from batv.verdict import APART, FORGED, Decision, Disposition, Verdict

if TYPE_CHECKING:
    from batv.address import ForwardPath, ReversePath
    from batv.bounce import Clue
    from batv.day import Day
    from batv.errors import BatvError
    from batv.keyring import KeyRings
    from batv.net.connection import NextHopConnection
    from batv.net.dnsbl import Inquiry
    from batv.net.next_hop import Route
    from batv.proxy.side import Side
    from batv.smtp.extension import Capabilities
    from batv.smtp.header import HeaderPeek
    from batv.stage import Client, Stage
    from batv.store.quarantine import QuarantinedMessage

__all__ = ["SEPARATELY", "START_CONTENT", "Recipient", "Transaction"]

START_CONTENT: Final = 354

_JUDGED: Final = FORGED | {Verdict.VALID}
_RESET_SECONDS: Final = 10.0
"""For the reply to RSET: the client waits meanwhile, and a slow one costs no more than a new connection."""

_REFUSED_KEPT: Final = 100
"""Recipients after which refused ones are only counted. A client of a list has fewer; a dictionary attack has more."""

SEPARATELY: Final = Reply.of(452, "4.5.3 Send to this recipient in a transaction of its own")
_TO: Final = b"TO:"
_OFFER_GONE: Final = "the next hop no longer offers what the client was told"


@dataclass(slots=True)
class Recipient:
    """One recipient that the client named.

    Attributes:
        decision: what the stage said.
        given: the path as the client gave it.
        parameters: those of RCPT, as written.
        reply: what the client was told.
        account: what stands for the tag where its bounces are counted; empty where they are not.
        held: whether the message is not to reach this recipient.
    """

    decision: Decision[ForwardPath]
    given: bytes
    parameters: bytes
    reply: Reply
    account: bytes = b""
    held: bool = field(init=False)

    def __post_init__(self) -> None:
        self.held = (
            self.decision.disposition.withholds and self.decision.verdict in _JUDGED and not self.decision.undecided
        )

    def decide(self, decision: Decision[ForwardPath]) -> None:
        """Put another decision in the place of the one that was made before the content was known."""
        self.decision = decision
        self.__post_init__()

    @property
    def accepted(self) -> bool:
        """Whether the client counts on this recipient."""
        return self.reply.positive

    @property
    def apart(self) -> bool:
        """Whether the client is to name the recipient again, in a transaction of its own."""
        return self.reply is SEPARATELY

    @property
    def command(self) -> bytes:
        """The command that names the recipient to the next hop."""
        return b"RCPT TO:%b%b" % (self.decision.path.octets, self.parameters)


@dataclass(slots=True)
class Transaction:
    """From MAIL to the reply to the message.

    Attributes:
        side: the proxy.
        identifier: unique name of the transaction.
        stage: who is asked about its paths.
        rings: the keys.
        day: the day in UTC.
        route: the way to the next hop.
        offered: what the client was told that the next hop can do.
        given: the reverse path as the client gave it.
        sender: what the stage said of it.
        parameters: those of MAIL, as written.
        peek: reads what is wanted of the header.
        bounce: whether its sender alone makes it a bounce.
        tenants: the message must come from one of these tenants of Exchange Online; None if from anybody.
        trace: a field that goes before the message.
        inquiry: what lists of senders of backscatter were asked about the client; None if nothing.
        named: how many recipients the client named.
        misnamed: the first RCPT that named none; None where each did.
        recipients: those of them that were accepted, and the first of those that were not, in their order.
        status: value of the status field that the message is to carry, or None.
        cause: what went wrong, for the log alone.
        failed: whether it can only end in 451.
        receiving: whether the client was told to send the message.
        header_decides: whether a recipient was accepted about whom the header of the message decides.
        looks: whether a recipient was named about whom the content decides; that one has a message of its own.
        gathered: the first part of the message, until it is decided about; None where there is nothing to decide.
        watched: a copy of it, where it goes on record what the message answers; else None.
        clue: what the header shows of a message that has a sender; None where it shows nothing, or was not looked at.
        refusal: the reply to the message, where that is settled before its end.
        charged: tags for which it counts among the bounces under way, once for each recipient.
        rescued: address or account for which the message is counted as let through, until it is delivered.
        octets: octets of the message so far, as received.
        relay: the server that it goes on to, or the servers that it might go to.
        quarantined: the copy for the quarantine, or None.
        split: whether what MAIL says depends on the recipients, so that the first one decides.
        mail_said: in a transaction that is split, whether the next hop has taken MAIL.
        own_words: whether the client hears our words for a 2yz of the next hop: replies must not tell what a tag is
            worth.
    """

    side: Side
    identifier: str
    stage: Stage
    rings: KeyRings
    day: Day
    route: Route
    offered: Capabilities
    given: ReversePath
    sender: Decision[ReversePath]
    parameters: bytes
    peek: HeaderPeek
    bounce: bool
    tenants: frozenset[bytes] | None = None
    trace: bytes = b""
    inquiry: Inquiry | None = None
    named: int = 0
    misnamed: Misnamed | None = None
    recipients: list[Recipient] = field(default_factory=list)
    status: bytes | None = None
    cause: str = ""
    failed: bool = False
    receiving: bool = False
    header_decides: bool = False
    looks: bool = False
    gathered: bytearray | None = None
    watched: bytearray | None = None
    clue: Clue | None = None
    refusal: Reply | None = None
    charged: list[bytes] = field(default_factory=list)
    rescued: bytes = b""
    octets: int = 0
    relay: str = ""
    quarantined: QuarantinedMessage | None = None
    split: bool = False
    mail_said: bool = False
    own_words: bool = field(init=False)
    _connection: NextHopConnection | None = None
    _prelude: list[asyncio.Future[Reply]] = field(default_factory=list)
    _mail: asyncio.Future[Reply] | None = None
    _said: deque[tuple[Recipient, asyncio.Future[Reply] | None]] = field(default_factory=deque)
    _until: float = 0.0
    _status_field: StatusField | None = None
    _last: bytes = b""

    def __post_init__(self) -> None:
        self.own_words = self.bounce and self.side.direction is Direction.INBOUND

    @property
    def forwarded(self) -> list[Recipient]:
        """The recipients whom the message is to reach."""
        return [recipient for recipient in self.recipients if recipient.reply.positive and not recipient.held]

    @property
    def undecided(self) -> Recipient | None:
        """The recipient about whom the content decides, if there is one."""
        if not self.looks:
            return None
        return next((each for each in self.recipients if each.accepted and each.decision.undecided), None)

    @property
    def held(self) -> list[Recipient]:
        """The recipients whom it is not to reach though the client was told that they are accepted."""
        return [recipient for recipient in self.recipients if recipient.held and recipient.accepted]

    @property
    def may_be_rescued(self) -> bool:
        """Whether record or content may change what becomes of a message that is a bounce by its header.

        One for several recipients is no answer to what one of them has sent.
        """
        found = [each.decision.as_bounce for each in self.forwarded]
        return len(found) == 1 and found[0] is not None and (found[0].undecided or found[0].recall)

    @property
    def pipelines(self) -> bool:
        """Whether the next hop takes a command before it has answered the last one."""
        return self._connection is not None and self._connection.pipelines

    def refuse(self, argument: bytes, reply: Reply) -> Reply:
        """Return the reply to a RCPT that names no recipient; the first one is kept, for the log."""
        if self.misnamed is None:
            path = argument[len(_TO) :].strip() if argument.upper().startswith(_TO) else argument
            self.misnamed = Misnamed(printable(path), _text(str(reply)))
        return reply

    def remember(self, recipient: Recipient) -> None:
        """Keep a recipient: an accepted one always, others up to a number, so that refusals do not fill the memory."""
        if recipient.accepted or len(self.recipients) < _REFUSED_KEPT:
            self.recipients.append(recipient)
        if recipient.accepted and recipient.decision.as_bounce is not None:
            self.header_decides = True

    # What is said to the next hop. Each raises NextHopFault where it is unreachable, silent, broken or gone.

    async def say_mail(self) -> None:
        """Say MAIL, and do not wait for the reply."""
        connection = self.route.at_hand()
        if connection is None:
            self._until = asyncio.get_running_loop().time() + self.route.settings.command_seconds
            connection = await self._acquire(fresh=False)
        else:
            self._until = connection.now + self.route.settings.command_seconds
            connection = self._fitting(connection)
        await self._say_mail(connection)

    async def mail_reply(self) -> Reply:
        """Return the reply to MAIL; one that is not positive ends what the next hop knows of the transaction."""
        reply = None
        while reply is None:
            try:
                for answer in self._prelude:
                    _check_prelude(await answer)
                reply = await self._said_mail
            except NextHopFault as fault:
                connection, self._connection = self._connection, None
                if connection is None or not self.route.failed(connection, fault) or isinstance(fault, SilenceFault):
                    raise
                await self._say_mail(await self._acquire(fresh=True))
                said, self._said = self._said, deque()
                for recipient, _ in said:
                    # This server may take one command at a time: the others follow then, each in its turn.
                    self._said.append((recipient, self._send_rcpt(recipient) if self.pipelines else None))
        self._prelude.clear()
        if reply.intermediate:
            self._cut()
            raise NextHopFault(f"the next hop answered MAIL with {reply}")
        if not reply.positive:
            # What was said ahead is answered by 503, or by a server that closes: neither is anybody's concern now.
            said, self._said = self._said, deque()
            answers = [answer for _, answer in said if answer is not None]
            if answers:
                await asyncio.wait(answers)
            connection, self._connection = self._standing, None
            self.route.release(connection)
        return reply

    def say_rcpt(self, recipient: Recipient) -> None:
        """Say RCPT with the path that was decided on, and do not wait for the reply."""
        self._said.append((recipient, self._send_rcpt(recipient)))

    async def rcpt_reply(self) -> Reply:
        """Return the reply to the first RCPT whose reply was not waited for."""
        recipient, answer = self._said.popleft()
        reply = await (answer if answer is not None else self._send_rcpt(recipient))
        if reply.intermediate:
            self._cut()
            raise NextHopFault(f"the next hop answered RCPT with {reply}")
        if reply.positive:
            self.status = recipient.decision.status
        return reply

    async def ask_apart(self, recipient: Recipient) -> Reply:
        """Ask about a held recipient on a connection of its own, and leave no transaction there."""
        seconds = self.route.settings.command_seconds
        connection: NextHopConnection | None = None
        try:
            async with asyncio.timeout(seconds):
                connection, reply = await self._mail_apart()
                if not reply.positive:
                    self.route.release(connection)
                    return reply
                reply = await connection.command(recipient.command, seconds)
        except BaseException as error:
            if connection is not None:
                self.route.drop(connection)
            if isinstance(error, TimeoutError):
                raise NextHopFault(f"the next hop took longer than {seconds:g} s for a command") from error
            raise
        if reply.intermediate:
            self.route.drop(connection)  # whatever it waits for now, a command of ours it is not
            raise NextHopFault(f"the next hop answered RCPT with {reply}")
        await self._reset(connection)
        return reply

    async def open_content(self) -> Reply:
        """Say DATA, and return the reply."""
        reply = await self._standing.send(b"DATA", self.route.settings.data_seconds)
        if reply.positive or (reply.intermediate and reply.code != START_CONTENT):
            raise NextHopFault(f"the next hop answered DATA with {reply}")
        if self.stage.marks:
            self._status_field = StatusField(self.status)
        return reply

    def mark(self, status: bytes | None) -> None:
        """Let the message carry another status field than was settled at DATA; none of it has been sent."""
        if self._status_field is not None:
            self._status_field = StatusField(status)

    async def send(self, octets: bytes, *, last: bool) -> None:
        """Send octets of the message, if it still goes to the next hop, and wait while that takes none.

        The last ones wait for the dot, and go with it.
        """
        self.peek.feed(octets)
        if self._connection is None:
            return
        if self._status_field is not None:
            octets = self._status_field.feed(octets)
        if self.trace:
            octets, self.trace = self.trace + octets, b""
        if last:
            self._last = octets
        else:
            await self._connection.write(octets, self.route.settings.data_seconds)

    async def send_dot(self) -> Reply:
        """End the message, and return the reply."""
        connection = self._standing
        held = self._status_field.finish() if self._status_field is not None else b""
        answer = connection.end_message(self._last + held, self.route.settings.message_seconds)
        self._last = held = b""  # the answer may be long in coming
        reply = await answer
        if reply.intermediate:
            raise NextHopFault(f"the next hop answered the message with {reply}")
        self._connection = None
        self.route.release(connection)
        return reply

    async def reset(self) -> None:
        """Say RSET, and give the connection back; a fault ends the connection and is nobody's concern."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._reset(connection)

    def drop(self) -> None:
        """Give the connection up; a message under way stays without its dot."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self.route.drop(connection, politely=not self.receiving)

    def charge(self, account: bytes) -> int:
        """Count a recipient among the bounces under way to a tag, and return how many there were before it."""
        under_way = self.side.open_bounces
        before = under_way[account]
        under_way[account] = before + 1
        self.charged.append(account)
        return before

    def discharge(self) -> None:
        """Count its recipients there no more: it is over, and noted if it was delivered."""
        charged, self.charged = self.charged, []
        under_way = self.side.open_bounces
        under_way.subtract(charged)
        for account in charged:
            if not under_way[account]:
                del under_way[account]

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
        """Begin a copy of the message for the recipients for whom it is to be kept; others are not named in it.

        One that may be genuine was found room for when its recipient was named, and is not lost for want of it now.

        Raises:
            QuarantineFullError: there is no room for it.
            IoError: the quarantine takes none.
        """
        header = [("Return-Path", printable(self.given.octets))]
        kept = [each for each in self.held if each.decision.disposition is Disposition.QUARANTINE]
        for recipient in kept:
            header.append(("X-Original-To", printable(recipient.given)))
            header.append(("X-Batv-Verdict", f"{recipient.decision.verdict} ({recipient.decision.reason})"))
        # After the verdicts, so that a message which begins with white space does not go on with one.
        header.append(("X-Batv-Transaction", self.identifier))
        name = f"{self.side.clock():.6f}.{self.identifier}.batv"
        genuine = any(recipient.decision.verdict is Verdict.VALID for recipient in kept)
        self.quarantined = self.side.quarantine.begin(name, header, beyond_limit=genuine)

    def discard_instead(self) -> None:
        """Give up the copy for the quarantine, which is full: the message is discarded where it was to be kept."""
        for recipient in self.recipients:
            decision = recipient.decision
            if decision.disposition is Disposition.QUARANTINE:
                reason = f"{decision.reason}; quarantine full"
                recipient.decision = decision._replace(disposition=Disposition.DISCARD, reason=reason)
        if self.quarantined is not None:
            self.quarantined.abandon()
            self.quarantined = None

    def ended(self, session: str, client: Client, reply: Reply | None) -> TransactionEnded:
        """Return the record of the transaction.

        Args:
            session: identifier of the session.
            client: who spoke to us.
            reply: the last reply that the client got, or None if it got none.
        """
        self.peek.finish()
        said = _text(reply) if reply is not None else ""
        outbound = self.side.direction is Direction.OUTBOUND
        outcomes = []
        for recipient in self.recipients:
            decision = self.sender if outbound else recipient.decision
            if recipient.apart:
                decision = _put_off(recipient.decision, outbound=outbound)
            outcomes.append(
                RecipientOutcome(
                    printable(recipient.given),
                    decision.verdict,
                    decision.disposition,
                    clean(decision.reason),
                    decision.key_number,
                    said if said and recipient.accepted else _text(recipient.reply),
                    decision.exempt,
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
            message_id=printable(self.peek.message_id),
            unnamed=self.named - len(self.recipients),
            size=self.octets,
            relay=self.relay or str(self.route),
            reply=said,
            cause=self.cause,
            null_sender=self.given.null,
            misnamed=self.misnamed,
        )

    # Parts.

    @property
    def _mail_command(self) -> bytes:
        return b"MAIL FROM:%b%b" % (self.sender.path.octets, self.parameters)

    def _cut(self) -> None:
        """Cut the connection: whatever the next hop waits for now, a command of ours it is not."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self.route.drop(connection)

    @property
    def _seconds_left(self) -> float:
        return self._until - asyncio.get_running_loop().time()

    @property
    def _said_mail(self) -> asyncio.Future[Reply]:
        if self._mail is None:  # pragma: no cover -- what kept it from being said is heard before
            raise NextHopFault("MAIL was not said")
        return self._mail

    @property
    def _standing(self) -> NextHopConnection:
        if self._connection is None:
            raise NextHopFault(self.cause or "the next hop is gone")
        return self._connection

    def _send_rcpt(self, recipient: Recipient) -> asyncio.Future[Reply]:
        connection = self._standing
        if not self._still_offered(connection, recipient.parameters):
            raise NextHopFault(_OFFER_GONE)
        return connection.send(recipient.command, self.route.settings.command_seconds)

    async def _say_mail(self, connection: NextHopConnection) -> None:
        self._connection = connection
        self.relay = self.route.server(connection)
        seconds = self.route.settings.command_seconds
        if not connection.reused:
            seconds = max(self._seconds_left, 0)
        self._prelude, self._mail = [], None
        for line in self.route.prelude(connection, self.identifier):
            answer = connection.send(line, seconds)
            self._prelude.append(answer)
            if not connection.pipelines:
                await asyncio.wait((answer,))
                if answer.exception() is not None or not answer.result().positive:
                    return  # whoever waits for the reply to MAIL hears why it was not said
        self._mail = connection.send(self._mail_command, seconds)

    async def _acquire(self, *, fresh: bool) -> NextHopConnection:
        try:
            async with asyncio.timeout_at(self._until):
                connection = await self.route.acquire(fresh=fresh)
        except TimeoutError as error:
            seconds = self.route.settings.command_seconds
            raise NextHopFault(f"the next hop took longer than {seconds:g} s for a command") from error
        return self._fitting(connection)

    def _fitting(self, connection: NextHopConnection) -> NextHopConnection:
        """Return a connection that takes the parameters of MAIL; one that does not is no fault of its server's."""
        if self._still_offered(connection, self.parameters):
            return connection
        self.route.release(connection)
        raise NextHopFault(_OFFER_GONE)

    def _still_offered(self, connection: NextHopConnection, parameters: bytes) -> bool:
        return not parameters or connection.capabilities.carries(parameters, self.offered)

    async def _mail_apart(self) -> tuple[NextHopConnection, Reply]:
        """Say MAIL on a connection that has no transaction, and return both it and the reply."""
        seconds = self.route.settings.command_seconds
        fresh = False
        while True:
            connection = self._fitting(await self.route.acquire(fresh=fresh))
            try:
                reply = await self._mail_on(connection, seconds)
            except NextHopFault as fault:
                if not self.route.failed(connection, fault) or isinstance(fault, SilenceFault):
                    raise
                fresh = True
            except BaseException:
                self.route.drop(connection)
                raise
            else:
                return connection, reply

    async def _mail_on(self, connection: NextHopConnection, seconds: float) -> Reply:
        for line in self.route.prelude(connection, self.identifier):
            _check_prelude(await connection.command(line, seconds))
        reply = await connection.command(self._mail_command, seconds)
        if reply.intermediate:
            raise NextHopFault(f"the next hop answered MAIL with {reply}")
        return reply

    async def _reset(self, connection: NextHopConnection) -> None:
        seconds = min(self.route.settings.command_seconds, _RESET_SECONDS)
        try:
            reply = await connection.command(b"RSET", seconds)
        except BaseException as error:
            self.route.drop(connection)
            if isinstance(error, NextHopFault):
                return
            raise
        if reply.positive:
            self.route.release(connection)
        else:
            self.route.drop(connection)


def _put_off(decision: Decision[ForwardPath], *, outbound: bool) -> Decision[ForwardPath]:
    """Return what is on record of a recipient that is to come again."""
    verdict, reason = (Verdict.UNSIGNED, APART) if outbound else (decision.verdict, f"{decision.reason}; {APART}")
    return decision._replace(verdict=verdict, disposition=Disposition.DEFER, reason=reason)


@lru_cache(maxsize=128)
def _text(reply: Reply) -> str:
    """Return a reply as text for an event: most say what the one before said."""
    return printable(str(reply).encode("utf-8", "backslashreplace"))


def _check_prelude(reply: Reply) -> None:
    # Who goes on without it may be taken for whom it announced last.
    taken_of_client("XFORWARD", reply)
