"""The file of the rollout: what is written is read again, many may change it, damage is an error with a remedy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from batv.day import Day
from batv.errors import ConfigError
from batv.rollout import Evidence, Phase, Progress
from batv.store.rollout import RolloutStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DAY: Final = Day.from_iso("2026-11-23")
STATE: Final = {
    "example.com": Progress(
        Phase.QUARANTINE, DAY, DAY + -20, held=True, evidence=Evidence(1, 2, 3), reason="held by hand"
    ),
    "example.net": Progress(Phase.OBSERVE, DAY),
    "example.org": Progress(Phase.MARK, DAY, probe=1_795_446_149.795, broken=True),
}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """A service that starts again goes on where it was."""
    store = RolloutStore(tmp_path)
    assert store.read() == {}
    assert store.change(lambda _: STATE) == STATE
    assert RolloutStore(tmp_path).read() == STATE


def test_a_file_from_before_there_were_probes_is_read(tmp_path: Path) -> None:
    """An upgrade lets no domain begin anew."""
    store = RolloutStore(tmp_path)
    store.path.write_text(
        '{"version": 1, "domains": {"example.net": {"phase": "enforce", "since": "2026-11-23", "first_signed": null,'
        ' "held": false, "genuine": 0, "unknown": 0, "forged": 0, "reason": "begins"}}}'
    )
    assert store.read() == {"example.net": Progress(Phase.ENFORCE, DAY)}


def test_the_fingerprint_tells_a_change(tmp_path: Path) -> None:
    """A running service has to see what `batv rollout` did."""
    store = RolloutStore(tmp_path)
    before = store.fingerprint()
    store.change(lambda _: STATE)
    after = store.fingerprint()
    assert before != after
    store.change(lambda found: found)
    assert store.fingerprint() == after


def test_nothing_that_several_saw_is_lost(tmp_path: Path) -> None:
    """Workers count each for itself, and write into the same file."""
    store = RolloutStore(tmp_path)
    store.change(lambda _: STATE)

    def count(_: int) -> None:
        def one_more(found: Mapping[str, Progress]) -> dict[str, Progress]:
            progress = found["example.net"]
            return {**found, "example.net": replace(progress, evidence=progress.evidence + Evidence(unknown=1))}

        store.change(one_more)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    assert store.read()["example.net"].evidence == Evidence(unknown=40)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "domains": {}}',
        b'{"version": 1, "domains": {"example.com": {}}}',
        (
            b'{"version": 1, "domains": {"example.com": {"phase": "later", "since": "2026-11-23", "first_signed": null,'
            b' "held": false, "genuine": 0, "unknown": 0, "forged": 0, "reason": ""}}}'
        ),
        (
            b'{"version": 1, "domains": {"example.com": {"phase": "mark", "since": "yesterday", "first_signed": null,'
            b' "held": false, "genuine": 0, "unknown": 0, "forged": 0, "reason": ""}}}'
        ),
        b"\xff",
    ],
)
def test_damage_is_told_and_never_taken_for_a_state(octets: bytes, tmp_path: Path) -> None:
    """A guess could withhold what must not be withheld."""
    store = RolloutStore(tmp_path)
    store.path.write_bytes(octets)
    with pytest.raises(ConfigError, match=r"rollout\.json (is damaged|has version 2)"):
        store.read()
    with pytest.raises(ConfigError):
        store.change(lambda _: STATE)
    assert store.path.read_bytes() == octets
