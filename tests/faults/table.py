"""The faults of a next hop, where in a session each of them can come, and what a client is to hear then.

`python -m tests.faults.table` writes the table into README.md beside this file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.faulty_hop import Fault, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CELLS", "README", "SAMPLE", "Cell", "Flow", "Outcome", "page"]

README: Final = Path(__file__).with_name("README.md")
"""Where the table stands."""


class Flow(Enum):
    """A kind of mail."""

    OUTBOUND = "outbound"
    GENUINE = "genuine bounce"
    MIXED = "genuine and forged bounce"

    def __str__(self) -> str:
        """Return the words for it."""
        return self.value

    @property
    def proxy(self) -> str:
        """The proxy that it goes through."""
        return "outbound" if self is Flow.OUTBOUND else "inbound"


class Outcome(Enum):
    """What becomes of a message at the first attempt. Each time all of it is delivered in the end, but for refusals."""

    UNHARMED = "250"
    DEFERRED = "451"
    PASSED_ON = "450"
    REFUSED = "550"
    UNKNOWN = "451 ?"

    def __str__(self) -> str:
        """Return the word for it."""
        return self.value


_MEANINGS: Final = {
    Outcome.UNHARMED: "the message is delivered as if nothing had happened",
    Outcome.DEFERRED: "the client hears 451 of the proxy and keeps the message; nothing is delivered",
    Outcome.PASSED_ON: "the client hears the 450 of the next hop and keeps the message; nothing is delivered",
    Outcome.REFUSED: "the client hears the 550 of the next hop, which alone may say so; nothing is delivered",
    Outcome.UNKNOWN: "the client hears 451 and keeps the message, though the next hop may have it: the reply to the"
    " dot is lost. Once with a next hop that has it, once with one that has not",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One of the cases.

    Attributes:
        stage: where the next hop breaks.
        fault: how it does.
        flow: the kind of mail.
        several: whether there are several recipients of each kind.
        pipelined: whether client and next hop pipeline.
        tls: whether the way to the next hop is encrypted.
        stores: whether the next hop has the message of whose dot nobody hears.
        asyncio: whether the service runs on asyncio's own event loop.
    """

    stage: Stage
    fault: Fault
    flow: Flow
    several: bool
    pipelined: bool
    tls: bool
    stores: bool
    asyncio: bool

    def __str__(self) -> str:
        """Return the words for it."""
        ways = {
            "several": self.several,
            "pipelined": self.pipelined,
            "TLS": self.tls,
            "stored": self.stores,
            "asyncio": self.asyncio,
        }
        words = [self.flow.value, self.stage.value, self.fault.value, *(word for word, is_so in ways.items() if is_so)]
        return "-".join(words).replace(" ", "_")

    @property
    def outcome(self) -> Outcome:
        """What is to become of the message."""
        return outcome(self.stage, self.fault)


_FAULTS_OF_REPLIES: Final = tuple(
    fault
    for fault in Fault
    if fault
    not in {
        Fault.REFUSED,
        Fault.UNKNOWN_NAME,
        Fault.BLACKHOLE,
        Fault.NO_354,
        Fault.STOPS_READING,
        Fault.EARLY_250,
        Fault.AFTER_221,
    }
)


def comes(stage: Stage, fault: Fault) -> bool:
    """Whether the fault can come at that stage."""
    if fault in _FAULTS_OF_REPLIES:
        return stage is not Stage.CONNECT
    return (stage, fault) in {
        (Stage.CONNECT, Fault.REFUSED),
        (Stage.CONNECT, Fault.UNKNOWN_NAME),
        (Stage.CONNECT, Fault.BLACKHOLE),
        (Stage.DATA, Fault.NO_354),
        (Stage.DATA, Fault.STOPS_READING),
        (Stage.BODY, Fault.STOPS_READING),
        (Stage.BODY, Fault.EARLY_250),
        (Stage.QUIT, Fault.AFTER_221),
    }


def outcome(stage: Stage, fault: Fault) -> Outcome:
    """Return what is to become of a message."""
    if stage in {Stage.RSET, Stage.QUIT} or (fault is Fault.EIGHT_BIT and stage is not Stage.BODY):
        return Outcome.UNHARMED
    if stage in {Stage.MAIL, Stage.FIRST_RCPT, Stage.LAST_RCPT, Stage.DATA, Stage.DOT}:
        if fault is Fault.LATER:
            return Outcome.PASSED_ON
        if fault is Fault.NEVER:
            return Outcome.REFUSED
    if stage is Stage.DOT and fault is Fault.TWICE:
        return Outcome.UNHARMED
    return Outcome.UNKNOWN if stage is Stage.DOT and not fault.refuses else Outcome.DEFERRED


def _all() -> Iterator[Cell]:
    for stage, fault, flow in product(Stage, Fault, Flow):
        if not comes(stage, fault) or fault is Fault.UNKNOWN_NAME:
            continue
        for several, pipelined, tls, stores, asyncio in product((False, True), repeat=5):
            if stage is Stage.LAST_RCPT and not several:
                continue
            if stage is Stage.STARTTLS and not tls:
                continue
            if stores and outcome(stage, fault) is not Outcome.UNKNOWN:
                continue
            yield Cell(stage, fault, flow, several, pipelined, tls, stores, asyncio)


def _sampled() -> Iterator[Cell]:
    """Take of each stage, fault and flow one cell, and both of one where nobody knows what the next hop has.

    The other ways take turns: the next one of a stage and fault has another of them, and so has the same fault at the
    next stage.
    """
    groups: dict[tuple[Stage, Fault, Flow, bool], list[Cell]] = {}
    for cell in CELLS:
        groups.setdefault((cell.stage, cell.fault, cell.flow, cell.stores), []).append(cell)
    for number, group in enumerate(groups.values()):
        yield group[5 * number % len(group)]


CELLS: Final = tuple(_all())
"""All of them."""

SAMPLE: Final = tuple(_sampled())
"""Those of a usual run."""


def page() -> str:
    """Return the README."""
    counts = Counter((cell.stage, cell.fault) for cell in CELLS)
    sampled = Counter((cell.stage, cell.fault) for cell in SAMPLE)
    stages = list(Stage)
    lines = [
        "# What becomes of mail when the next hop fails",
        "",
        "This file is written by `python -m tests.faults.table`; a test keeps it in step.",
        "",
        _INTRODUCTION,
        "",
        "| | " + " | ".join(map(str, stages)) + " |",
        "|---" * (len(stages) + 1) + "|",
    ]
    for fault in Fault:
        row = []
        for stage in stages:
            if not comes(stage, fault):
                row.append("")
            elif fault is Fault.UNKNOWN_NAME:
                row.append(f"{outcome(stage, fault)} (2/2)")
            else:
                row.append(f"{outcome(stage, fault)} ({sampled[stage, fault]}/{counts[stage, fault]})")
        lines.append(f"| {fault} | " + " | ".join(row) + " |")
    lines += ["", f"{len(SAMPLE) + 2} cases in a usual run, {len(CELLS) + 2} with `--long`.", ""]
    lines += [f"- `{word}`: {meaning}." for word, meaning in _MEANINGS.items()]
    return "\n".join(lines) + "\n\n" + _LAWS


_INTRODUCTION: Final = f"""\
Rows are what the next hop does, columns where in a session it does it. A cell says what the client hears at its first
attempt, and in how many cases that is tried: in a usual run / with `--long`. The cases differ in the kind of mail
({", ".join(map(str, Flow))}), in one or several recipients, in whether client and next
hop pipeline, in whether there is TLS to the next hop, and in the event loop."""

_LAWS: Final = """\
In every case, whatever the outcome:

- what was accepted was delivered: a recipient whose client heard 250 is on the record of the next hop, which it syncs
  before it replies, or in the journal where the bounce to it is forged;
- 250 comes only where the next hop was to say 2yz to the dot;
- every message is the same at both ends, octet for octet;
- 5yz comes only from a next hop that says 5yz;
- a message that is delivered though the client heard 451 is one whose dot got no reply, and there is at most one of it
  for each attempt;
- a client that tries again has everything delivered in the end;
- the session goes on, another client is greeted meanwhile, and the next one is served at once;
- no connection and no file is left open.

A relay that is broken on purpose fails the same checks: one that says 250 early, swallows a 4yz or a lost reply, drops
a recipient, trims a line, forgets to record a discard, turns a fault into 5yz, or keeps a broken connection.

Beside the table:

- `test_smtp_sink.py`: the next hop is Postfix's smtp-sink, which refuses, defers, closes, says 421 or is slow at each
  command, aborts a message, or does not read it.
- `test_signals.py`: SIGHUP, SIGTERM and SIGKILL come to the service or to one of its workers, while the next hop is
  held at each stage, and under load: 480 messages of 24 clients, with `--long` 20 000 of 200. Nothing that was accepted
  is lost, and SIGTERM cuts no transaction off that comes to its end within the drain time.
- `test_disk.py`: the disk under journal and quarantine is full, gives errors, is read-only or slow. A forged bounce
  that cannot be recorded is put off, and other mail goes on.
- `test_client_is_gone.py`: the client closes, half-closes or resets the connection.
- `test_key_ring.py`: the files of the keys are broken, or their writing is.
"""


def main() -> None:
    """Write the README."""
    README.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
