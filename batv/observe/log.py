"""Log lines in Postfix's form: `key=<value>` pairs, one line a transaction.

The lines go to the standard library's logger `batv`, and from there to stderr, where systemd takes them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from batv.observe.event import Event, Level, Notice, TransactionEnded
from batv.tag import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["log_line", "log_observer"]

_LOGGER = logging.getLogger("batv")
_LEVELS: Final = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}


def log_observer(event: Event) -> None:
    """Write the line of an event."""
    if isinstance(event, TransactionEnded):
        level = logging.WARNING if event.cause else logging.INFO
    else:
        level = _LEVELS[event.level]
    if _LOGGER.isEnabledFor(level):
        _LOGGER.log(level, "%s", log_line(event))


def log_line(event: Event) -> str:
    """Return the line of an event."""
    if isinstance(event, Notice):
        fields = ", ".join(f"{key}={_clean(value)}" for key, value in event.fields.items())
        return f"{event.what}: {fields}" if fields else event.what
    return f"{event.direction}: {event.transaction}: " + ", ".join(_transaction(event))


def _transaction(event: TransactionEnded) -> Iterator[str]:
    yield f"client=<{_clean(event.client)}>"
    yield f"helo=<{_clean(event.helo)}>"
    yield f"from={event.reverse_path}"
    for outcome in event.recipients:
        key = "" if outcome.key_number is None else f" key={outcome.key_number}"
        reply = "" if outcome.reply == event.reply else f" reply=<{_clean(outcome.reply)}>"
        yield (
            f"to={outcome.forward_path} verdict={outcome.verdict}{key} disposition={outcome.disposition}"
            f" ({outcome.reason}){reply}"
        )
    yield f"message-id={_clean(event.message_id) or '<>'}"
    yield f"size={event.size}"
    yield f"relay={event.relay}"
    yield f"reply=<{_clean(event.reply)}>"
    if event.cause:
        yield f"cause=<{_clean(event.cause)}>"


def _clean(value: object) -> str:
    text = str(value)
    if not text.isprintable():
        text = "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)
    return shorten(text)
