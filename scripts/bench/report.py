"""The results as tables and as JSON, and on what they were measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scripts.bench.codec import CODEC
from scripts.bench.floors import floors
from scripts.bench.hops import OURS
from scripts.bench.load import IDLE, WORKLOADS
from scripts.bench.programs import exim, tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scripts.bench.findings import Results

__all__ = ["as_data", "as_text", "machine", "versions"]

_LIBRARIES: Final = ("batv", "aiosmtpd", "uvloop", "cryptography")
_TIMED: Final = tuple(workload.name for workload in WORKLOADS if workload.timed)
_PERCENTILES: Final = ("p50_ms", "p99_ms")


def versions(hops: Iterable[str]) -> dict[str, str]:
    """Return the version of everything that takes part.

    Args:
        hops: their names.
    """
    names = set(hops)
    found = {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}}
    if names:
        found["postfix"] = _said(tool("postconf", "postfix"), "-d", "-h", "mail_version")
    if "haproxy" in names:
        found["haproxy"] = _said(tool("haproxy", "haproxy"), "-v")
    if "exim" in names:
        found["exim"] = _said(exim(), "-C", "/dev/null", "-bV")
    return {name: found[name] for name in sorted(found)}


def _said(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True, timeout=60)
    match = re.search(r"\d+(\.\d+)+\S*", done.stdout)
    return match[0] if match else "unknown"


def machine() -> dict[str, str | int]:
    """Return what the machine is, without its name."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": cpu[1] if cpu else "unknown",
        "cores": len(os.sched_getaffinity(0)),
    }


def as_data(results: Results) -> dict[str, Any]:
    """Return the results for JSON: medians, comparisons, floors, and every single figure behind them."""
    return {
        "floors": [{**asdict(floor), "reached": floor.reached} for floor in floors(results)],
        "medians": {
            hop: {
                workload.name: {
                    "mib_per_second" if workload.large else "messages_per_second": results.median(
                        hop, workload.name, "rate"
                    ),
                    "cpu_seconds_per_gib" if workload.large else "cpu_seconds_per_1000_messages": results.median(
                        hop, workload.name, "cpu_seconds"
                    ),
                    "peak_memory_mib": results.median(hop, workload.name, "peak_mib"),
                    **({field: results.median(hop, workload.name, field) for field in _PERCENTILES if workload.timed}),
                }
                for workload in WORKLOADS
                if workload.name in by_workload
            }
            for hop, by_workload in results.rounds.items()
        },
        "added_latency_ms": {
            hop: {
                name: {field.removesuffix("_ms"): results.added(hop, name, field) for field in _PERCENTILES}
                for name in _TIMED
                if name in by_workload
            }
            for hop, by_workload in results.rounds.items()
        },
        "memory_mib": {
            hop: {"idle": idle, "peak": results.peak_mib(hop), "above_idle": results.above_idle_mib(hop)}
            for hop, idle in results.idle_mib.items()
        },
        IDLE: {
            hop: {"mib_above_empty": results.connections(hop), "kib_each": results.connection_kib(hop)}
            for hop in results.connections_mib
        },
        "ratios_of_rates": {
            f"{ours} / {other}": {name: results.ratio(ours, other, name) for name in results.rounds[ours]}
            for ours, other in _pairs(results)
        },
        "tags_per_second": {name: results.tags(name) for name in CODEC},
        "rounds": {
            hop: {
                name: [
                    {field: value for field, value in asdict(figures).items() if value is not None} for figures in of
                ]
                for name, of in by_workload.items()
            }
            for hop, by_workload in results.rounds.items()
        },
        "connections_rounds": results.connections_mib,
        "tags_rounds": results.codec,
    }


def as_text(results: Results) -> str:
    """Return the results as tables in Markdown."""
    headings = [workload.name for workload in WORKLOADS if any(workload.name in of for of in results.rounds.values())]
    timed = [name for name in _TIMED if name in headings]
    percentiles = [f"{name} {field.removesuffix('_ms')}" for name in timed for field in _PERCENTILES]

    def table(field: str, form: str) -> list[list[str]]:
        return _rows(results.rounds, headings, lambda hop, name: results.median(hop, name, field), form)

    def latency(of: Callable[[str, str, str], float | None]) -> list[list[str]]:
        return [
            [hop, *(_shown(of(hop, name, field), ".2f") for name in timed for field in _PERCENTILES)]
            for hop in results.rounds
        ]

    memory = [
        [hop, *(_shown(value, ".0f") for value in (idle, results.peak_mib(hop), results.above_idle_mib(hop)))]
        for hop, idle in results.idle_mib.items()
    ]
    connections = [
        [hop, _shown(results.connections(hop), ".1f"), _shown(results.connection_kib(hop), ".1f")]
        for hop in results.connections_mib
    ]
    ratios = [
        [f"{ours} / {other}", *(_shown(results.ratio(ours, other, name), ".2f") for name in headings)]
        for ours, other in _pairs(results)
    ]
    tags = [
        [name, _shown(results.tags(name), ".0f"), _shown(results.tags_ratio(name), ".2f")]
        for name in CODEC
        if results.codec
    ]
    found = [
        [
            floor.what,
            _shown(floor.found, ".2f"),
            f"{'at least' if floor.at_least else 'at most'} {floor.bound:g}",
            {True: "yes", False: "no", None: "not measured"}[floor.reached],
        ]
        for floor in floors(results)
    ]
    return "\n".join(
        [
            *_table("messages/s; large: MiB/s", headings, table("rate", ".0f")),
            *_table("CPU s per 1000; large: per GiB", headings, table("cpu_seconds", ".3f")),
            *_table("peak memory, MiB", headings, table("peak_mib", ".0f")),
            *_table("memory, MiB", ["idle", "peak", "above idle"], memory),
            *_table(IDLE, ["MiB above empty", "KiB each"], connections),
            *_table("latency, ms", percentiles, latency(results.median) if timed else []),
            *_table("added latency, ms", percentiles, latency(results.added) if timed else []),
            *_table("ratio of rates", headings, ratios),
            *_table("tags", ["a second", "ratio"], tags),
            *_table("floor", ["found", "wanted", "reached"], found),
        ]
    )


def _rows(
    hops: Iterable[str], names: Sequence[str], of: Callable[[str, str], float | None], form: str
) -> list[list[str]]:
    return [[hop, *(_shown(of(hop, name), form) for name in names)] for hop in hops]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(corner: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return [
        "",
        *(f"| {' | '.join(row)} |" for row in ([corner, *headings], ["---"] * (len(headings) + 1), *rows)),
    ]


def _pairs(results: Results) -> list[tuple[str, str]]:
    measured = results.rounds
    return [(ours, other) for ours in OURS if ours in measured for other in measured if other not in OURS]
