"""The plot of a results file: bars, as SVG that is read on light ground and on dark."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

from scripts.bench.floors import PROXIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["HOP_TITLES", "plot"]

HOP_TITLES: Final = {
    "direct": "no relay",
    "haproxy": "HAProxy, TCP",
    "aiosmtpd": "aiosmtpd Proxy",
    "postfix-filter": "Postfix, filter",
    "postfix": "Postfix relaying",
    "exim": "Exim signing",
    "inbound": "batv inbound",
    "outbound": "batv outbound",
}
"""What the plot calls each hop that it shows, from top to bottom."""


@dataclass(frozen=True, slots=True)
class _Panel:
    """The bars of one figure.

    Attributes:
        title: what is shown, with its unit.
        load: what was sent.
        better: `more` or `less`.
        form: format of a value.
        of: returns the figure of a hop from a results file; None where it was not measured.
    """

    title: str
    load: str
    better: str
    form: str
    of: Callable[[Mapping[str, Any], str], float | None]


def _of_median(workload: str, field: str) -> Callable[[Mapping[str, Any], str], float | None]:
    return lambda data, hop: data["medians"].get(hop, {}).get(workload, {}).get(field)


_PANELS: Final = (
    _Panel(
        "messages a second",
        "2 KiB, 50 sessions, many messages each",
        "more",
        ",.0f",
        _of_median("many-50", "messages_per_second"),
    ),
    _Panel(
        "messages a second",
        "2 KiB, 50 sessions, one message each",
        "more",
        ",.0f",
        _of_median("one-50", "messages_per_second"),
    ),
    _Panel("MiB a second", "25 MiB, 4 sessions", "more", ",.0f", _of_median("large-4", "mib_per_second")),
    _Panel(
        "CPU seconds for 1000 messages",
        "2 KiB, 50 sessions, many messages each",
        "less",
        ",.2f",
        _of_median("many-50", "cpu_seconds_per_1000_messages"),
    ),
    _Panel(
        "added milliseconds a message, median",
        "2 KiB, 1 session",
        "less",
        ",.2f",
        lambda data, hop: (
            None if hop == "direct" else data["added_latency_ms"].get(hop, {}).get("latency-1", {}).get("p50")
        ),
    ),
    _Panel(
        "peak memory, MiB",
        "the most of all loads",
        "less",
        ",.0f",
        lambda data, hop: data["memory_mib"].get(hop, {}).get("peak"),
    ),
)

_COLUMNS: Final = 2
_WIDTH: Final = 880
_MARGIN: Final = 20
_TOP: Final = 56
_PANEL_WIDTH: Final = (_WIDTH - (_COLUMNS + 1) * _MARGIN) // _COLUMNS
_HEAD: Final = 42
_ROW: Final = 20
_BAR: Final = 13
_NAMES: Final = 112
_VALUES: Final = 56
_BARS: Final = _PANEL_WIDTH - _NAMES - _VALUES
_PANEL_HEIGHT: Final = _HEAD + len(HOP_TITLES) * _ROW + 22
_BOTTOM: Final = 48
_LOAD_OF_A_QUIET_MACHINE: Final = 0.5

_STYLE: Final = """\
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.head { font-weight: 600; font-size: 14px }
.title { font-weight: 600 }
.small { font-size: 11px; fill: #59636e }
.value { font-variant-numeric: tabular-nums }
.ground { fill: #ffffff }
.axis { stroke: #d1d9e0 }
.other { fill: #9aa4af }
.ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.small { fill: #9198a1 }
.ground { fill: #0d1117 }
.axis { stroke: #3d444d }
.other { fill: #656c76 }
.ours { fill: #4493f8 }
}
"""


def plot(data: Mapping[str, Any]) -> str:
    """Return the plot of the content of a results file, as SVG."""
    rows = -(-len(_PANELS) // _COLUMNS)
    height = _TOP + rows * _PANEL_HEIGHT + _BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">',
        "<title>The proxies beside other relays: rates, CPU time, latency and memory</title>",
        f"<style>\n{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
        _text(_MARGIN, 24, "smtp-source → relay → smtp-sink, all on one machine", "head"),
        _text(_MARGIN, 42, _when(data), "small"),
    ]
    for number, panel in enumerate(_PANELS):
        left = _MARGIN + number % _COLUMNS * (_PANEL_WIDTH + _MARGIN)
        top = _TOP + number // _COLUMNS * _PANEL_HEIGHT
        lines += [f'<g transform="translate({left} {top})">', *_bars(panel, data), "</g>"]
    versions = data["versions"]
    shown = [f"{name} {version}" for name, version in versions.items() if name != "batv"]
    lines += [
        _text(_MARGIN, height - 30, f"batv {versions['batv']} beside: {', '.join(shown)}", "small"),
        _text(
            _MARGIN,
            height - 14,
            "HAProxy only passes octets on. Postfix relaying and Exim queue on disk. The load has the same cores.",
            "small",
        ),
        "</svg>",
    ]
    return "\n".join([*lines, ""])


def _when(data: Mapping[str, Any]) -> str:
    machine, rounds = data["machine"], data["rounds_measured"]
    what = "one round" if rounds == 1 else f"medians of {rounds} rounds"
    text = f"{data['date']}, {what}; {machine['cpu']}, {machine['cores']} cores, {machine['system']}"
    return text if data["load_before"] < _LOAD_OF_A_QUIET_MACHINE else f"{text}; the machine was busy: a rough picture"


def _bars(panel: _Panel, data: Mapping[str, Any]) -> list[str]:
    """Return the elements of a panel, whose upper left corner is the origin."""
    values = {hop: panel.of(data, hop) for hop in HOP_TITLES}
    if values["direct"] is None:  # what there is not costs nothing
        del values["direct"]
    most = max((value for value in values.values() if value is not None), default=0.0)
    bottom = _HEAD + len(values) * _ROW
    lines = [
        _text(0, 16, panel.title, "title"),
        _text(0, 32, f"{panel.load}; {panel.better} is better", "small"),
        f'<line class="axis" x1="{_NAMES}" y1="{_HEAD}" x2="{_NAMES}" y2="{bottom}"/>',
    ]
    for number, (hop, value) in enumerate(values.items()):
        top = _HEAD + number * _ROW + (_ROW - _BAR) // 2
        lines.append(_text(_NAMES - 6, top + 11, HOP_TITLES[hop], anchor="end"))
        length = 0.0 if value is None or most <= 0 else max(0.0, value) / most * _BARS
        if length:
            kind = "ours" if hop in PROXIES else "other"
            lines.append(f'<rect class="{kind}" x="{_NAMES}" y="{top}" width="{length:.1f}" height="{_BAR}"/>')
        shown = "not measured" if value is None else format(value, panel.form)
        lines.append(_text(_NAMES + length + 5, top + 11, shown, "value"))
    return lines


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
