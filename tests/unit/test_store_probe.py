"""The file of probes: what is written is read again, probes keep their distance, damage is an error with a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from batv.errors import ConfigError, TryAgainError
from batv.probe import Loop, Outcome, Probes
from batv.store.probe import LEAST_SECONDS, ProbeStore

if TYPE_CHECKING:
    from pathlib import Path

NOW: Final = 1_795_446_149.795
WORKED: Final = Outcome(Loop.WORKS, "the bounce came home", "probe+00@example.com", NOW + 4, 3.25)
BROKEN: Final = Outcome(Loop.BROKEN, "bounce: none came home", "probe+01@example.com", NOW + 90_000)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """The service and `batv doctor` read what the command wrote; the last time that all was well is kept."""
    store = ProbeStore(tmp_path)
    assert store.read() == Probes()
    store.begin(NOW)
    assert ProbeStore(tmp_path).read() == Probes(NOW)
    assert store.end(WORKED) == ProbeStore(tmp_path).read() == Probes(NOW, WORKED, WORKED.ended)
    assert store.end(BROKEN) == ProbeStore(tmp_path).read() == Probes(NOW, BROKEN, WORKED.ended)


def test_the_fingerprint_tells_a_change(tmp_path: Path) -> None:
    """A running service has to see that a probe has ended."""
    store = ProbeStore(tmp_path)
    before = store.fingerprint()
    store.end(WORKED)
    assert store.fingerprint() != before


def test_probes_keep_their_distance(tmp_path: Path) -> None:
    """Another site makes a bounce for each. A clock that was set back does not keep them off for longer."""
    store = ProbeStore(tmp_path)
    store.begin(NOW)
    with pytest.raises(TryAgainError, match=r"a probe began 590 s ago: run the next one in 10 s"):
        store.begin(NOW + LEAST_SECONDS - 10)
    store.begin(NOW + LEAST_SECONDS)
    store.begin(NOW - 86_400)


@pytest.mark.parametrize(
    "octets",
    [
        b"{",
        b"[]",
        b'{"version": 2, "began": 0, "outcome": null, "worked": null}',
        b'{"version": 1, "began": "?", "outcome": null, "worked": null}',
        b'{"version": 1, "began": 0, "outcome": {}, "worked": null}',
        b'{"version": 1, "began": 0, "outcome": {"loop": "perhaps"}, "worked": null}',
        b'{"version": 1, "began": NaN, "outcome": null, "worked": null}',
        b'{"version": 1, "began": 0, "outcome": null, "worked": "-inf"}',
        *(
            b'{"version": 1, "began": 0, "worked": null, "outcome": {"loop": "broken", "reason": "", "sender": "",'
            b' "ended": %b, "bounce_seconds": %b}}' % times
            for times in ((b'"nan"', b"null"), (b"Infinity", b"null"), (b"1", b'"inf"'))
        ),
    ],
)
def test_damage_is_told_and_never_taken_for_an_outcome(octets: bytes, tmp_path: Path) -> None:
    """A guess could withhold what must not be withheld."""
    store = ProbeStore(tmp_path)
    store.path.write_bytes(octets)
    with pytest.raises(ConfigError, match=r"probe\.json (is damaged|has version 2)"):
        store.read()
