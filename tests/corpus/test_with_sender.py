"""Bounces and replies that have a sender: what the rule finds of them, and what else it takes for one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from batv.bounce import Clue, clue_in
from batv.corpus.classes import CLASSES
from batv.corpus.manifest import Outcome
from batv.smtp.header import field_value, header_end
from batv.verdict import Verdict

if TYPE_CHECKING:
    from batv.corpus.score import Fate
    from tests.corpus.ground import Ground

README: Final = Path(__file__).parents[2] / "README.md"
_KINDS: Final = tuple(name for name, kind in CLASSES.items() if kind.group.name == "bounces with a sender")
_PLAIN: Final = tuple(name for name in _KINDS if name.endswith("-plain"))


def _section() -> str:
    text = README.read_text(encoding="utf-8").partition("\n### Judge bounces that have a sender\n")[2]
    return " ".join(text.partition("\n#")[0].split())


@pytest.mark.parametrize("on_bounce_with_sender", ["discard", "quarantine", "reject", "mark", "pass"])
@pytest.mark.parametrize("rescue", ["false", "true"])
def test_bounces_with_a_sender_meet_what_the_domain_wants_and_nothing_else_does(
    ground: Ground, on_bounce_with_sender: str, rescue: str
) -> None:
    """Replies are marked at most, or rescued; good tags pass; notices, newsletters and lists are ordinary mail."""
    name = f"{on_bounce_with_sender}-{rescue}"
    options = f'on_bounce_with_sender = "{on_bounce_with_sender}"\nrescue = {rescue}\n'
    config = ground.configure(f"{name}.toml", "discard", "[ledger]\nenabled = true\n", options)
    weights = [option for kind in (*_KINDS, "notice") for option in ("--weight", f"{kind}=8")]
    folder = str(ground.folder / "c")
    said = ground("generate", "--out", folder, "--count", "400", "--seed", name, *weights, config=config)
    assert said.status == 0, said.err
    score = ground.score(ground.read("c"), config)
    assert score.mistakes() == []
    assert score.ordinary_touched == 0
    judged = {fate.recipient.verdict for fate in score.fates if fate.kind in _KINDS}
    rescued = {Verdict.RESCUED} if rescue == "true" and on_bounce_with_sender != "pass" else set()
    # A list's notice to a user of ours is no reply, and not judged.
    assert judged == {Verdict.VALID, Verdict.UNTAGGED, Verdict.NOT_A_BOUNCE} | rescued


def test_the_readme_says_what_the_rule_finds_in_the_generated_corpus(ground: Ground) -> None:
    """Recall and false positives, by the corpus of the matrix."""
    options = 'on_bounce_with_sender = "mark"\n'
    config = ground.configure("mark.toml", "discard", options=options)
    folder = str(ground.folder / "c")
    assert ground("generate", "--out", folder, "--count", "1000", "--seed", "1", config=config).status == 0
    found = ground.score(ground.read("c"), config)
    assert found.right

    def marked(fates: list[Fate]) -> str:
        return f"{sum(fate.outcome is Outcome.MARKED for fate in fates)} of {len(fates)}"

    plain = [fate for fate in found.fates if fate.kind in _PLAIN]
    bounces = [fate for fate in plain if fate.kind != "sender-reply-plain"]
    replies = [fate for fate in plain if fate.kind == "sender-reply-plain"]
    ordinary = [fate for fate in found.fates if CLASSES[fate.kind].group.name == "ordinary mail"]
    section = _section()
    assert f"{marked(bounces)} bounces with a sender" in section
    assert f"{marked(replies)} automatic replies" in section
    assert f"{marked(ordinary)} recipients of ordinary mail" in section


@pytest.mark.realcorpus
def test_the_readme_says_what_the_rule_finds_in_real_bounces(real_corpora: Path) -> None:
    """By the header alone, as if each had a sender that tells nothing."""
    clues: dict[Clue, int] = {}
    lists = missed = 0
    for path in sorted(real_corpora.rglob("*.eml")):
        octets = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if octets.startswith(b"From "):
            octets = octets.partition(b"\r\n")[2]
        if field_value(b"\n" + octets[: header_end(octets)].lower(), b"\nlist-id"):
            lists += 1
            assert clue_in(octets) is None
            continue
        clue = clue_in(octets)
        if clue is None:
            missed += 1
        else:
            clues[clue] = clues.get(clue, 0) + 1
    total = lists + missed + sum(clues.values())
    section = _section()
    assert f"Of {total} real messages" in section
    assert f"{lists} came by way of a mailing list" in section
    assert f"{sum(clues.values())} of the other {total - lists}" in section
    replies = {clue: number for clue, number in clues.items() if not clue.bounce}
    assert f"{clues[Clue.AUTHOR]} by From" in section
    assert f"{clues[Clue.REPORT]} as reports on delivery" in section
    assert f"{clues[Clue.FAILED_RECIPIENTS]} by X-Failed-Recipients" in section
    assert f"{sum(replies.values())} as receipts and automatic replies" in section
    assert sum(replies.values()) + sum(
        clues[clue] for clue in (Clue.AUTHOR, Clue.REPORT, Clue.FAILED_RECIPIENTS)
    ) == sum(clues.values())
