"""`batv rollout`: what it shows, what it moves, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batv.rollout import Evidence, Phase, Progress, probed
from batv.store.rollout import RolloutStore
from tests.support.command import TODAY, Command

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A site whose domain is switched on step by step, and whose service has run."""
    command = Command(tmp_path, capsys)
    text = command.config.read_text().replace('[domains."example.com"]', '[domains."example.com"]\nrollout = "auto"')
    command.config.write_text(text)
    assert 'rollout = "auto"' in text
    assert command("key", "new").status == 0
    (tmp_path / "var").mkdir()
    store(command).change(
        lambda _: {"example.com": Progress(Phase.MARK, TODAY + -3, TODAY + -10, evidence=Evidence(0, 12, 40))}
    )
    return command


def store(batv: Command) -> RolloutStore:
    """Return the file of the site."""
    return RolloutStore(batv.folder / "var")


def test_the_status_shows_where_a_domain_stands_and_why(batv: Command) -> None:
    """Phase, since when, what comes next and when, and what was counted."""
    (row,) = batv("rollout", "status", "--json").fields["domains"]
    assert row["phase"] == "mark"
    assert row["next"] == "quarantine"
    assert row["next_from"] == (TODAY + 4).iso()
    assert (row["genuine"], row["unknown"], row["forged"]) == (0, 12, 40)
    shown = batv("rollout", "status").out
    assert f"quarantine from {(TODAY + 4).iso()}" in shown


def test_the_status_says_that_a_broken_loop_keeps_a_domain_where_it_is(batv: Command) -> None:
    """Days do not help then: the loop has to be mended."""
    store(batv).change(lambda found: {"example.com": probed(found["example.com"], TODAY, 1.0, "none came home")})
    store(batv).change(lambda found: {"example.com": found["example.com"].moved(Phase.ENFORCE, TODAY, "by hand")})
    store(batv).change(lambda found: {"example.com": probed(found["example.com"], TODAY, 2.0, "none came home")})
    (row,) = batv("rollout", "status", "--json").fields["domains"]
    assert (row["phase"], row["broken"], row["next_from"]) == ("mark", True, None)
    assert row["reason"] == "a probe found the loop broken: none came home"
    assert "when a probe finds the loop whole" in batv("rollout", "status").out


def test_a_domain_whose_service_has_not_run_looks_on(batv: Command) -> None:
    """There is no file yet, and that is no error."""
    store(batv).path.unlink()
    assert batv("rollout", "status", "--json").fields["domains"][0]["phase"] == "observe"


@pytest.mark.parametrize(
    ("words", "phase", "held"),
    [
        (["advance"], Phase.QUARANTINE, False),
        (["advance", "EXAMPLE.com"], Phase.QUARANTINE, False),
        (["back", "example.com"], Phase.OBSERVE, False),
        (["hold"], Phase.MARK, True),
        (["hold", "--release"], Phase.MARK, False),
    ],
)
def test_the_administrator_moves_it(
    batv: Command,
    words: list[str],
    phase: Phase,
    held: bool,  # noqa: FBT001 -- a column of the table
) -> None:
    """One step forward, one back, or none until further notice."""
    answer = batv("rollout", *words)
    assert answer.status == 0
    assert answer.out.startswith(f"example.com: {phase.value}")
    found = store(batv).read()["example.com"]
    assert (found.phase, found.held) == (phase, held)
    assert found.first_signed == TODAY + -10


def test_a_move_begins_to_count_anew(batv: Command) -> None:
    """What came in before is no evidence of the new phase."""
    batv("rollout", "back")
    found = store(batv).read()["example.com"]
    assert (found.since, found.evidence, found.reason) == (TODAY, Evidence(), "moved by hand")


@pytest.mark.parametrize(("word", "phase"), [("back", Phase.OBSERVE), ("advance", Phase.ENFORCE)])
def test_at_either_end_a_domain_stays_as_it_is_and_the_command_says_so(batv: Command, word: str, phase: Phase) -> None:
    """What was counted in that phase is not thrown away for a step that there is not."""
    at_the_end = Progress(phase, TODAY + -3, TODAY + -10, evidence=Evidence(0, 12, 40))
    store(batv).change(lambda _: {"example.com": at_the_end})
    assert batv("rollout", word).out == f"example.com: {phase.value}, as before\n"
    assert store(batv).read()["example.com"] == at_the_end


def test_a_domain_that_is_not_switched_on_so_is_refused(batv: Command) -> None:
    """A word on it would change nothing."""
    answer = batv("rollout", "advance", "example.net")
    assert answer.status == 78
    assert "example.net" in answer.err


def test_without_such_domains_there_is_nothing_to_move(batv: Command) -> None:
    """And the status says that all is in force."""
    batv.config.write_text(batv.config.read_text().replace('rollout = "auto"', ""))
    assert "in force" in batv("rollout", "status").err
    assert batv("rollout", "hold").status == 78
