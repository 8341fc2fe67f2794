"""Log lines in Postfix's form: `key=<value>` pairs, one line a transaction.

A LogWriter takes the lines to stderr, where systemd has them: in a thread of its own, so that a reader of the log that
stalls does not stop the mail. For programs that run the proxies in a process of theirs, `log_observer` hands them to
the standard library's logger `batv`, which costs several times as much.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import TYPE_CHECKING, Final

from batv.observe.event import Event, Level, Notice, TransactionEnded, clean

if TYPE_CHECKING:
    from batv.observe.event import Misnamed, RecipientOutcome

__all__ = ["LogWriter", "log_line", "log_observer"]

_LOGGER = logging.getLogger("batv")
_RECIPIENTS_SHOWN: Final = 100
_BRACKETS: Final = str.maketrans({"<": "\\x3c", ">": "\\x3e"})
_WAITING_LINES: Final = 10_000
"""Lines that wait for a slow reader; at 300 octets each they are 3 MB."""

_CLOSING_SECONDS: Final = 2.0
_GATHERING_SECONDS: Final = 0.05
"""For how long lines are gathered: a thread that woke up for each would cost as much as the relay of the message."""

_WHOLE_OCTETS: Final = 4096
"""What a pipe takes at once (PIPE_BUF of Linux): lines of several processes with one stderr do not mix."""

_LEVELS: Final = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}


class LogWriter:
    """Writes the lines of events to a file descriptor without ever keeping the caller waiting.

    What does not fit is lost, and counted: the journal has what must not be lost.

    Args:
        descriptor: where to, 2 for stderr.
        waiting_lines: how many lines may wait.
    """

    def __init__(self, descriptor: int, waiting_lines: int = _WAITING_LINES) -> None:
        self._descriptor = descriptor
        self._waiting_lines = waiting_lines
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lost = 0
        self._closing = threading.Event()
        # A daemon, or a reader that has stopped for good would keep the process from ending.
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def observe(self, event: Event) -> None:
        """Hand the line of an event over."""
        if self._lines.qsize() >= self._waiting_lines:
            self._lost += 1
        else:
            self._lines.put(f"batv/{_level(event).word}: {log_line(event)}\n")

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        self._closing.set()
        self._lines.put(None)
        self._thread.join(_CLOSING_SECONDS)

    def _write_all(self) -> None:
        open_ = True
        while open_:
            lines = [self._lines.get()]
            self._closing.wait(_GATHERING_SECONDS)
            lines += [self._lines.get() for _ in range(self._lines.qsize())]
            lost, self._lost = self._lost, 0
            if lost:
                lines.append(f"batv/ERROR: log lines lost, their reader is too slow: lines={lost}\n")
            open_ = None not in lines
            try:
                self._write("".join([line for line in lines if line is not None]))
            except OSError:
                self._lost += len(lines)

    def _write(self, lines: str) -> None:
        """Write lines, as many at a time as are written whole."""
        octets = lines.encode("utf-8", "backslashreplace")
        at = 0
        while at < len(octets):
            end = octets.rfind(b"\n", at, at + _WHOLE_OCTETS) + 1 or octets.find(b"\n", at) + 1
            while at < end:
                at += os.write(self._descriptor, octets[at:end])


def log_observer(event: Event) -> None:
    """Write the line of an event to the logger `batv`."""
    level = _LEVELS[_level(event)]
    if _LOGGER.isEnabledFor(level):
        _LOGGER.log(level, "%s", log_line(event))


def log_line(event: Event) -> str:
    """Return the line of an event."""
    if isinstance(event, Notice):
        fields = ", ".join(f"{key}={_escaped(str(value))}" for key, value in event.fields.items())
        line = f"{event.what}: {fields}" if fields else event.what
    else:
        line = _transaction(event)
    # Once for all of it. Texts from peers are clean by now, but for what a cause quotes; and none is to slip through.
    return clean(line)


def _level(event: Event) -> Level:
    if isinstance(event, Notice):
        return event.level
    return Level.WARNING if event.cause else Level.INFO


def _transaction(event: TransactionEnded) -> str:
    shown = event.recipients[:_RECIPIENTS_SHOWN]
    recipients = "".join([_recipient(outcome, event.reply) for outcome in shown])
    more = len(event.recipients) - len(shown) + event.unnamed
    return (
        f"{event.direction.word}: {event.transaction}: client=<{_escaped(event.client)}>,"
        f" helo=<{_escaped(event.helo)}>, from=<{_path(event.reverse_path)}>,{recipients}"
        f"{f' more-recipients={more},' if more else ''}{_misnamed(event.misnamed)}"
        f" message-id=<{_path(event.message_id)}>, size={event.size}, relay={event.relay}"
        f"{f', reply=<{_escaped(event.reply)}>' if event.reply else ''}"
        f"{f', cause=<{_escaped(event.cause)}>' if event.cause else ''}"
    )


def _recipient(outcome: RecipientOutcome, reply: str) -> str:
    key = "" if outcome.key_number is None else f" key={outcome.key_number}"
    own = "" if outcome.reply == reply else f" reply=<{_escaped(outcome.reply)}>"
    return (
        f" to=<{_path(outcome.forward_path)}> verdict={outcome.verdict.word}{key}"
        f" disposition={outcome.disposition.word} ({_escaped(outcome.reason)}){own},"
    )


def _misnamed(misnamed: Misnamed | None) -> str:
    if misnamed is None:
        return ""
    return f" refused=<{_path(misnamed.argument)}> reply=<{_escaped(misnamed.reply)}>,"


def _path(text: str) -> str:
    return _escaped(text[1:-1] if text.startswith("<") and text.endswith(">") else text)


def _escaped(text: str) -> str:
    # A quoted local part, or a name, may hold what looks like the end of the value and the next one.
    return text.translate(_BRACKETS) if "<" in text or ">" in text else text
