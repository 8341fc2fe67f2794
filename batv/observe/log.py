"""Log lines in Postfix's form: `key=<value>` pairs, one line a transaction.

The lines go to the standard library's logger `batv`. A LogWriter takes them from there to stderr, where systemd has
them: in a thread of its own, so that a reader of the log that stalls does not stop the mail.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import TYPE_CHECKING, Final

from batv.observe.event import Event, Level, Notice, TransactionEnded, clean

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LogWriter", "log_line", "log_observer"]

_LOGGER = logging.getLogger("batv")
_RECIPIENTS_SHOWN: Final = 100
_BRACKETS: Final = str.maketrans({"<": "\\x3c", ">": "\\x3e"})
_WAITING_LINES: Final = 10_000
"""Lines that wait for a slow reader; at 300 octets each they are 3 MB."""

_CLOSING_SECONDS: Final = 2.0
_GATHERING_SECONDS: Final = 0.05
"""For how long lines are gathered: a thread that woke up for each would cost as much as the relay of the message."""

_LEVELS: Final = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}


class LogWriter(logging.Handler):
    """Writes lines to a file descriptor without ever keeping the caller waiting.

    What does not fit is lost, and counted: the journal has what must not be lost.

    Args:
        descriptor: where to, 2 for stderr.
        waiting_lines: how many lines may wait.
    """

    def __init__(self, descriptor: int, waiting_lines: int = _WAITING_LINES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting_lines = waiting_lines
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lost = 0
        self._closing = threading.Event()
        # A daemon, or a reader that has stopped for good would keep the process from ending.
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line over."""
        if self._lines.qsize() >= self._waiting_lines:
            self._lost += 1
        else:
            self._lines.put(self.format(record))

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        self._closing.set()
        self._lines.put(None)
        self._thread.join(_CLOSING_SECONDS)
        super().close()

    def _write_all(self) -> None:
        open_ = True
        while open_:
            lines = [self._lines.get()]
            self._closing.wait(_GATHERING_SECONDS)
            while not self._lines.empty():
                lines.append(self._lines.get())
            lost, self._lost = self._lost, 0
            if lost:
                lines.append(f"batv/ERROR: log lines lost, their reader is too slow: lines={lost}")
            open_ = None not in lines
            octets = "".join(f"{line}\n" for line in lines if line is not None).encode("utf-8", "backslashreplace")
            try:
                while octets:
                    octets = octets[os.write(self._descriptor, octets) :]
            except OSError:
                self._lost += len(lines)


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
