"""Measures `smtp-source -> hop -> smtp-sink` for our proxies and for others, in turns, and tags a second."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.bench.codec import measure_codec
from scripts.bench.hops import HOPS, MissingToolError, require, tool
from scripts.bench.load import WORKLOADS, LoadError, enough, measure, memory_mib
from scripts.bench.report import Results, as_data, as_text, machine, versions
from tests.support.mta import mta_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scripts.bench.report import Rounds

_RESULTS: Final = Path(__file__).parent / "results"
_LOAD_AT_MOST: Final = 0.5
_UNAVAILABLE: Final = 69
_FAILED: Final = 70
_INTERRUPTED: Final = 130


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench/run", description=__doc__)
    parser.add_argument("--rounds", type=_count, default=5, help="rounds, of which the medians are shown (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="about how long one measurement takes (default: 1.5)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of half a second each, kept only with --out")
    parser.add_argument("--hops", type=_hops, default=list(HOPS), help=f"some of {','.join(HOPS)} (default: all)")
    parser.add_argument(
        "--out", type=Path, help="file for the results as JSON (default: results/DATE.json, if the machine was idle)"
    )
    found = parser.parse_args(arguments)
    if found.quick:
        found.rounds, found.seconds = 1, 0.5
    return found


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _hops(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(HOPS)):
        raise argparse.ArgumentTypeError(f"no such hop: {', '.join(unknown)}")
    return [name for name in HOPS if name in names]


def _measured(names: Sequence[str], rounds: int, seconds: float) -> Results:
    source = tool("smtp-source", "postfix")
    with mta_folder() as folder, ExitStack() as stack:
        hops = [stack.enter_context(HOPS[name](folder / name)) for name in names]
        idle_mib = {hop.name: round(memory_mib(hop.pid), 1) for hop in hops if hop.pid is not None}
        counts = {}
        for hop in hops:
            _progress(f"trying {hop.name}")
            for workload in WORKLOADS:
                counts[hop.name, workload.name] = enough(source, hop, workload, seconds)
        found: Rounds = {hop.name: {workload.name: [] for workload in WORKLOADS} for hop in hops}
        codec = []
        for number in range(rounds):
            for workload in WORKLOADS:
                _progress(f"round {number + 1} of {rounds}: {workload.name}")
                for hop in hops:
                    count = counts[hop.name, workload.name]
                    found[hop.name][workload.name].append(measure(source, hop, workload, count))
            codec.append(measure_codec(seconds / 3))
    return Results(idle_mib, found, codec)


def _progress(text: str) -> None:
    print(f"scripts/bench/run: {text}", file=sys.stderr, flush=True)


def _output(options: argparse.Namespace, load: float) -> Path | None:
    """Return where the results go, or None if they are not worth keeping."""
    if options.out is not None:
        return Path(options.out)
    if options.quick:
        return None
    if load >= _LOAD_AT_MOST:
        _progress(f"the machine was busy (load {load:.2f}): the results are not kept: wait, or name a file with --out")
        return None
    return _RESULTS / f"{datetime.now(UTC):%Y-%m-%d}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    options = _arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    load = os.getloadavg()[0]
    try:
        require(options.hops)
        results = _measured(options.hops, options.rounds, options.seconds)
    except MissingToolError as error:
        _progress(str(error))
        return _UNAVAILABLE
    except LoadError as error:
        _progress(str(error))
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    head = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "rounds_measured": options.rounds,
        "load_before": round(load, 2),
        "machine": machine(),
        "versions": versions(options.hops),
    }
    print(json.dumps(head, indent=1))
    print(as_text(results, WORKLOADS))
    output = _output(options, load)
    if output is not None:
        output.parent.mkdir(exist_ok=True)
        output.write_text(json.dumps(head | as_data(results, WORKLOADS), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
