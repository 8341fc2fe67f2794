"""The matrices that the documents show are those of runs, made anew here with the same seed.

What each cell ought to hold stands here a second time, in words and by hand: a table that is made anew from a proxy
which judges wrongly does not pass for that.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from batv.corpus.classes import CLASSES
from batv.corpus.replies import AUTOMATIC
from batv.corpus.score import COLUMNS
from tests.corpus.ground import Ground

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from batv.corpus.score import Score

README: Final = Path(__file__).parents[2] / "README.md"
MATRICES: Final = Path(__file__).with_name("README.md")
COUNT: Final = 1000

_LATE: Final = 'on_expired = "quarantine"\n'
_STRONG: Final = '[tags]\nscheme = "strong"\nplacement = "subaddress"\non_too_long = "refuse"\n'

CONFIGURATIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "observe": {"on_forged": "pass"},
    "init": {"on_forged": "mark", "options": _LATE},
    "live": {"on_forged": "discard", "options": _LATE},
    "rescue": {"on_forged": "discard", "options": f"{_LATE}rescue = true\n", "more": "[ledger]\nenabled = true\n"},
    "reject": {"on_forged": "reject"},
    "strong": {"on_forged": "quarantine", "more": _STRONG},
}
"""What an administrator chooses between: `on_forged`, and more lines for each domain and for the file."""

ROWS: Final[Mapping[str, tuple[str, ...]]] = {
    "genuine bounces": tuple(kind for kind in CLASSES if kind.startswith("genuine-")),
    "forged, without a tag": ("forged-untagged", "storm"),
    "forged, with a Message-ID of yours": ("forged-harvested-id",),
    "forged, with a wrong tag": (
        "forged-random-tag", "forged-other-user", "forged-other-domain", "forged-bit-flipped", "forged-revoked-key",
        "forged-unknown-key", "forged-nested-tags", "forged-malformed-tag",
    ),
    "with an expired tag": ("forged-expired", "forged-future-day"),
    "replies to a signed address": tuple(f"automatic-{what}" for what in AUTOMATIC),
    "replies to a plain address": tuple(f"automatic-{what}-plain" for what in AUTOMATIC),
    "mail with a null sender": ("null-sender-mail",),
    "to SRS and other forms": ("unjudged-srs", "unjudged-other-forms"),
    "to addresses too long to sign": ("unjudged-too-long",),
    "to postmaster, to hosted domains": ("unjudged-postmaster", "unjudged-relay-domain"),
    "to domains of others": ("forged-to-others",),
    "call-outs about a user": ("callout-tagged", "callout-plain", "callout-forged"),
    "call-outs about nobody": ("callout-unknown-user",),
    "bounces with a sender": tuple(kind for kind in CLASSES if kind.startswith("sender-")),
    "ordinary mail": ("ordinary", "notice"),
    "to several recipients": ("mixture",),
}  # fmt: skip

_DELIVERED: Final = ("delivered",) * len(CONFIGURATIONS)
_REJECTED: Final = ("rejected",) * len(CONFIGURATIONS)
_FORGED: Final = ("delivered", "marked", "discarded", "discarded", "rejected", "quarantined")

OUGHT: Final[Mapping[str, Sequence[str]]] = {
    "genuine bounces": _DELIVERED,
    "forged, without a tag": _FORGED,
    "forged, with a Message-ID of yours": _FORGED,
    "forged, with a wrong tag": _FORGED,
    "with an expired tag": ("delivered", "quarantined", "quarantined", "quarantined", "rejected", "quarantined"),
    "replies to a signed address": _DELIVERED,
    "replies to a plain address": ("delivered", "marked", "discarded", "delivered", "rejected", "quarantined"),
    "mail with a null sender": _FORGED,
    # One domain leaves some of these forms alone.
    "to SRS and other forms": (
        "delivered", "delivered marked", "delivered discarded", "delivered discarded", "delivered rejected",
        "delivered quarantined",
    ),
    "to addresses too long to sign": (*_DELIVERED[:-1], "quarantined"),
    "to postmaster, to hosted domains": _DELIVERED,
    "to domains of others": _REJECTED,
    "call-outs about a user": ("answered",) * len(CONFIGURATIONS),
    "call-outs about nobody": _REJECTED,
    "bounces with a sender": _DELIVERED,
    "ordinary mail": _DELIVERED,
    # Each is judged by itself. What a domain of others gets is refused, and beside a good one `reject` discards.
    "to several recipients": (
        "delivered rejected", "delivered marked quarantined rejected", "delivered discarded quarantined rejected",
        "delivered discarded quarantined rejected", "delivered discarded rejected", "delivered quarantined rejected",
    ),
}  # fmt: skip
"""What each row ought to meet under each configuration: these outcomes, each of them, and no other."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A site with a corpus for each configuration, all from one seed."""
    ground = Ground(tmp_path_factory.mktemp("site"))
    for name, wanted in CONFIGURATIONS.items():
        ground.generate(name, ground.configure(f"{name}.toml", **wanted), count=COUNT, seed="1")
    return ground


@pytest.fixture(scope="module")
def scores(ground: Ground) -> Mapping[str, Score]:
    """What became of it, over SMTP, at a proxy that runs with the configuration."""
    return {name: ground.score(ground.read(name), ground.folder / f"{name}.toml") for name in CONFIGURATIONS}


def test_every_recipient_meets_what_its_label_says(scores: Mapping[str, Score]) -> None:
    """Labels are made with the messages, and the verifier is not asked."""
    assert [mistake for score in scores.values() for mistake in score.mistakes()] == []
    assert {name: score.genuine_lost for name, score in scores.items()} == dict.fromkeys(CONFIGURATIONS, 0)
    assert {name: score.ordinary_touched for name, score in scores.items()} == dict.fromkeys(CONFIGURATIONS, 0)
    assert [name for name, score in scores.items() if score.forged_delivered] == ["observe"]


def test_every_cell_is_what_its_row_ought_to_get(scores: Mapping[str, Score]) -> None:
    """A table that is made anew from a proxy that judges wrongly must not pass, whatever the labels say."""
    assert sorted(chain.from_iterable(ROWS.values())) == sorted(CLASSES)
    found = {
        row: tuple(" ".join(sorted(_met(score, kinds))) for score in scores.values()) for row, kinds in ROWS.items()
    }
    assert found == OUGHT


def test_all_configurations_meet_the_same_messages(ground: Ground, scores: Mapping[str, Score]) -> None:
    """Else their columns could not be compared. Under the strong scheme the tags are others."""
    first, *others = ([(fate.file, fate.kind) for fate in score.fates] for score in scores.values())
    assert others == [first] * len(others)
    messages = [
        [path.read_bytes() for path in sorted((ground.folder / name / "messages").iterdir())]
        for name in CONFIGURATIONS
        if name != "strong"
    ]
    assert messages == messages[:1] * len(messages)


def test_the_readme_shows_what_is_measured(scores: Mapping[str, Score]) -> None:
    """Numbers that nobody makes anew are a promise that nobody keeps."""
    section = README.read_text(encoding="utf-8").partition("\n## Measured\n")[2].partition("\n## ")[0]
    assert _table("messages", scores, ROWS) in section
    recipients = {len(score.fates) for score in scores.values()}
    assert f"{COUNT} messages to {recipients.pop()} recipients" in section
    assert not recipients


def test_the_whole_matrices_stand_beside_the_tests(scores: Mapping[str, Score]) -> None:
    """Class by class, with the settings of each configuration."""
    text = MATRICES.read_text(encoding="utf-8")
    for name, wanted in CONFIGURATIONS.items():
        lines = [f'on_forged = "{wanted["on_forged"]}"', *wanted.get("options", "").splitlines()]
        lines += wanted.get("more", "").splitlines()
        assert f"| `{name}` | {', '.join(f'`{line}`' for line in lines)} |" in text
    assert _table("class", scores, {kind: (kind,) for kind in CLASSES}) in text


def _met(score: Score, kinds: Iterable[str]) -> Counter[str]:
    """Return how many recipients of these classes met what."""
    found: Counter[str] = Counter()
    for kind in kinds:
        found.update({outcome.value: count for outcome, count in score.matrix[kind].items()})
    return found


def _table(head: str, scores: Mapping[str, Score], rows: Mapping[str, Sequence[str]]) -> str:
    """Return a table with a column for each configuration; a cell without a number is for all recipients of its row."""
    lines = [f"| {head} | recipients | {' | '.join(f'`{name}`' for name in scores)} |"]
    lines.append("|---" * (len(scores) + 2) + "|")
    for row, kinds in rows.items():
        found = [_met(score, kinds) for score in scores.values()]
        lines.append(f"| {row} | {found[0].total()} | {' | '.join(map(_cell, found))} |")
    return "\n".join(lines)


def _cell(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{counts[outcome.value]} {outcome}" for outcome in COLUMNS if counts[outcome.value])
