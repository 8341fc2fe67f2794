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
from typing import TYPE_CHECKING, Final

from batv.errors import BatvError, PathError
from batv.net.next_hop import NextHopFault
from batv.observe.event import Direction, Level, Notice, printable
from batv.proxy.transaction import START_CONTENT, Recipient, Transaction
from batv.smtp.extension import Capabilities, hidden_parameter
from batv.smtp.header import StatusField
from batv.smtp.path import keywords, parameter, parse_mail, parse_rcpt
from batv.smtp.reply import Reply
from batv.stage import Client
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from batv.address import ForwardPath, ReversePath
    from batv.proxy.side import Side
    from batv.smtp.data import DataScanner

__all__ = ["ProxySession"]

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
        self._transaction: Transaction | None = None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._transaction is not None

    # Commands.

    async def hello(self, name: bytes, *, extended: bool) -> Reply:
        """Answer EHLO with what the next hop offers and we can carry.

        Where it cannot be asked: what it offered last, or all that we can carry. A client that needs an extension, and
        is not offered it, would bounce the message; so it must come as far as MAIL, and hear 451.
        """
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
            self._notice(Level.WARNING, "next hop does not answer", fault)
            self._offered = self._side.next_hop.last_known or Capabilities.everything()
        added = StatusField.MAX_OCTETS if self._side.marks else 0
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
        transaction = self._transaction = Transaction(
            side,
            self._next_identifier(),
            side.stage,
            rings,
            day,
            side.next_hop,
            self._offered,
            mail.path,
            sender,
            mail.parameters,
        )
        if sender.disposition is Disposition.DEFER:
            transaction.cause = sender.reason
            return self._end(_LATER)
        try:
            reply = await transaction.open()
        except NextHopFault as fault:
            return self._end(_LATER, str(fault))
        return reply if reply.positive else self._end(reply)

    async def rcpt(self, argument: bytes) -> Reply:
        """Answer RCPT: ask the stage about the forward path, and the next hop about the one that results."""
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
            return _NO_RELAY if error.relay_trick and inbound else _BAD_RECIPIENT
        if not self._takes(rcpt.path, transaction.parameters):
            return _BAD_RECIPIENT
        if hidden_parameter(rcpt.parameters):
            return _PARAMETER
        decision = transaction.stage.recipient(
            transaction.given, rcpt.path, self._client, transaction.rings, transaction.day
        )
        recipient = Recipient(decision, rcpt.path.octets, _LATER)
        if decision.verdict is Verdict.FOREIGN:
            recipient.reply = _NO_RELAY
        elif decision.status != transaction.status and not recipient.held and transaction.forwarded:
            recipient.reply = _SEPARATELY
        else:
            try:
                reply = await transaction.ask(recipient, rcpt.parameters)
            except NextHopFault as fault:
                if recipient.held:
                    transaction.cause = str(fault)
                else:
                    transaction.fail(fault)
            else:
                recipient.reply = _RECIPIENT_OK if reply.positive and transaction.own_words else reply
        transaction.remember(recipient)
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
        wanted = {recipient.decision.disposition for recipient in held}
        if not forwarded and Disposition.REJECT in wanted and Disposition.QUARANTINE not in wanted:
            await transaction.reset()
            return await self._finish(transaction, _REJECTED)
        if Disposition.QUARANTINE in wanted:
            try:
                transaction.begin_quarantine()
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
        if scanner.octets > self._side.settings.max_message_octets or (
            scanner.bare and self._side.settings.bare_newlines == "reject"
        ):
            # Refused in the end; what is on its way stays without its dot.
            transaction.drop()
        if transaction.quarantined is not None and not transaction.failed:
            try:
                transaction.quarantined.write(octets)
            except BatvError as error:
                transaction.fail(error)
        try:
            await transaction.send(octets, last=scanner.done)
        except NextHopFault as fault:
            transaction.fail(fault)

    async def end_of_content(self, scanner: DataScanner) -> Reply:
        """Answer the message."""
        transaction = self._transaction
        if transaction is None:
            return _LATER
        transaction.octets = scanner.octets
        goes_on = bool(transaction.forwarded)
        if (goes_on or transaction.quarantined is not None) and scanner.octets > self._side.settings.max_message_octets:
            return await self._finish(transaction, _TOO_BIG)
        if goes_on and scanner.bare and self._side.settings.bare_newlines == "reject":
            return await self._finish(transaction, _BARE)
        if transaction.failed:
            return await self._finish(transaction, _LATER)
        try:
            if transaction.quarantined is not None:
                await asyncio.to_thread(transaction.quarantined.commit)
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

    async def reset(self) -> Reply:
        """Answer RSET."""
        if self._transaction is not None:
            await self._transaction.reset()
        self._end(_OK, heard=False)
        return _OK

    def fault(self, error: Exception) -> None:
        """Give up the transaction after an error of ours."""
        self._end(_LATER, f"{type(error).__name__}: {error}")

    def gone(self, cause: str) -> None:
        """End the session."""
        if self._transaction is not None:
            self._end(_LATER, cause if self._transaction.receiving else "", heard=False)

    # The end of a transaction.

    async def _finish(self, transaction: Transaction, reply: Reply) -> Reply:
        """End a transaction with the reply to its message, once that is on record.

        Where it cannot be recorded that a message was discarded, the client keeps the message. Where the next hop has
        taken it for other recipients that would have it delivered to them again and again: then the log line is the
        record.
        """
        journal = self._side.journal
        event = transaction.ended(self._identifier, self._client, reply)
        try:
            if journal.write(event) and journal.fsync:
                await asyncio.to_thread(journal.sync)
        except BatvError as error:
            self._notice(Level.ERROR, "journal not written", error)
            transaction.cause = transaction.cause or f"journal not written: {error}"
            if reply.positive and transaction.held and not transaction.forwarded:
                reply = _LATER
        if reply.permanent or reply.transient:
            transaction.take_back()
        return self._end(reply)

    def _end(self, reply: Reply, cause: str = "", *, heard: bool = True) -> Reply:
        """Close the transaction, whatever state it is in, and tell the observer."""
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return reply
        transaction.drop()
        if transaction.quarantined is not None:
            transaction.quarantined.abandon()
        transaction.cause = transaction.cause or cause
        self._side.observer(transaction.ended(self._identifier, self._client, reply if heard else None))
        return reply

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
