"""What the listener's side of a session asks of whoever knows what the commands mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from batv.smtp.data import DataScanner
    from batv.smtp.reply import Reply

__all__ = ["Asked", "Conversation"]


class Conversation(Protocol):
    """What a session of the proxy offers to the door."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    def secured(self, tls: str, names: frozenset[str]) -> None:
        """Take note that the session goes on in TLS: version and cipher, names of the client's certificate."""

    async def hello(self, name: bytes, *, extended: bool, ours: list[bytes]) -> Reply:
        """Answer EHLO with keywords of ours among the others, or HELO where not extended."""

    async def xclient(self, argument: bytes) -> Reply:
        """Answer XCLIENT; the argument is what follows the verb."""

    async def xforward(self, argument: bytes) -> Reply:
        """Answer XFORWARD; the argument is what follows the verb."""

    async def mail(self, argument: bytes) -> Reply | Asked:
        """Answer MAIL, or begin to; the argument is what follows the verb."""

    async def rcpt(self, argument: bytes) -> Reply | Asked:
        """Answer RCPT, or begin to; the argument is what follows the verb."""

    async def settle(self, asked: Any) -> Reply:  # noqa: ANN401 -- what it is, is the conversation's matter
        """Wait for the answer to what was begun; answers come in the order of the commands."""

    async def data(self) -> Reply:
        """Answer DATA; 354 lets the content come."""

    async def content(self, octets: bytes, scanner: DataScanner) -> None:
        """Take the next octets of the message, harmless ones, and wait while they cannot be taken."""

    async def end_of_content(self, scanner: DataScanner) -> Reply:
        """Answer the message."""

    async def reset(self) -> Reply:
        """Answer RSET."""

    def fault(self, error: Exception) -> None:
        """Give up the transaction: an error of ours came out of one of the calls."""

    def gone(self, cause: str) -> None:
        """End the session: the client is gone, or is sent away. A message under way is given up."""


class Asked(Protocol):
    """A command that is being answered: nothing that the door looks into."""
