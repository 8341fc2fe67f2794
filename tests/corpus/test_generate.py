"""`batv corpus generate`: the same seed makes the same corpus, with every class and every dialect in it."""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from email import message_from_bytes, policy
from typing import TYPE_CHECKING, Final

import pytest

from batv.corpus.classes import CLASSES
from batv.corpus.dialects import DIALECTS
from batv.corpus.manifest import Ending
from batv.corpus.notices import NOTICES
from batv.corpus.replies import AUTOMATIC

if TYPE_CHECKING:
    from pathlib import Path

    from tests.corpus.ground import Ground

COUNT: Final = 600


def octets_of(folder: Path) -> dict[str, bytes]:
    """Return what the files of a folder hold."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def generate(ground: Ground, name: str, *arguments: str) -> Path:
    """Make a corpus and return its folder."""
    folder = ground.folder / name
    said = ground("generate", "--out", str(folder), *arguments)
    assert said.status == 0, said.err
    return folder


def test_a_seed_makes_the_same_corpus_twice(ground: Ground) -> None:
    """Two administrators who speak about a score speak about the same messages."""
    first, second, other = (
        octets_of(generate(ground, name, "--count", str(COUNT), "--seed", seed))
        for name, seed in (("first", "7"), ("second", "7"), ("other", "8"))
    )
    assert first == second
    assert first.keys() != other.keys() or first != other


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ten_thousand_messages_come_out_the_same_and_all_meet_what_is_expected(ground: Ground) -> None:
    """The size at which a configuration is judged before it goes live."""
    folder = generate(ground, "first", "--count", "10000")
    assert octets_of(folder) == octets_of(generate(ground, "second", "--count", "10000"))
    found = ground("run", str(folder), "--json")
    assert found.status == 0, found.out[-2000:]
    fields = found.fields
    assert fields["messages"] == 10_000
    assert (fields["genuine_lost"], fields["forged_delivered"], fields["ordinary_touched"]) == (0, 0, 0)
    assert fields["mistakes"] == []
    assert set(fields["matrix"]) == set(CLASSES)


def test_a_corpus_has_every_class_and_every_dialect(ground: Ground) -> None:
    """A class that is named and never made would be believed to be tested."""
    generate(ground, "corpus", "--count", str(COUNT))
    entries = ground.read("corpus").entries
    assert len(entries) == COUNT
    assert {entry.kind for entry in entries} == set(CLASSES)
    assert {entry.dialect for entry in entries} == {each.name for each in DIALECTS} | {*AUTOMATIC, *NOTICES, ""}


def test_a_flipped_bit_stands_in_each_position_of_the_tag(ground: Ground) -> None:
    """A verifier that leaves out a position is found only where that position is changed."""
    generate(ground, "corpus", "--count", "150", *(word for kind in CLASSES if kind != "forged-bit-flipped"
                                                   for word in ("--weight", f"{kind}=0")))  # fmt: skip
    positions = {
        int(found[1])
        for entry in ground.read("corpus").entries
        if (found := re.search(r"of octet ([0-9]+) flipped", entry.recipients[0].why))
    }
    assert positions >= set(range(18))


def test_tags_of_every_day_of_the_lifetime_are_there(ground: Ground) -> None:
    """A bounce may come on any of them."""
    generate(ground, "corpus", "--count", str(COUNT), "--weight", "genuine-each-day=60")
    whys = {entry.recipients[0].why for entry in ground.read("corpus").entries if entry.kind == "genuine-each-day"}
    days = {int(found[1]) for why in whys if (found := re.search(r"signed ([0-9]+) days ago", why))}
    assert days >= set(range(1, 8))
    assert any("today" in why for why in whys)


def test_a_class_that_the_rings_cannot_make_is_left_out_and_named(ground: Ground) -> None:
    """What was not tested must not look as if it had been."""
    (ground.folder / "keys" / "default.ring").unlink()
    said = ground("generate", "--out", str(ground.folder / "corpus"), "--count", "200", "--json")
    assert said.status == 0
    assert set(said.fields["left_out"]) == {"genuine-retiring-key", "forged-revoked-key"}
    assert "forged-revoked-key is left out: no key was revoked" in said.err
    assert ground.read("corpus").about.left_out == said.fields["left_out"]


def test_weights_say_how_often_a_class_comes(ground: Ground) -> None:
    """An administrator who fears storms makes a storm."""
    generate(ground, "corpus", "--count", "200", "--weight", "storm=1000", "--weight", "ordinary=0")
    found = Counter(entry.kind for entry in ground.read("corpus").entries)
    assert found["storm"] > 120
    assert found["ordinary"] == 0
    assert min(found[kind] for kind in CLASSES if kind != "ordinary") == 1


def test_every_message_is_one_that_a_mail_reader_understands(ground: Ground) -> None:
    """A corpus of broken MIME would test nothing but tolerance; unique Message-IDs tell the messages apart."""
    generate(ground, "corpus", "--count", str(COUNT))
    corpus = ground.read("corpus")
    seen = set()
    for entry in corpus.entries:
        if entry.ending is not Ending.MESSAGE:
            continue
        message = message_from_bytes(corpus.message(entry), policy=policy.default)
        assert [part.defects for part in message.walk() if part.defects] == [], entry.file
        assert dict(message.raw_items()).get("From"), entry.file  # raw: the library's parser fails at Courier's
        seen.add(message["Message-ID"])
    assert len(seen) == sum(entry.ending is Ending.MESSAGE for entry in corpus.entries)


def test_a_corpus_is_for_its_owner_only(ground: Ground) -> None:
    """Its addresses hold live tags: whoever reads them can have bounces delivered."""
    folder = generate(ground, "corpus", "--count", "60")
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_manifest_has_a_line_for_each_message(ground: Ground) -> None:
    """Scripts of administrators read it."""
    folder = generate(ground, "corpus", "--count", "80")
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 80
    for line in lines:
        assert list(line) == [
            "file", "class", "dialect", "client", "helo", "reverse_path", "parameters", "ending", "recipients",
            "answers",
        ]  # fmt: skip
        assert line["client"].startswith("127.")
        for recipient in line["recipients"]:
            assert {"forward_path", "parameters", "verdict", "disposition", "outcome", "why"} <= set(recipient)
            assert recipient["why"]
