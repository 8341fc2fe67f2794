"""Measures the sent ledger: octets a message, messages written a second, and how long a look takes, found or not."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from batv.day import Day
from batv.keyring import Secret
from batv.store.ledger import Ledger, LedgerLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FIRST_DAY: Final = Day.from_iso("2026-03-10")
_SECRET: Final = Secret(b"published: the secret of a bench")
_USERS: Final = 1000
_DOMAINS: Final = 5000
_FLOORS: Final = {"p99": 1.0, "octets": 40.0}
"""Milliseconds of a look, and octets a message."""

_FAILED: Final = 70


class _Looked(NamedTuple):
    """Milliseconds that looks took, in order: on a machine that does something else, the second tells more."""

    times: list[float]
    processor: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table in Markdown, and return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench/ledger", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000_000, help="messages in the ledger (default: 10000000)")
    parser.add_argument("--days", type=int, default=30, help="days over which they are spread (default: 30)")
    parser.add_argument("--looks", type=int, default=20_000, help="looks that are timed (default: 20000)")
    parser.add_argument("--folder", type=Path, help="where the ledger is made (default: a temporary folder)")
    found = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="batv-ledger-", dir=found.folder) as folder:
        return _measure(Path(folder) / "ledger", found.messages, found.days, found.looks)


def _measure(folder: Path, messages: int, days: int, looks: int) -> int:
    limits = LedgerLimits(keep_days=days, max_octets=1 << 40)
    today = [_FIRST_DAY]
    began, used = time.perf_counter(), time.process_time()
    for number in range(days):
        today[0] = _FIRST_DAY + number
        ledger = Ledger(folder, _SECRET, lambda: today[0], limits, b"example.com".__eq__)
        _write(ledger, range(number, messages, days))
        if notices := ledger.notices():
            print(f"not everything was written: {notices}", file=sys.stderr)
            return _FAILED
    took, used = time.perf_counter() - began, time.process_time() - used
    octets = sum(path.stat().st_size for path in folder.iterdir()) / messages
    ledger = Ledger(folder, _SECRET, lambda: today[0], limits, b"example.com".__eq__)
    rng = random.Random(1)
    # A look at what is there ends with the day on which it is; at what is not, with the last day.
    there = _times(ledger, lambda: _message(rng.randrange(messages)), looks, known=True)
    not_there = _times(ledger, lambda: _message(messages + rng.randrange(messages)), looks, known=False)
    ledger.close()
    load = os.getloadavg()[0]
    print(f"| {messages} messages in {days} days | |\n|---|---|")
    print(f"| octets a message | {octets:.1f} |")
    print(f"| written a second, by one process | {messages / took:.0f} |")
    print(f"| processor time a message | {used / messages * 1e6:.1f} µs |")
    for name, looked in (("found", there), ("not found", not_there)):
        for kind, times in (("time", looked.times), ("processor time", looked.processor)):
            print(f"| {kind} of a look, {name}: p50, p99 | {_at(times, 0.5):.3f} ms, {_at(times, 0.99):.3f} ms |")
    print(f"| load of the machine meanwhile | {load:.1f} |")
    reached = max(_at(there.times, 0.99), _at(not_there.times, 0.99)) < _FLOORS["p99"] and octets < _FLOORS["octets"]
    print(f"| p99 below 1 ms, below 40 octets | {'reached' if reached else 'not reached'} |")
    return 0 if reached else 1


def _write(ledger: Ledger, numbers: Sequence[int]) -> None:
    for count, number in enumerate(numbers):
        message_id, sender, recipient = _message(number)
        ledger.note(message_id, (sender,), (recipient,))
        if count % 50_000 == 0:
            ledger.flush()
    ledger.close()


def _message(number: int) -> tuple[bytes, bytes, bytes]:
    message_id = b"%08x.%d@mail.example.com" % (number * 2_654_435_761 % (1 << 32), number)
    return (
        message_id,
        b"user%d@example.com" % (number % _USERS),
        b"u%d@d%d.example" % (number % 9973, number % _DOMAINS),
    )


def _times(ledger: Ledger, draw: Callable[[], tuple[bytes, bytes, bytes]], looks: int, *, known: bool) -> _Looked:
    times, processor = [], []
    for _ in range(looks):
        message_id, sender, recipient = draw()
        began, used = time.perf_counter(), time.thread_time()
        found = ledger.knows((message_id,), sender, (recipient, b"@" + recipient.partition(b"@")[2]))
        processor.append((time.thread_time() - used) * 1000)
        times.append((time.perf_counter() - began) * 1000)
        if found is not known:
            raise AssertionError("the ledger does not know what was noted, or knows more")
    return _Looked(sorted(times), sorted(processor))


def _at(times: Sequence[float], share: float) -> float:
    return times[int(len(times) * share)]


if __name__ == "__main__":
    sys.exit(main())
