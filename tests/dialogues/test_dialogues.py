"""Every dialogue in the folders beside this file, on every event loop that the product can run on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.support.dialogue import DialogueError, parse, play
from tests.support.relay import LOOPS

HERE: Final = Path(__file__).parent
DIALOGUES: Final = sorted(HERE.glob("*/*.dialogue"))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: path.relative_to(HERE).with_suffix("").as_posix())
def test_dialogue(path: Path, loop: str, tmp_path: Path) -> None:
    """What is written is what passes on both sides of the proxy, and nothing else."""
    name = path.relative_to(HERE).as_posix()
    play(parse(path.read_text(encoding="utf-8"), name), tmp_path, LOOPS[loop])


def test_every_rule_is_written_once() -> None:
    """Two dialogues of one sentence would hide that one of them is about something else."""
    titles = [path.read_text(encoding="utf-8").partition("\n")[0] for path in DIALOGUES]
    assert sorted(titles) == sorted(set(titles))


PLAIN = """\
# outbound: a line
C: MAIL FROM:<ann@peer.example>
N: MAIL FROM:<ann@peer.example>
n: 250 2.1.0 Ok
C< 250 2.1.0 Ok
"""


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        ("N: MAIL FROM:<ann@peer.example>", "N: MAIL FROM:<ann@other.example>", "expected"),
        ("C< 250 2.1.0 Ok", "C< 250 2.1.0 OK", "expected"),
        ("C< 250 2.1.0 Ok\n", "", "nothing more for the client"),
        ("C< 250 2.1.0 Ok", "C< 250 2.1.0 Ok\nC: RSET", "nothing more"),
        ("C< 250 2.1.0 Ok", "C< 250 2.1.0 Ok\nJ: <joe@example.com> signed rewrite 250", "no record"),
        ("C< 250 2.1.0 Ok", "C< 250 2.1.0 Ok\nA: 127.0.0.1 client.example", "no transaction"),
        ("C< 250 2.1.0 Ok", "C< 250 2.1.0 Ok\nL: something", "none"),
    ],
    ids=[
        "another-path",
        "another-reply",
        "a-reply-too-many",
        "a-command-too-many",
        "no-record",
        "no-client",
        "no-complaint",
    ],
)
def test_a_dialogue_that_goes_otherwise_fails(line: str, instead: str, message: str, tmp_path: Path) -> None:
    """A runner that lets things pass would let faults pass."""
    with pytest.raises(DialogueError, match=message):
        play(parse(PLAIN.replace(line, instead), "plain"), tmp_path, LOOPS["asyncio"])


@pytest.mark.parametrize("text", ["", "C: NOOP\n", "# outbound: x\nX: y\n", "# outbound: x\n@ smtp.x\n"])
def test_a_file_that_is_no_dialogue_fails(text: str) -> None:
    """A misspelt step must not be passed over."""
    with pytest.raises(DialogueError):
        parse(text, "none")
