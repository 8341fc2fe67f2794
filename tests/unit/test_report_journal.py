"""Following the journal: what is written from now on is read, once, whatever happens to the file meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batv.errors import IoError
from batv.report.journal import JournalFollower

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The journal, with a record from before."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"n": 0}\n')
    return path


def write(path: Path, text: str) -> None:
    """Write to the end of a file, which is made if it is not there."""
    with path.open("a") as file:
        file.write(text)


def test_only_what_is_new_is_read_and_once(journal: Path) -> None:
    """What was there before belongs to other mail."""
    with JournalFollower(journal) as follower:
        assert follower.records() == []
        write(journal, '{"n": 1}\n{"n": 2}\n')
        assert follower.records() == [{"n": 1}, {"n": 2}]
        assert follower.records() == []


def test_half_a_record_is_waited_for_and_what_is_none_is_passed_over(journal: Path) -> None:
    """A process may be looked at in the middle of its writing; a full disk leaves half a line."""
    with JournalFollower(journal) as follower:
        write(journal, '{"n"')
        assert follower.records() == []
        write(journal, ': 1}\n{"half\n[]\n{"n": 2}\n')
        assert follower.records() == [{"n": 1}, {"n": 2}]


def test_a_rotation_loses_nothing(journal: Path) -> None:
    """The file is renamed, written to until everybody has heard of it, and packed away; a new one is begun."""
    with JournalFollower(journal) as follower:
        old = journal.rename(f"{journal}.1")
        write(old, '{"n": 1}\n')
        assert follower.records() == [{"n": 1}]
        write(journal, '{"n": 2}\n')
        write(old, '{"n": 3}\n')
        assert follower.records() == [{"n": 3}, {"n": 2}]
        old.unlink()
        write(journal, '{"n": 4}\n')
        assert follower.records() == [{"n": 4}]


def test_a_journal_that_is_not_there_yet_is_read_from_its_beginning(tmp_path: Path) -> None:
    """The first mail of a site may be the one that is waited for."""
    path = tmp_path / "journal.jsonl"
    with JournalFollower(path) as follower:
        assert follower.records() == []
        write(path, '{"n": 1}\n')
        assert follower.records() == [{"n": 1}]


def test_a_journal_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Nobody waits an hour for what he could never see."""
    (tmp_path / "file").touch()
    with pytest.raises(IoError, match="run this as a user who may"):
        JournalFollower(tmp_path / "file" / "journal.jsonl")
