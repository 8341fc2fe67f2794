"""Measures `load -> hop -> smtp-sink` for our proxies and for others, in turns, and tags a second."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.bench.codec import measure_codec
from scripts.bench.findings import Results
from scripts.bench.hops import HOPS, require
from scripts.bench.load import IDLE, TAGS, WORKLOADS, LoadError, enough, idle_mib, latency, measure, takes
from scripts.bench.plot import plot
from scripts.bench.programs import MissingToolError, tool
from scripts.bench.report import as_data, as_text, machine, versions
from tests.support.mta import mta_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scripts.bench.hops import Hop
    from scripts.bench.load import Figures, Workload

_RESULTS: Final = Path(__file__).parent / "results"
_PLOT: Final = "plot.svg"
_LOAD_AT_MOST: Final = 0.5
_OPEN_FILES: Final = (
    8192  # some for each of the connections that a hop has at once, and no table of a thousand millions
)
_UNAVAILABLE: Final = 69
_FAILED: Final = 70
_INTERRUPTED: Final = 130
_LOADS: Final = (*(workload.name for workload in WORKLOADS), IDLE, TAGS)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench/run", description=__doc__)
    parser.add_argument("--rounds", type=_count, default=5, help="rounds, of which the medians are shown (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=0.8, help="about how long one measurement takes (default: 0.8)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of 0.3 seconds each, kept only with --out")
    parser.add_argument(
        "--hops", type=_names(HOPS, "hop"), default=list(HOPS), help=f"some of {','.join(HOPS)} (default: all)"
    )
    parser.add_argument(
        "--workloads",
        type=_names(_LOADS, "workload"),
        default=list(_LOADS),
        help=f"some of {','.join(_LOADS)} (default: all)",
    )
    parser.add_argument(
        "--out", type=Path, help="file for the results as JSON (default: results/DATE.json, if the machine was idle)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="RESULTS", help=f"measure nothing: draw {_PLOT} beside this file of results"
    )
    found = parser.parse_args(arguments)
    if found.quick:
        found.rounds, found.seconds = 1, 0.3
    return found


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _names(known: Iterable[str], what: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := sorted(set(names) - set(known)):
            raise argparse.ArgumentTypeError(f"no such {what}: {', '.join(unknown)}")
        return [name for name in known if name in names]

    return parse


def _measured(names: Sequence[str], loads: Sequence[str], rounds: int, seconds: float) -> Results:
    """Measure in rounds, so that what disturbs the machine disturbs all hops."""
    source = tool("smtp-source", "postfix")
    workloads = [workload for workload in WORKLOADS if workload.name in loads]
    results = Results({}, {name: {} for name in names}, {}, [])
    with mta_folder() as folder, ExitStack() as stack:
        hops = [stack.enter_context(HOPS[name](folder / name)) for name in names] if workloads else []
        results.idle_mib.update({hop.name: memory for hop in hops if (memory := hop.memory_mib()) is not None})
        actions = {}
        for hop in hops:
            _progress(f"trying {hop.name}")
            for workload in workloads:
                if takes(hop.name, workload.name):
                    actions[hop.name, workload.name] = _action(source, hop, workload, seconds)
        for number in range(rounds):
            for workload in workloads:
                _progress(f"round {number + 1} of {rounds}: {workload.name}")
                for hop in hops:
                    if action := actions.get((hop.name, workload.name)):
                        results.rounds[hop.name].setdefault(workload.name, []).append(action())
            if IDLE in loads:
                _progress(f"round {number + 1} of {rounds}: {IDLE}")
                for name in names:
                    if takes(name, IDLE):
                        # A process of its own, since one that has had something to do keeps some of the memory.
                        with HOPS[name](folder / f"{name}-{number}") as fresh:
                            results.connections_mib.setdefault(name, []).append(idle_mib(fresh))
            if TAGS in loads:
                results.codec.append(measure_codec(seconds / 3))
    return results


def _action(source: Path, hop: Hop, workload: Workload, seconds: float) -> Callable[[], Figures]:
    """Return what makes one measurement of about so many seconds."""
    if workload.timed:
        return lambda: latency(hop, workload, seconds)
    count = enough(source, hop, workload, seconds)
    return lambda: measure(source, hop, workload, count)


def _progress(text: str) -> None:
    print(f"scripts/bench/run: {text}", file=sys.stderr, flush=True)


def _output(options: argparse.Namespace, load: float) -> Path | None:
    """Return where the results go, or None if they are not worth keeping."""
    if options.out is not None:
        return Path(options.out)
    if options.quick or options.hops != list(HOPS) or options.workloads != list(_LOADS):
        return None
    if load >= _LOAD_AT_MOST:
        _progress(f"the machine was busy (load {load:.2f}): the results are not kept: wait, or name a file with --out")
        return None
    return _RESULTS / f"{datetime.now(UTC):%Y-%m-%d}.json"


def _draw(results: Path) -> None:
    """Draw the plot of a file of results beside it."""
    drawn = plot(json.loads(results.read_text(encoding="utf-8")))
    (results.parent / _PLOT).write_text(drawn, encoding="utf-8")


def _allow_connections() -> None:
    """Raise the limit of open files, which everything that is started here inherits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print, or draw; return the exit status."""
    options = _arguments(arguments)
    if options.plot is not None:
        _draw(options.plot)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    load = os.getloadavg()[0]
    names = [] if options.workloads == [TAGS] else options.hops
    try:
        _allow_connections()
        require(names)
        results = _measured(names, options.workloads, options.rounds, options.seconds)
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
        "seconds_each": options.seconds,
        "load_before": round(load, 2),
        "machine": machine(),
        "versions": versions(names),
    }
    print(json.dumps(head, indent=1))
    print(as_text(results))
    output = _output(options, load)
    if output is not None:
        output.parent.mkdir(exist_ok=True)
        output.write_text(json.dumps(head | as_data(results), indent=1) + "\n", encoding="utf-8")
        _draw(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
