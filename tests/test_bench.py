"""The bench can be started; what it finds is not for tests."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

_BENCH: Final = Path(__file__).parents[1] / "scripts/bench/run"


def test_the_bench_says_how_it_is_used_wherever_it_is_called_from(tmp_path: Path) -> None:
    """A bench that does not start any more is noticed when its figures are wanted, which is too late."""
    run = subprocess.run([_BENCH, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "--rounds" in run.stdout


def test_the_bench_names_a_hop_that_it_does_not_know(tmp_path: Path) -> None:
    """A slip in a name must not give a table that lacks what was asked for."""
    run = subprocess.run(
        [_BENCH, "--hops", "direct,haprox"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 2
    assert "no such hop: haprox" in run.stderr
