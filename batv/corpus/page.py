"""The score as a standalone HTML page: nothing is loaded from anywhere, nothing in it is run."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from batv.corpus.classes import CLASSES
from batv.corpus.score import COLUMNS
from batv.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batv.corpus.manifest import Outcome
    from batv.corpus.score import Score

__all__ = ["page"]

_STYLE: Final = """\
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c2024;
  background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } caption { text-align: left; color: #60646c; padding-bottom: .4rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #e0e1e6; text-align: right; vertical-align: top; }
th:first-child, td:first-child, .mistakes td, .mistakes th { text-align: left; }
thead th { position: sticky; top: 0; background: #f9f9fb; }
tr.group th { text-align: left; padding-top: .9rem; font-weight: 600; }
td.zero { color: #b9bbc6; } td.wrong { background: #ffe0e0; color: #8e1a1a; font-weight: 600; }
.verdict { padding: .6rem 1rem; border-radius: .4rem; font-weight: 600; }
.good { background: #e3f4e6; color: #17562a; } .bad { background: #ffe0e0; color: #8e1a1a; }
code { font-size: .9em; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { color: #edeef0; background: #111113; } th, td { border-color: #363a3f; } thead th { background: #18191b; }
  td.wrong, .bad { background: #5c1f22; color: #ffd1d1; } .good { background: #1c3d26; color: #c8f0d0; }
}
"""
_LISTED: Final = 500
"""Mistakes that are listed; a page with a hundred thousand lines helps nobody."""


def page(score: Score, title: str, left_out: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        score: what to show.
        title: what was replayed.
        left_out: classes that the corpus does not have, and why.
    """
    wrong = score.wrong_by_kind
    shown = [outcome for outcome in COLUMNS if any(counts[outcome] for counts in score.matrix.values())]
    verdict = (
        "Every message met what its manifest expects."
        if score.right
        else f"{len(score.wrong) + len(score.strays)} of {counted(len(score.fates), 'recipient')} met something else."
    )
    sums = (
        f"{counted(score.messages, 'message')} to {counted(len(score.fates), 'recipient')} in {score.seconds:.1f} s."
        f" Genuine bounces lost: {score.genuine_lost}. Forged ones delivered: {score.forged_delivered}."
        f" Ordinary mail touched: {score.ordinary_touched}."
    )
    parts = [
        (
            "<!DOCTYPE html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
            "<meta name=viewport content='width=device-width'>\n"
            f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        ),
        f"<p class='verdict {'good' if score.right else 'bad'}'>{escape(verdict)}</p>\n<p>{escape(sums)}</p>\n",
        "<table class=matrix>\n<caption>Recipients by class and by what became of them</caption>\n<thead>",
        _row("th", ["class", *(outcome.value for outcome in shown), "wrong"]),
        "</thead>\n<tbody>\n",
        *_matrix(score, shown, wrong),
        "</tbody>\n</table>\n",
    ]
    if not score.right:
        parts += _mistakes(score)
    if left_out:
        parts.append("<h2>Left out</h2>\n<ul>\n")
        parts += [f"<li><code>{escape(kind)}</code>: {escape(why)}</li>\n" for kind, why in left_out.items()]
        parts.append("</ul>\n")
    parts.append("</body>\n</html>\n")
    return "".join(parts)


def _matrix(score: Score, shown: list[Outcome], wrong: Mapping[str, int]) -> Iterable[str]:
    group = ""
    for kind, counts in score.matrix.items():
        here = CLASSES[kind].group if kind in CLASSES else None
        if here is not None and here.name != group:
            group = here.name
            yield (
                f"<tr class=group><th colspan={len(shown) + 2} scope=rowgroup>{escape(group)}:"
                f" {escape(here.question)}</th></tr>\n"
            )
        cells = [f"<td class='{'zero' if not counts[outcome] else ''}'>{counts[outcome]}</td>" for outcome in shown]
        number = wrong.get(kind, 0)
        cells.append(f"<td class='{'wrong' if number else 'zero'}'>{number}</td>")
        yield f"<tr><td>{escape(kind)}</td>{''.join(cells)}</tr>\n"


def _mistakes(score: Score) -> Iterable[str]:
    mistakes = score.mistakes()
    yield "<h2>Mistakes</h2>\n"
    if len(mistakes) > _LISTED:
        yield f"<p>The first {_LISTED} of {len(mistakes)}.</p>\n"
    yield "<table class=mistakes>\n<thead>"
    yield _row("th", ["message", "class", "recipient", "expected", "happened", "fault", "reason of the proxy", "label"])
    yield "</thead>\n<tbody>\n"
    for each in mistakes[:_LISTED]:
        cells = (each.file, each.kind, each.recipient, each.expected, each.happened, each.faults, each.reason, each.why)
        yield "<tr>" + "".join(f"<td><code>{escape(cell)}</code></td>" for cell in cells) + "</tr>\n"
    yield "</tbody>\n</table>\n"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag} scope=col>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
