"""The results: medians over the rounds, and ratios of what was measured in the same round."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from scripts.bench.codec import CODEC
from scripts.bench.hops import tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scripts.bench.load import Figures, Workload

__all__ = ["Results", "Rounds", "as_data", "as_text", "machine", "versions"]

Rounds: TypeAlias = "dict[str, dict[str, list[Figures]]]"
"""The figures of each round, by hop and workload."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a run found.

    Attributes:
        idle_mib: memory of each hop before it had anything to do.
        rounds: what the load found.
        codec: what the tags found, by round.
    """

    idle_mib: dict[str, float]
    rounds: Rounds
    codec: list[dict[str, float]]


_OURS: Final = ("our outbound", "our inbound")
_LIBRARIES: Final = ("batv", "aiosmtpd", "uvloop", "cryptography")


def versions(hops: Iterable[str]) -> dict[str, str]:
    """Return the version of everything that takes part.

    Args:
        hops: their names on the command line.
    """
    found = {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}}
    found["postfix"] = _said(tool("postconf", "postfix"), "-d", "-h", "mail_version")
    if "haproxy" in hops:
        found["haproxy"] = _said(tool("haproxy", "haproxy"), "-v")
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
        "architecture": platform.machine(),
        "cpu": cpu[1] if cpu else "unknown",
        "cores": len(os.sched_getaffinity(0)),
    }


def as_data(results: Results, workloads: Sequence[Workload]) -> dict[str, Any]:
    """Return the results for JSON: medians, ratios, and every single figure behind them."""
    rounds, codec = results.rounds, results.codec
    return {
        "idle_memory_mib": results.idle_mib,
        "medians": {
            hop: {
                workload.name: {
                    "mib_per_second" if workload.large else "messages_per_second": _median(of, "rate"),
                    "cpu_seconds_per_gib" if workload.large else "cpu_seconds_per_1000_messages": _median(
                        of, "cpu_seconds"
                    ),
                    "peak_memory_mib": _median(of, "peak_mib"),
                }
                for workload in workloads
                for of in [by_workload[workload.name]]
            }
            for hop, by_workload in rounds.items()
        },
        "ratios_of_rates": {
            f"{ours} / {other}": {workload.name: _ratio(rounds, ours, other, workload) for workload in workloads}
            for ours, other in _pairs(rounds)
        },
        "codec_per_second": {name: median(each[name] for each in codec) for name in CODEC},
        "codec_ratios": {name: _codec_ratio(codec, name) for name in CODEC[1:]},
        "rounds": {
            hop: {
                name: [
                    {field: getattr(figures, field) for field in ("messages", "rate", "cpu_seconds", "peak_mib")}
                    for figures in of
                ]
                for name, of in by_workload.items()
            }
            for hop, by_workload in rounds.items()
        },
        "codec_rounds": codec,
    }


def as_text(results: Results, workloads: Sequence[Workload]) -> str:
    """Return the results as tables in Markdown."""
    rounds, codec = results.rounds, results.codec
    headings = [workload.name for workload in workloads]

    def table(field: str, form: Callable[[float], str]) -> list[list[str]]:
        return [
            [hop, *("" if (value := _median(of[name], field)) is None else form(value) for name in headings)]
            for hop, of in rounds.items()
        ]

    ratios = [
        [f"{ours} / {other}", *(f"{_ratio(rounds, ours, other, workload):.2f}" for workload in workloads)]
        for ours, other in _pairs(rounds)
    ]
    memory = [
        [row[0], f"{idle:.0f}" if (idle := results.idle_mib.get(row[0])) is not None else "", *row[1:]]
        for row in table("peak_mib", "{:.0f}".format)
    ]
    speed = [[name, f"{median(each[name] for each in codec):.0f}"] for name in CODEC]
    for row, ratio in zip(speed, ["", *(f"{_codec_ratio(codec, name):.2f}" for name in CODEC[1:])], strict=True):
        row.append(ratio)
    return "\n".join(
        [
            *_table("messages/s; 25 MiB: MiB/s", headings, table("rate", "{:.0f}".format)),
            *_table("CPU s per 1000; 25 MiB: per GiB", headings, table("cpu_seconds", "{:.3f}".format)),
            *_table("peak memory, MiB", ["idle", *headings], memory),
            *_table("ratio of rates", headings, ratios),
            *_table("tags", ["a second", "ratio"], speed),
        ]
    )


def _table(corner: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return [
        "",
        *(f"| {' | '.join(row)} |" for row in ([corner, *headings], ["---"] * (len(headings) + 1), *rows)),
    ]


def _pairs(rounds: Rounds) -> list[tuple[str, str]]:
    return [(ours, other) for ours in _OURS if ours in rounds for other in rounds if other not in _OURS]


def _median(figures: Sequence[Figures], field: str) -> float | None:
    values = [value for each in figures if (value := getattr(each, field)) is not None]
    return median(values) if values else None


def _ratio(rounds: Rounds, ours: str, other: str, workload: Workload) -> float:
    pairs = zip(rounds[ours][workload.name], rounds[other][workload.name], strict=True)
    return round(median(mine.rate / theirs.rate for mine, theirs in pairs), 3)


def _codec_ratio(codec: Sequence[dict[str, float]], name: str) -> float:
    return round(median(each[name] / each[CODEC[0]] for each in codec), 3)
