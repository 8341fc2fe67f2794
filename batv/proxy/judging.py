"""What is decided about recipients: what the stage says, with all that the service knows besides, and keeps note of.

Rules:

1. Lists of senders of backscatter are asked at MAIL, about bounces alone, and waited for at a RCPT only where the
   answer can change what becomes of the recipient.
2. What cannot be looked up makes no bounce fare worse than it would without the ledger.
3. What the ledger is asked blocks, and is asked in a thread; what it is told waits in memory.
4. Against a budget counts what the ledger knows of, and what is under way in this process: many may come at once.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from batv.bounce import is_postmaster
from batv.budget import account_of
from batv.errors import BatvError
from batv.guessing import GUESSES, network_of, victim
from batv.observe.event import Direction, Level, Notice, printable
from batv.proxy.side import NOTICE_SECONDS
from batv.rescue import NO_CLAIMS, Found, addresses_in, claims_of, message_ids_in
from batv.smtp.data import Unstuffer
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from batv.address import ForwardPath, ReversePath
    from batv.guessing import Guessing
    from batv.net.dnsbl import Inquiry
    from batv.proxy.side import Side
    from batv.proxy.transaction import Transaction
    from batv.rescue import Claims
    from batv.stage import Client
    from batv.store.ledger import Ledger
    from batv.verdict import Decision

__all__ = ["account_at", "ask_lists", "by_content", "decide", "decide_alone", "look_on", "note", "recalled"]

_MAX_SENDERS: Final = 8
"""Addresses that replies to a message may go to, of which the ledger keeps note."""

_MAX_LOOKED_ON: Final = 50
"""Recipients of one message whom the ledger is asked about for the record alone; bounces have one."""


def ask_lists(side: Side, path: ReversePath, client: Client) -> Inquiry | None:
    """Ask the lists about the client of a bounce; return what will have their answer, or None where none is asked."""
    # No list is about MAILER-DAEMON: Backscatterer.org wants to be asked for these two.
    asked = path.null or is_postmaster(path.mailbox)
    return side.blocklists.ask(client.address) if side.blocklists is not None and asked else None


def account_at(transaction: Transaction, path: ForwardPath) -> bytes:
    """Return what stands for the tag of a bounce where bounces are counted; else nothing."""
    if not _budget(transaction.side) or not transaction.given.null or path.mailbox is None:
        return b""
    return account_of(path.mailbox) or b""


def decide_alone(transaction: Transaction, path: ForwardPath, client: Client) -> Decision[ForwardPath]:
    """Return what the stage says of a recipient."""
    return transaction.stage.recipient(transaction.given, path, client, transaction.rings, transaction.day)


async def decide(transaction: Transaction, path: ForwardPath, client: Client, account: bytes) -> Decision[ForwardPath]:
    """Return what the stage says of a recipient with all that is known before the message is.

    Args:
        transaction: whose recipient it is.
        path: the path as the client gave it.
        client: who gave it.
        account: what `account_at` returned for the path.
    """
    side = transaction.side
    decision = decide_alone(transaction, path, client)
    if transaction.inquiry is not None:
        decision = await _with_lists(transaction, transaction.inquiry, path, client, decision)
    if side.guessing is not None:
        decision = _guarded(side, side.guessing, client, decision)
    if decision.recall:
        decision = await recalled(transaction, decision)
    if account and decision.verdict is Verdict.VALID:
        decision = await _within_budget(transaction, account, decision)
    if decision.undecided and side.ledger is None:
        decision = transaction.stage.content(decision, NO_CLAIMS, Found.UNREADABLE)
    return decision


async def recalled(transaction: Transaction, decision: Decision[ForwardPath]) -> Decision[ForwardPath]:
    """Return what the stage says of a recipient once it is known whether mail of that address left unsigned."""
    ledger, mailbox = transaction.side.ledger, decision.path.mailbox
    on_record = True  # nobody's bounces are lost for want of a ledger
    if ledger is not None and mailbox is not None:
        days = transaction.rings.longest(mailbox.domain) + 1
        on_record = await asyncio.to_thread(ledger.may_have_left_unsigned, mailbox.octets, days)
    return transaction.stage.recalled(decision, on_record=on_record)


async def by_content(
    transaction: Transaction, decision: Decision[ForwardPath], first: bytes, account: bytes = b""
) -> Decision[ForwardPath]:
    """Return what the stage says of a recipient for the first part of the message; a rescue is counted.

    What comes to a tag that has too many bounces is counted for that, and takes nothing from replies without one.
    """
    claims, found = NO_CLAIMS, Found.UNREADABLE
    ledger, mailbox = transaction.side.ledger, decision.path.mailbox
    if ledger is not None and mailbox is not None:
        charged = account or mailbox.octets
        claims = await asyncio.to_thread(_claimed, first)
        found = await asyncio.to_thread(_found, ledger, mailbox.octets, claims, charged)
        if found is Found.KNOWN:
            transaction.rescued = charged
    return transaction.stage.content(decision, claims, found)


async def look_on(transaction: Transaction, first: bytes) -> None:
    """Put on record what the first part of a message answers, about recipients for whom that changes nothing yet.

    Of the recipients of one message the first 50 are looked up: a forged message may name a thousand.
    """
    ledger = transaction.side.ledger
    if ledger is None:
        return
    # Once for all recipients: it takes hundredths of a second where a message is made to.
    claims = await asyncio.to_thread(_claimed, first)
    looking_on = [each for each in (*transaction.forwarded, *transaction.held) if each.decision.looks_on]
    for recipient in looking_on[:_MAX_LOOKED_ON]:
        mailbox = recipient.decision.path.mailbox
        if mailbox is not None:
            found = await asyncio.to_thread(_found, ledger, mailbox.octets, claims)
            recipient.decide(transaction.stage.content(recipient.decision, claims, found))


def note(transaction: Transaction) -> None:
    """Let the ledger know of a message that was taken: who sent it and to whom, or to which tags a bounce came."""
    ledger = transaction.side.ledger
    if ledger is None:
        return
    if transaction.side.direction is Direction.OUTBOUND:
        _note_sent(ledger, transaction)
        return
    for recipient in transaction.recipients:
        if recipient.account and recipient.accepted and recipient.decision.verdict is Verdict.VALID:
            ledger.note_bounce(recipient.account)


# Parts.


async def _with_lists(
    transaction: Transaction, inquiry: Inquiry, path: ForwardPath, client: Client, decision: Decision[ForwardPath]
) -> Decision[ForwardPath]:
    """Return what the stage says of a recipient, with what lists say of the client where that matters."""
    listed = decide_alone(transaction, path, replace(client, listed="some list"))
    if listed.disposition is decision.disposition:
        return decision
    zone = await inquiry.zone()
    return decide_alone(transaction, path, replace(client, listed=zone)) if zone else decision


def _guarded(side: Side, guessing: Guessing, client: Client, decision: Decision[ForwardPath]) -> Decision[ForwardPath]:
    """Count a failed tag; put aside what has a good one that may have been guessed, for as long as there is room.

    Where forged bounces are let through, there is nothing to guess for.
    """
    mailbox = decision.path.mailbox
    guess = decision.verdict in GUESSES and decision.disposition not in {Disposition.PASS, Disposition.DEFER}
    if mailbox is None or not (guess or decision.verdict is Verdict.VALID):
        return decision
    now = asyncio.get_running_loop().time()
    network, recipient = network_of(client.address), victim(mailbox)
    if not guess:
        if not guessing.suspect(network, recipient, now):
            return decision
        reason = f"{decision.reason}; many failed tags from {network}"
        if not side.quarantine.has_room:
            return decision._replace(reason=f"{reason}; quarantine full")
        return decision._replace(disposition=Disposition.QUARANTINE, reason=reason)
    if guessing.failed(network, recipient, now):
        fields = {"client": client.address, "network": network, "recipient": printable(recipient)}
        side.observer(Notice(Level.WARNING, "tags are being guessed", fields))
    return decision


def _budget(side: Side) -> int:
    """Return how many bounces a tag may have for each recipient of its mail; 0 for any number."""
    return side.ledger.limits.max_bounces_per_recipient if side.ledger is not None else 0


async def _within_budget(
    transaction: Transaction, account: bytes, decision: Decision[ForwardPath]
) -> Decision[ForwardPath]:
    """Return what the stage says of a tag that has had too many bounces, for as long as there is room for them."""
    side = transaction.side
    if side.ledger is None or decision.disposition is Disposition.QUARANTINE:
        return decision
    under_way = transaction.charge(account)  # before it is waited: who comes meanwhile finds it
    try:
        found = await asyncio.to_thread(side.ledger.account, account)
    except BatvError:  # which the ledger itself tells of
        return decision
    found = replace(found, bounces=found.bounces + under_way)
    if not found.overdrawn(_budget(side)) or not side.quarantine.has_room:
        return decision
    overdrawn = transaction.stage.overdrawn(decision, found)
    now = asyncio.get_running_loop().time()
    if overdrawn.undecided and now >= side.says_overdrawn_from and decision.path.mailbox is not None:
        side.says_overdrawn_from = now + NOTICE_SECONDS
        fields: dict[str, object] = {
            "recipient": printable(decision.path.mailbox.octets),
            "bounces": found.bounces,
            "recipients": found.recipients,
        }
        side.observer(Notice(Level.WARNING, "a tag has more bounces than its mail should have", fields))
    return overdrawn


def _claimed(first: bytes) -> Claims:
    """Return what the first part of a message claims."""
    unstuffer = Unstuffer()
    return claims_of(unstuffer.feed(first) + unstuffer.finish())


def _found(ledger: Ledger, recipient: bytes, claims: Claims, charged: bytes = b"") -> Found:
    """Return what the ledger knows of what a message claims; count a rescue, if somebody is charged with it. Blocks."""
    if not claims.message_ids or not claims.parties:
        return Found.CLAIMS_NOTHING
    try:
        if not ledger.knows(claims.message_ids, recipient, claims.parties):
            return Found.UNKNOWN
        return Found.KNOWN if not charged or ledger.take_rescue(charged) else Found.TOO_MANY
    except BatvError:  # which the ledger itself tells of
        return Found.UNREADABLE


def _note_sent(ledger: Ledger, transaction: Transaction) -> None:
    """Note a message that the next hop has taken, signed or not: who sent it, and to whom."""
    if transaction.given.mailbox is None:
        return
    if transaction.sender.recall:
        ledger.note_unsigned(transaction.given.mailbox.octets)
    senders = [transaction.given.mailbox.octets]
    for value in transaction.peek.senders:
        senders += addresses_in(value, _MAX_SENDERS)
    sender = transaction.sender.path.mailbox
    if ledger.limits.max_bounces_per_recipient and transaction.sender.verdict is Verdict.SIGNED and sender is not None:
        ledger.note_signed(account_of(sender) or b"", len(transaction.forwarded))
    recipients = [
        mailbox.octets for each in transaction.forwarded if (mailbox := each.decision.path.mailbox) is not None
    ]
    message_id = next(iter(message_ids_in(transaction.peek.message_id)), b"")
    ledger.note(message_id, senders[:_MAX_SENDERS], recipients)
