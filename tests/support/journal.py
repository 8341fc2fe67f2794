"""Writes a journal as the proxies do, for what reads one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batv.observe.event import Direction, RecipientOutcome, TransactionEnded
from batv.store.journal import Journal
from batv.verdict import Disposition, Verdict
from tests.support.command import TODAY

if TYPE_CHECKING:
    from tests.support.command import Command

NOON: Final = TODAY.number * 86_400 + 43_200.0
_OK: Final = "250 2.0.0 Ok"


class JournalWriter:
    """Writes a journal as the proxies do, one recipient a message, a second after the other.

    Args:
        batv: the site.
        days_ago: before the day that commands see.
    """

    def __init__(self, batv: Command, days_ago: int = 0) -> None:
        self._journal = Journal(batv.folder / "var")
        self._time = NOON - days_ago * 86_400

    def sent(
        self, sender: str, reason: str = "", *, count: int = 1, client: str = "127.0.0.1", reply: str = _OK
    ) -> JournalWriter:
        """Record mail that left: signed, or unsigned for a reason."""
        verdict = Verdict.UNSIGNED if reason else Verdict.SIGNED
        disposition = Disposition.PASS if reason else Disposition.REWRITE
        said = f"unsigned: {reason}" if reason else "signed with key 0"
        judged = (verdict, disposition, said)
        for _ in range(count):
            self._write(Direction.OUTBOUND, client, f"<{sender}>", "<bob@peer.example>", judged, reply=reply)
        return self

    def bounce(
        self,
        recipient: str,
        verdict: Verdict,
        disposition: Disposition = Disposition.MARK,
        client: str = "11.0.0.9",
        reason: str = "no tag",
    ) -> JournalWriter:
        """Record a bounce."""
        self._write(Direction.INBOUND, client, "<>", f"<{recipient}>", (verdict, disposition, reason))
        return self

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def _write(  # noqa: PLR0913 -- what a record has
        self,
        direction: Direction,
        client: str,
        sender: str,
        recipient: str,
        judged: tuple[Verdict, Disposition, str],
        *,
        reply: str = _OK,
    ) -> None:
        self._time += 1
        self._journal.write(
            TransactionEnded(
                time=self._time,
                session="s",
                transaction=f"t{self._time}",
                direction=direction,
                client=client,
                helo="client.example",
                reverse_path=sender,
                recipients=(RecipientOutcome(recipient, *judged, None, reply),),
                message_id="",
                size=1,
                relay="127.0.0.1:1",
                reply=reply,
                null_sender=sender == "<>",
            )
        )
