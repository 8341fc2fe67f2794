"""A client's session with a proxy: what each command does at the next hop, and what the client hears.

The same for both proxies; they differ in the stage that is asked about each path, and in whose mail is taken.

Rules:

1. MAIL and RCPT go to the next hop as they come, and its replies come back unchanged. No reply is given before the
   next hop gave it, but for recipients that are held. What the client has sent already may be said ahead.
2. 250 after the final dot only if the next hop said 2yz to exactly these octets, or the message is on record as
   discarded or quarantined.
3. A fault of the next hop is `451 4.3.0` to the command or the message. The connection is cut, and never gets the dot.
4. A forged bounce is held: the next hop is asked about the recipient on a connection that serves nobody else, so that
   unknown users stay unknown and call-outs hear the truth; the content never reaches it.
5. Who sends a bounce hears our own words, the same for valid and forged tags: replies must not help guessing.
6. Where the content decides about a recipient, the next hop is asked about that recipient as about any, and nobody else
   has part in the message. We answer DATA ourselves, and look at the first part. Then either the next hop hears DATA,
   and all of it, or RSET; what it says to DATA stands in the reply to the message.
7. Where the header of a message with a sender decides, the next hop has heard DATA, as for any message, and gets
   nothing of it before its header is known. If it is not to go on, that connection is cut.
8. Where the site exempts recipients, MAIL is said at the next hop with the first RCPT, which decides what it says. The
   client hears our 250 to MAIL then, and what the next hop says to it in the reply to RCPT.

Source: RFC 5321 sections 3.3, 4.1.4 and 6.1; RFC 2920; draft-levine-smtp-batv-01 section 5.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batv.access import within
from batv.bounce import clue_in
from batv.errors import BatvError, IoError, OriginError, PathError, QuarantineFullError
from batv.net.connection import NextHopFault
from batv.observe.event import Direction, Level, Notice, TransactionEnded
from batv.proxy.identity import RECEIVED_OCTETS, Identity
from batv.proxy.judging import account_at, ask_lists, by_content, decide, decide_alone, look_on, note, recalled
from batv.proxy.side import NOTICE_SECONDS
from batv.proxy.transaction import SEPARATELY, START_CONTENT, Recipient, Transaction
from batv.rescue import FIRST_PART_OCTETS
from batv.smtp.extension import Capabilities, hidden_parameter
from batv.smtp.header import PEEK_OCTETS, HeaderPeek, StatusField, header_end
from batv.smtp.origin import (
    XCLIENT_ATTRIBUTES,
    XFORWARD_ATTRIBUTES,
    Origin,
)
from batv.smtp.path import keywords, parameter, parse_mail, parse_rcpt
from batv.smtp.reply import Reply
from batv.stage import DeferringStage, judged_together
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from batv.address import ForwardPath, ReversePath
    from batv.bounce import Clue
    from batv.net.next_hop import Route
    from batv.proxy.side import Side
    from batv.smtp.data import DataScanner
    from batv.smtp.path import RcptArgument
    from batv.store.quarantine import QuarantinedMessage

__all__ = ["Asked", "ProxySession"]

_OK: Final = Reply.of(250, "2.0.0 Ok")
_SENDER_OK: Final = Reply.of(250, "2.1.0 Ok")
_RECIPIENT_OK: Final = Reply.of(250, "2.1.5 Ok")
_GO_AHEAD: Final = Reply.of(354, "End data with <CR><LF>.<CR><LF>")
_LATER: Final = Reply.of(451, "4.3.0 Temporary failure, try again later")
_TOO_MANY: Final = Reply.of(452, "4.5.3 Too many recipients")
_UNKNOWN: Final = Reply.of(500, "5.5.1 Command unrecognized")
_ARGUMENT: Final = Reply.of(501, "5.5.4 Syntax error in arguments")
_BAD_SENDER: Final = Reply.of(501, "5.1.7 Bad sender address syntax")
_BAD_RECIPIENT: Final = Reply.of(501, "5.1.3 Bad recipient address syntax")
_SEQUENCE: Final = Reply.of(503, "5.5.1 Bad sequence of commands")
_NO_RELAY: Final = Reply.of(550, "5.7.1 Relaying denied")
_NOT_YOURS: Final = Reply.of(550, "5.7.1 Sender not allowed for this client")
_REJECTED: Final = Reply.of(550, "5.7.1 Message refused")
_BARE: Final = Reply.of(550, "5.6.11 Bare carriage return, line feed or NUL in the message")
_TOO_BIG: Final = Reply.of(552, "5.3.4 Message too big")
_NOT_ALLOWED: Final = Reply.of(554, "5.7.1 Access denied")
_TOO_LONG: Final = Reply.of(550, "5.1.7 Sender address too long")
_LOOP: Final = Reply.of(554, "5.4.6 Too many hops")
_PARAMETER: Final = Reply.of(555, "5.5.4 Unsupported parameter")

_TENANT_PEEK_OCTETS: Final = 262_144
"""Exchange Online puts its fields behind long ones of others."""

_GATHERED_OCTETS: Final = 64 << 20
"""Of all messages that are looked at; beyond that each is decided about by what has come of it."""


@dataclass(slots=True, eq=False)
class Asked:
    """A MAIL or RCPT command that was said to the next hop, and whose reply is not waited for yet.

    Attributes:
        transaction: what it belongs to.
        recipient: who RCPT names; None for MAIL.
        reply: what the client is to hear, once that is known.
    """

    transaction: Transaction
    recipient: Recipient | None
    reply: Reply | None = None


class ProxySession:
    """One client's session.

    Args:
        side: the proxy.
        address: the client's IP address, or what stands for one on a Unix socket.
        origin: both ends of its connection.
    """

    def __init__(self, side: Side, address: str, origin: Origin) -> None:
        self._side = side
        self._identity = Identity(side, address, origin)
        self._identifier = secrets.token_hex(6)
        self._count = 0
        self._greeted = False
        self._offered = Capabilities({})
        self._transaction: Transaction | None = None
        self._ahead: deque[Asked] = deque()
        self._way: Route | None = None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._transaction is not None

    # Commands.

    async def hello(self, name: bytes, *, extended: bool, ours: list[bytes]) -> Reply:
        """Answer EHLO with what the next hop offers and we can carry, and with keywords of our own.

        Where it cannot be asked: what it offered last, or all that we can carry. A client that needs an extension, and
        is not offered it, would bounce the message; so it must come as far as MAIL, and hear 451.
        """
        await self.reset()
        self._greeted = True
        self._identity.greet(name, extended=extended)
        self._tell_route()
        self._offered = Capabilities({})
        hostname = self._side.hostname.encode("ascii", "replace")
        if not extended:
            return Reply(250, (hostname,))
        try:
            self._offered = await self._route.capabilities()
        except NextHopFault as fault:
            self._notice(Level.WARNING, "next hop does not answer", fault)
            self._offered = self._side.next_hop.last_known or Capabilities.everything()
        added = StatusField.MAX_OCTETS if self._side.stage.marks else 0
        added += RECEIVED_OCTETS if self._side.settings.add_received else 0
        offered = self._offered.offered(self._side.settings.max_message_octets, added)
        if within(self._identity.address, self._side.xclient_from):
            offered.append(b" ".join((b"XCLIENT", *XCLIENT_ATTRIBUTES)))
        if within(self._identity.address, self._side.xforward_from):
            offered.append(b" ".join((b"XFORWARD", *XFORWARD_ATTRIBUTES)))
        return Reply(250, (hostname, *ours, *offered))

    def secured(self, tls: str, names: frozenset[str]) -> None:
        """Take note that the session goes on in TLS; nothing that was said before counts any more.

        Args:
            tls: version and cipher.
            names: those of the client's certificate, if one was verified.
        """
        self._end(_OK, heard=False)
        self._greeted = False
        self._identity.secure(tls, names)
        self._tell_route()

    async def xclient(self, argument: bytes) -> Reply:
        """Answer XCLIENT: a listed peer says who the client is, and the session begins anew for that client."""
        if not within(self._identity.address, self._side.xclient_from):
            return _UNKNOWN
        if self._transaction is not None:
            return _SEQUENCE
        try:
            self._identity.xclient(argument)
        except OriginError:
            return _ARGUMENT
        self._greeted = False
        self._tell_route()
        return Reply.of(220, f"{self._side.hostname} ESMTP")

    async def xforward(self, argument: bytes) -> Reply:
        """Answer XFORWARD: a listed peer says from whom the next message comes."""
        if not within(self._identity.address, self._side.xforward_from):
            return _UNKNOWN
        if self._transaction is not None:
            return _SEQUENCE
        try:
            self._identity.xforward(argument)
        except OriginError:
            return _ARGUMENT
        self._tell_route()
        return _OK

    async def mail(self, argument: bytes) -> Reply | Asked:
        """Ask the stage about the reverse path, and the next hop about the one that results."""
        if self._transaction is not None or not self._greeted:
            return _SEQUENCE
        identity = self._identity
        if not identity.may_send and not identity.has_certificate:
            self._side.observer(Notice(Level.WARNING, "client not allowed", identity.fields()))
            return _NOT_ALLOWED
        try:
            mail = parse_mail(argument)
        except PathError:
            return _BAD_SENDER
        try:
            tenants = identity.tenants(mail.path)
        except LookupError:
            self._side.observer(Notice(Level.WARNING, "sender not allowed for the certificate", identity.fields()))
            return _NOT_YOURS
        if not self._takes(mail.path, mail.parameters):
            return _BAD_SENDER
        if mail.parameters:
            if hidden_parameter(mail.parameters):
                return _PARAMETER
            size = parameter(mail.parameters, b"SIZE") or b""
            if size.isdigit() and (len(size) > 19 or int(size) > self._side.settings.max_message_octets):  # noqa: PLR2004 -- RFC 1870
                return _TOO_BIG
        side = self._side
        rings, day = side.rings(), side.day()
        doubt = side.clock_doubt()
        stage = DeferringStage(side.stage, doubt) if doubt else side.stage
        sender = stage.sender(mail.path, identity.client, rings, day)
        tenanted = tenants is not None
        peek = HeaderPeek(
            _TENANT_PEEK_OCTETS if tenanted else PEEK_OCTETS,
            read_tenants=tenanted,
            read_senders=side.ledger is not None and side.direction is Direction.OUTBOUND,
        )
        transaction = self._transaction = Transaction(
            side,
            self._next_identifier(),
            stage,
            rings,
            day,
            self._route,
            self._offered,
            mail.path,
            sender,
            mail.parameters,
            peek,
            stage.takes_for_bounce(mail.path),
            tenants,
        )
        if side.settings.add_received:
            transaction.trace = identity.received(transaction.identifier)
        if transaction.bounce:
            transaction.inquiry = ask_lists(side, mail.path, identity.client)
        return await self._begin(transaction)

    async def _begin(self, transaction: Transaction) -> Reply | Asked:
        """Say MAIL, unless the stage will have none of it, or wants to know a recipient first."""
        sender = transaction.sender
        if sender.disposition is Disposition.DEFER:
            transaction.cause = sender.reason
            return self._end(_LATER)
        if sender.disposition is Disposition.REJECT:
            transaction.cause = sender.reason
            return self._end(_TOO_LONG)
        if sender.verdict is Verdict.SIGNED and transaction.stage.wants_recipient(
            transaction.given, self._identity.client, transaction.day
        ):
            transaction.split = True
            return _SENDER_OK
        try:
            await transaction.say_mail()
        except NextHopFault as fault:
            return self._end(_LATER, str(fault))
        return self._asked(transaction, None)

    async def rcpt(self, argument: bytes) -> Reply | Asked:
        """Ask the stage about the forward path, and the next hop about the one that results."""
        transaction = self._transaction
        if transaction is None:
            return _SEQUENCE
        if transaction.named >= self._side.settings.max_recipients:
            return _TOO_MANY
        transaction.named += 1
        try:
            rcpt = parse_rcpt(argument)
        except PathError as error:
            inbound = self._side.direction is Direction.INBOUND
            return transaction.refuse(argument, _NO_RELAY if error.relay_trick and inbound else _BAD_RECIPIENT)
        if not self._takes(rcpt.path, transaction.parameters):
            return transaction.refuse(argument, _BAD_RECIPIENT)
        if rcpt.parameters and hidden_parameter(rcpt.parameters):
            return transaction.refuse(argument, _PARAMETER)
        if transaction.split:
            reply = await self._decide_sender(transaction, rcpt)
            if reply is not None:
                return reply
        return await self._ask_about(transaction, rcpt)

    async def _decide_sender(self, transaction: Transaction, rcpt: RcptArgument) -> Reply | None:
        """Say MAIL as this recipient wants it; return the reply to a RCPT that cannot be said, else None."""
        sender = transaction.stage.sender_for(
            transaction.given, rcpt.path, self._identity.client, transaction.rings, transaction.day
        )
        if transaction.mail_said:
            refusal = None if sender.path == transaction.sender.path else SEPARATELY
        else:
            transaction.sender = sender
            try:
                await transaction.say_mail()
                reply = await transaction.mail_reply()
            except NextHopFault as fault:
                transaction.fail(fault)
                refusal = _LATER
            else:
                # Refused, it may be taken for the next recipient.
                transaction.mail_said = reply.positive
                refusal = None if reply.positive else reply
        if refusal is None:
            return None
        if self._ahead:
            await self._settle_all()  # those before it stand before it on record
            if self._transaction is not transaction:
                return _LATER if transaction.failed else _SEQUENCE
        decision = decide_alone(transaction, rcpt.path, self._identity.client)
        transaction.remember(Recipient(decision, rcpt.path.octets, rcpt.parameters, refusal))
        return refusal

    async def _ask_about(self, transaction: Transaction, rcpt: RcptArgument) -> Reply | Asked:
        client, account = self._identity.client, b""
        if transaction.bounce:
            account = account_at(transaction, rcpt.path)
            decision = await decide(transaction, rcpt.path, client, account)
        else:
            decision = decide_alone(transaction, rcpt.path, client)
        recipient = Recipient(decision, rcpt.path.octets, rcpt.parameters, _LATER, account)
        lmtp = transaction.route.lmtp
        alone = decision.undecided or transaction.looks
        marked = transaction.bounce and transaction.stage.marks
        foreign = decision.verdict is Verdict.FOREIGN
        deferred = decision.disposition is Disposition.DEFER
        one_by_one = lmtp or marked or alone or not transaction.pipelines
        if self._ahead and (foreign or deferred or recipient.held or one_by_one):
            # What becomes of this one depends on what became of those before it, or it stands behind them on record.
            await self._settle_all()
            if self._transaction is not transaction:
                return _LATER if transaction.failed else _SEQUENCE
        if foreign:
            recipient.reply = _NO_RELAY
        elif deferred:
            recipient.reply = _LATER
        elif _goes_alone(transaction, recipient):
            recipient.reply = SEPARATELY
        elif recipient.held:
            await self._ask_apart(transaction, recipient)
        else:
            transaction.looks = alone
            try:
                transaction.say_rcpt(recipient)
            except NextHopFault as fault:
                transaction.fail(fault)
            else:
                return self._asked(transaction, recipient)
        transaction.remember(recipient)
        return recipient.reply

    async def settle(self, asked: Asked) -> Reply:
        """Return the reply to a command that was said to the next hop; those before it are settled too."""
        while asked.reply is None:
            await self._settle_first()
        return asked.reply

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
        if transaction.undecided is not None:
            # Whether it goes on is decided when its first part is known: the next hop is asked for a 354 then.
            transaction.gathered = bytearray()
            transaction.receiving = True
            return _GO_AHEAD
        if self._side.ledger is not None and any(each.decision.looks_on for each in (*forwarded, *held)):
            transaction.watched = bytearray()
        if held:
            wanted = {recipient.decision.disposition for recipient in held}
            if not forwarded and Disposition.REJECT in wanted and Disposition.QUARANTINE not in wanted:
                await transaction.reset()
                return await self._finish(transaction, _REJECTED)
            try:
                self._begin_quarantine(transaction)
            except BatvError as error:
                return self._end(_LATER, str(error))
        reply = _GO_AHEAD
        if forwarded:
            try:
                reply = await transaction.open_content()
            except NextHopFault as fault:
                return self._end(_LATER, str(fault))
            if reply.code != START_CONTENT:
                await transaction.reset()
                return await self._finish(transaction, reply)
            transaction.gathered = bytearray() if transaction.header_decides else None
        else:
            await transaction.reset()
        transaction.receiving = True
        return _GO_AHEAD if transaction.own_words else reply

    async def content(self, octets: bytes, scanner: DataScanner) -> None:
        """Send octets of the message on to where it goes; where that fails, swallow the rest of it."""
        transaction = self._transaction
        if transaction is None:
            return
        transaction.octets = scanner.octets
        if transaction.gathered is not None:
            octets = await self._gather(transaction, transaction.gathered, octets, last=scanner.done)
            if transaction.gathered is not None:
                return
        elif transaction.watched is not None and self._side.gathered_octets < _GATHERED_OCTETS:
            more = octets[: FIRST_PART_OCTETS - len(transaction.watched)]
            transaction.watched += more
            self._side.gathered_octets += len(more)
        settings = self._side.settings
        if (
            scanner.octets > settings.max_message_octets
            or (scanner.bare and settings.bare_newlines == "reject")
            or transaction.peek.hops > settings.max_hops
        ):
            # Refused in the end; what is on its way stays without its dot.
            transaction.drop()
        if transaction.quarantined is not None and not transaction.failed:
            try:
                transaction.quarantined.write(octets)
            except QuarantineFullError as error:
                self._discard_instead(transaction, error)
            except BatvError as error:
                transaction.fail(error)
        try:
            await transaction.send(octets, last=scanner.done)
        except NextHopFault as fault:
            transaction.fail(fault)

    async def _gather(self, transaction: Transaction, gathered: bytearray, octets: bytes, *, last: bool) -> bytes:
        """Gather the first part of a message; once it is decided what becomes of that, return it, to go there."""
        seen = len(gathered)
        gathered += octets
        self._side.gathered_octets += len(octets)
        full = last or self._side.gathered_octets >= _GATHERED_OCTETS
        if transaction.undecided is None and transaction.clue is None:
            if header_end(gathered, seen) < 0 and not full and len(gathered) < PEEK_OCTETS:
                return b""
            transaction.clue = clue_in(bytes(gathered[:PEEK_OCTETS]))
            full = full or transaction.clue is None or not transaction.may_be_rescued
        if not full and len(gathered) < FIRST_PART_OCTETS:
            return b""
        first = bytes(gathered)
        self._forget_gathered(transaction)
        if transaction.undecided is not None:
            await self._decide(transaction, transaction.undecided, first)
        elif transaction.clue is not None:
            await self._decide_together(transaction, transaction.clue, first)
        return first

    def _forget_gathered(self, transaction: Transaction) -> None:
        self._side.gathered_octets -= len(transaction.gathered or b"") + len(transaction.watched or b"")
        transaction.gathered = transaction.watched = None

    async def _decide(self, transaction: Transaction, recipient: Recipient, first: bytes) -> None:
        """Decide about a recipient by the first part of the message, and begin what follows from that."""
        recipient.decide(await by_content(transaction, recipient.decision, first, recipient.account))
        transaction.status = recipient.decision.status
        try:
            if not recipient.held:
                reply = await transaction.open_content()
                if reply.code != START_CONTENT:
                    transaction.refusal = reply
                    await transaction.reset()
                return
            await transaction.reset()
            if recipient.decision.disposition is Disposition.REJECT:
                transaction.refusal = _REJECTED
            self._begin_quarantine(transaction)
        except BatvError as error:
            transaction.fail(error)

    async def _decide_together(self, transaction: Transaction, clue: Clue, first: bytes) -> None:
        """Decide about all recipients of a message that has a sender, for what its header shows."""
        transaction.own_words = clue.bounce
        recipients = transaction.forwarded
        decisions = [recipient.decision.as_bounce or recipient.decision for recipient in recipients]
        decisions = [await recalled(transaction, each) if each.recall else each for each in decisions]
        if len(decisions) == 1 and decisions[0].undecided:
            decisions = [await by_content(transaction, decisions[0], first)]
        for recipient, decision in zip(recipients, judged_together(decisions, clue), strict=True):
            recipient.decide(decision)
        if not transaction.held:
            transaction.mark(recipients[0].decision.status)
            return
        transaction.drop()
        if transaction.held[0].decision.disposition is Disposition.REJECT:
            transaction.refusal = _REJECTED
        try:
            self._begin_quarantine(transaction)
        except BatvError as error:
            transaction.fail(error)

    def _begin_quarantine(self, transaction: Transaction) -> None:
        """Begin a copy for the quarantine, if anybody's is wanted; raises BatvError where that fails."""
        if any(recipient.decision.disposition is Disposition.QUARANTINE for recipient in transaction.held):
            try:
                transaction.begin_quarantine()
            except QuarantineFullError as error:
                self._discard_instead(transaction, error)

    async def end_of_content(self, scanner: DataScanner) -> Reply:
        """Answer the message."""
        transaction = self._transaction
        if transaction is None:
            return _LATER
        transaction.octets = scanner.octets
        if transaction.watched is not None:
            watched = bytes(transaction.watched)
            self._forget_gathered(transaction)
            await look_on(transaction, watched)
        if transaction.refusal is not None:
            return await self._finish(transaction, transaction.refusal)
        goes_on = bool(transaction.forwarded)
        if (goes_on or transaction.quarantined is not None) and scanner.octets > self._side.settings.max_message_octets:
            return await self._finish(transaction, _TOO_BIG)
        if goes_on:
            refusal = self._refusal(transaction, scanner)
            if refusal is not None:
                return await self._finish(transaction, refusal)
        if transaction.failed:
            return await self._finish(transaction, _LATER)
        try:
            if transaction.quarantined is not None:
                await self._keep(transaction, transaction.quarantined)
            if goes_on and transaction.held:
                self._side.journal.check()
        except BatvError as error:
            transaction.fail(error)
            return await self._finish(transaction, _LATER)
        if not goes_on:
            return await self._finish(transaction, _OK)
        try:
            reply = await transaction.send_dot()
        except NextHopFault as fault:
            transaction.fail(NextHopFault(f"{fault}, after the final dot: it may have the message"))
            return await self._finish(transaction, _LATER)
        return await self._finish(transaction, _OK if reply.positive and transaction.own_words else reply)

    async def _keep(self, transaction: Transaction, copy: QuarantinedMessage) -> None:
        """Put the copy for the quarantine on the disk; raises BatvError where that fails."""
        try:
            await asyncio.to_thread(copy.commit)
        except QuarantineFullError as error:
            self._discard_instead(transaction, error)

    def _discard_instead(self, transaction: Transaction, error: QuarantineFullError) -> None:
        """Go on without the copy, and say so, though not for each message of a flood."""
        transaction.discard_instead()
        now = asyncio.get_running_loop().time()
        if now >= self._side.says_full_from:
            self._side.says_full_from = now + NOTICE_SECONDS
            fields = {"session": self._identifier, "cause": error}
            self._side.observer(Notice(Level.WARNING, "forged bounces are discarded, not kept", fields))

    def _refusal(self, transaction: Transaction, scanner: DataScanner) -> Reply | None:
        """Return the reply to a message whose content must not go on, or None."""
        if scanner.bare and self._side.settings.bare_newlines == "reject":
            return _BARE
        transaction.peek.finish()
        if transaction.peek.hops > self._side.settings.max_hops:
            transaction.cause = transaction.cause or f"{transaction.peek.hops} Received fields: a loop"
            return _LOOP
        tenants = transaction.tenants
        if tenants is not None and not (transaction.peek.tenants and transaction.peek.tenants <= tenants):
            transaction.cause = transaction.cause or "not from the tenant that the certificate is good for"
            return _REJECTED
        return None

    async def reset(self) -> Reply:
        """Answer RSET."""
        if self._transaction is not None:
            await self._transaction.reset()
        self._end(_OK, heard=False)
        self._forget_forwarded()
        return _OK

    def fault(self, error: Exception) -> None:
        """Give up the transaction after an error of ours."""
        if self._transaction is not None:
            self._transaction.failed = True
        self._end(_LATER, f"{type(error).__name__}: {error}")

    def gone(self, cause: str) -> None:
        """End the session."""
        if self._transaction is not None:
            self._end(_LATER, cause if self._transaction.receiving else "", heard=False)
        if self._way is not None:
            self._way.close()

    # Commands said ahead.

    def _asked(self, transaction: Transaction, recipient: Recipient | None) -> Asked:
        asked = Asked(transaction, recipient)
        self._ahead.append(asked)
        return asked

    async def _settle_all(self) -> None:
        while self._ahead:
            await self._settle_first()

    async def _settle_first(self) -> None:
        asked = self._ahead[0]
        transaction, recipient = asked.transaction, asked.recipient
        if transaction is not self._transaction:
            # MAIL was refused, and what was said after it met nobody.
            asked.reply = _LATER if transaction.failed else _SEQUENCE
        elif recipient is None:
            try:
                reply = await transaction.mail_reply()
            except NextHopFault as fault:
                transaction.failed = True
                asked.reply = self._end(_LATER, str(fault))
            else:
                asked.reply = reply if reply.positive else self._end(reply)
        else:
            try:
                reply = await transaction.rcpt_reply()
            except NextHopFault as fault:
                transaction.fail(fault)
            else:
                recipient.reply = _RECIPIENT_OK if reply.positive and transaction.own_words else reply
            transaction.remember(recipient)
            asked.reply = recipient.reply
        if self._ahead and self._ahead[0] is asked:
            self._ahead.popleft()

    @staticmethod
    async def _ask_apart(transaction: Transaction, recipient: Recipient) -> None:
        try:
            reply = await transaction.ask_apart(recipient)
        except NextHopFault as fault:
            transaction.cause = str(fault)
        else:
            recipient.reply = _RECIPIENT_OK if reply.positive and transaction.own_words else reply

    # The end of a transaction.

    async def _finish(self, transaction: Transaction, reply: Reply) -> Reply:
        """End a transaction with the reply to its message, once that is on record.

        Where it cannot be recorded that a message was discarded, the client keeps the message. Where the next hop has
        taken it for other recipients that would have it delivered to them again and again: then the log line is the
        record. So it is, too, where no thread can be started.
        """
        journal = self._side.journal
        event = transaction.ended(self._identifier, self._identity.client, reply)
        try:
            if journal.write(event) and journal.fsync:
                await _in_thread(journal.sync)
        except BatvError as error:
            self._notice(Level.ERROR, "journal not written", error)
            transaction.cause = transaction.cause or f"journal not written: {error}"
            if reply.positive and transaction.held and not transaction.forwarded:
                reply = _LATER
            event = transaction.ended(self._identifier, self._identity.client, reply)
        if reply.positive:
            transaction.rescued = b""
            note(transaction)
        else:
            transaction.take_back()
        self._close(transaction, event)
        return reply

    def _end(self, reply: Reply, cause: str = "", *, heard: bool = True) -> Reply:
        """Close the transaction, whatever state it is in, and tell the observer."""
        transaction = self._transaction
        if transaction is not None:
            transaction.cause = transaction.cause or cause
            transaction.drop()
            self._close(
                transaction, transaction.ended(self._identifier, self._identity.client, reply if heard else None)
            )
        return reply

    def _close(self, transaction: Transaction, event: TransactionEnded) -> None:
        self._transaction = None
        transaction.discharge()
        self._forget_gathered(transaction)
        if transaction.rescued and self._side.ledger is not None:
            # In a thread, which nobody waits for: it is only a count.
            loop = asyncio.get_running_loop()
            with suppress(RuntimeError):  # nor is it worth another reply where no thread can be started
                loop.run_in_executor(None, self._side.ledger.give_back_rescue, transaction.rescued)
        transaction.drop()
        if transaction.quarantined is not None:
            transaction.quarantined.abandon()
        self._forget_forwarded()
        self._side.observer(event)

    # Parts.

    @property
    def _route(self) -> Route:
        """The way of this client's messages to the next hop; another one after a reload that changed the next hop."""
        if self._way is None or self._way.next_hop is not self._side.next_hop:
            if self._way is not None:
                self._way.close()
            self._way = self._side.next_hop.route(self._identity.origin)
        return self._way

    def _tell_route(self) -> None:
        if self._way is not None:
            self._way.tell(self._identity.origin)

    def _forget_forwarded(self) -> None:
        if self._identity.forget_forwarded():
            self._tell_route()

    @staticmethod
    def _takes(path: ReversePath | ForwardPath, mail_parameters: bytes) -> bool:
        """Whether the path may come here: octets above 127 want SMTPUTF8. Source: RFC 6531 section 3.4."""
        return path.octets.isascii() or b"SMTPUTF8" in keywords(mail_parameters)

    def _next_identifier(self) -> str:
        self._count += 1
        return f"{self._identifier}.{self._count}"

    def _notice(self, level: Level, what: str, error: Exception) -> None:
        fields = {"session": self._identifier, "relay": self._side.next_hop, "cause": error}
        self._side.observer(Notice(level, what, fields))


async def _in_thread(blocks: Callable[[], None]) -> None:
    """Call what blocks, and wait for it; raises IoError where there is no thread to call it in."""
    try:
        await asyncio.to_thread(blocks)
    except RuntimeError as error:
        raise IoError(f"cannot start a thread: {error}", "let the system allow more of them") from error


def _goes_alone(transaction: Transaction, recipient: Recipient) -> bool:
    """Return whether a recipient must have a transaction of its own, beside those that are in this one."""
    decision = recipient.decision
    if decision.undecided or transaction.undecided is not None:
        return bool(transaction.forwarded or transaction.held)
    if recipient.held or not (transaction.route.lmtp or decision.status != transaction.status):
        return False
    return bool(transaction.forwarded)
