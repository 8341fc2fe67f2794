"""Log lines in Postfix's form: `key=<value>` pairs, one line a transaction.

The lines go to the standard library's logger `batv`, and from there to stderr, where systemd takes them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from batv.observe.event import Event, Level, Notice, TransactionEnded, clean

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["log_line", "log_observer"]

_LOGGER = logging.getLogger("batv")
_RECIPIENTS_SHOWN: Final = 100
_BRACKETS: Final = str.maketrans({"<": "\\x3c", ">": "\\x3e"})
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
        fields = ", ".join(f"{key}={_escaped(value)}" for key, value in event.fields.items())
        return f"{event.what}: {fields}" if fields else event.what
    return f"{event.direction}: {event.transaction}: " + ", ".join(_transaction(event))


def _transaction(event: TransactionEnded) -> Iterator[str]:
    yield f"client={_angled(event.client)}"
    yield f"helo={_angled(event.helo)}"
    yield f"from={_path(event.reverse_path)}"
    for outcome in event.recipients[:_RECIPIENTS_SHOWN]:
        key = "" if outcome.key_number is None else f" key={outcome.key_number}"
        reply = "" if outcome.reply == event.reply else f" reply={_angled(outcome.reply)}"
        yield (
            f"to={_path(outcome.forward_path)} verdict={outcome.verdict}{key} disposition={outcome.disposition}"
            f" ({_escaped(outcome.reason)}){reply}"
        )
    more = len(event.recipients) - _RECIPIENTS_SHOWN + event.unnamed
    if more > 0:
        yield f"more-recipients={more}"
    yield f"message-id={_path(event.message_id)}"
    yield f"size={event.size}"
    yield f"relay={event.relay}"
    yield f"reply={_angled(event.reply)}"
    if event.cause:
        yield f"cause={_angled(event.cause)}"


def _path(text: str) -> str:
    return _angled(text[1:-1] if text.startswith("<") and text.endswith(">") else text)


def _angled(value: object) -> str:
    return f"<{_escaped(value)}>"


def _escaped(value: object) -> str:
    # A quoted local part, or a name, may hold what looks like the end of the value and the next one.
    return clean(str(value)).translate(_BRACKETS)
