"""The matrix in the README is that of a run, made anew here with the same seed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.corpus.classes import CLASSES
from batv.corpus.manifest import Outcome

if TYPE_CHECKING:
    from tests.corpus.ground import Ground

README: Final = Path(__file__).parents[2] / "README.md"
COLUMNS: Final = (Outcome.DELIVERED, Outcome.DISCARDED, Outcome.REJECTED, Outcome.ANSWERED)
COUNT: Final = 1000


def test_the_readme_shows_what_is_measured(ground: Ground) -> None:
    """Numbers that nobody makes anew are a promise that nobody keeps."""
    folder = ground.folder / "corpus"
    assert ground("generate", "--out", str(folder), "--count", str(COUNT), "--seed", "1").status == 0
    found = ground.score(ground.read("corpus"))
    assert found.right
    rows: dict[str, Counter[str]] = {}
    for kind, counts in found.matrix.items():
        row = rows.setdefault(CLASSES[kind].group.name, Counter())
        row.update({outcome.value: count for outcome, count in counts.items()})
        row["wrong"] += found.wrong_by_kind[kind]
    head = ("messages", *(outcome.value for outcome in COLUMNS), "wrong")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {name} | {' | '.join(str(row[column]) for column in head[1:])} |" for name, row in rows.items()]
    section = README.read_text(encoding="utf-8").partition("\n## Measured\n")[2].partition("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if re.match(r"\|", line))
    assert table == "\n".join(lines)
    assert sum(row[outcome.value] for row in rows.values() for outcome in COLUMNS) == len(found.fates)
    assert f"{COUNT} messages to {len(found.fates)} recipients" in section
