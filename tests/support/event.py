"""The record of a transaction: a bounce without a tag, which was discarded."""

from __future__ import annotations

from typing import Final

from batv.observe.event import Direction, RecipientOutcome, TransactionEnded
from batv.verdict import Disposition, Verdict

__all__ = ["EVENT", "OUTCOME"]

OUTCOME: Final = RecipientOutcome(
    forward_path="<joe@example.com>",
    verdict=Verdict.UNTAGGED,
    disposition=Disposition.DISCARD,
    reason="no tag",
    key_number=None,
    reply="250 2.0.0 Ok",
)
"""What became of its one recipient."""

EVENT: Final = TransactionEnded(
    time=1_800_000_000.0,
    session="5e55",
    transaction="5e55.1",
    direction=Direction.INBOUND,
    client="192.0.2.1",
    helo="mx.example",
    reverse_path="<>",
    recipients=(OUTCOME,),
    message_id="<1@peer.example>",
    size=1234,
    relay="127.0.0.1:10028",
    reply="250 2.0.0 Ok",
    null_sender=True,
)
"""The transaction."""
