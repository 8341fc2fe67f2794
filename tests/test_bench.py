"""The bench can be started, and its README says what it measures; what it finds is not for tests."""

from __future__ import annotations

import json
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final

import pytest

from scripts.bench.codec import CODEC
from scripts.bench.findings import Results
from scripts.bench.floors import PROXIES, floors
from scripts.bench.hops import HOPS
from scripts.bench.load import IDLE, TAGS, WORKLOADS, Figures, takes
from scripts.bench.plot import HOP_TITLES, plot
from scripts.bench.report import as_data, as_text

_ROOT: Final = Path(__file__).parents[1]
_BENCH: Final = _ROOT / "scripts/bench/run"
_FOLDER: Final = _ROOT / "scripts/bench"
_RESULTS: Final = sorted((_FOLDER / "results").glob("*.json"))


def _listed(heading: str) -> list[str]:
    """Return the names in the first column of the table below a heading of the bench's README."""
    section = (
        (_FOLDER / "README.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    )
    cells = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    return [name for cell in cells[2:] for name in cell.replace("`", "").split(", ")]


def _results(rate_of_ours: float = 100.0) -> Results:
    """Return three rounds in which each hop was measured with each workload that it takes."""
    rounds = {
        hop: {
            workload.name: [
                Figures(100, 1.0, number * (rate_of_ours if hop in PROXIES else 100.0), 0.5, 30.0, 1.0, 2.0)
                for number in (1, 2, 3)
            ]
            for workload in WORKLOADS
            if takes(hop, workload.name)
        }
        for hop in HOPS
    }
    idle = dict.fromkeys(HOPS, 20.0)
    connections = {hop: [5.0, 6.0, 7.0] for hop in HOPS if takes(hop, IDLE)}
    return Results(idle, rounds, connections, [dict.fromkeys(CODEC, 1000.0)] * 3)


def test_the_bench_says_how_it_is_used_wherever_it_is_called_from(tmp_path: Path) -> None:
    """A bench that does not start any more is noticed when its figures are wanted, which is too late."""
    run = subprocess.run([_BENCH, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "--rounds" in run.stdout


@pytest.mark.parametrize(("option", "what"), [("--hops", "hop"), ("--workloads", "workload")])
def test_the_bench_names_what_it_does_not_know(tmp_path: Path, option: str, what: str) -> None:
    """A slip in a name must not give a table that lacks what was asked for."""
    run = subprocess.run(
        [_BENCH, option, "haprox"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 2
    assert f"no such {what}: haprox" in run.stderr


@pytest.mark.mta("postfix", "exim")
def test_the_bench_measures_every_hop_and_keeps_what_it_found(tmp_path: Path) -> None:
    """A hop that no longer starts, or no longer signs, would be found out in the middle of a long run."""
    hops = [hop for hop in HOPS if hop not in {"haproxy", "outbound-10000"}]  # HAProxy is not among the tests' needs
    arguments = ["--rounds", "1", "--seconds", "0.02", "--workloads", "many-10,latency-1", "--hops", ",".join(hops)]
    out = tmp_path / "found.json"
    run = subprocess.run([_BENCH, *arguments, "--out", out], capture_output=True, text=True, check=False, timeout=100)
    assert run.returncode == 0, run.stderr
    medians = json.loads(out.read_text(encoding="utf-8"))["medians"]
    assert list(medians) == hops
    for workloads in medians.values():
        assert workloads["many-10"]["messages_per_second"] > 0
        assert 0 < workloads["latency-1"]["p50_ms"] <= workloads["latency-1"]["p99_ms"]
    assert (tmp_path / "plot.svg").exists()


def test_the_readme_of_the_bench_lists_the_hops_the_workloads_and_the_figures() -> None:
    """Who reads a table looks up there what it means."""
    assert _listed("Hops") == list(HOPS)
    assert _listed("Workloads") == [*(workload.name for workload in WORKLOADS), IDLE, TAGS]
    corners = re.findall(r"^\| (.+?) \|.*\n\| ---", as_text(_results()), re.MULTILINE)
    assert len(corners) == 10
    figures = _listed("Figures")
    for corner in corners:
        assert any(corner.startswith(figure) for figure in figures), corner


def test_the_bench_says_of_each_floor_whether_it_was_reached() -> None:
    """A floor that fell must not be overlooked among the figures."""
    at_par = {floor.what: floor.reached for floor in floors(_results())}
    assert at_par["rate, many-50: outbound / haproxy"] is True
    assert at_par["rate, many-50: outbound / postfix"] is False
    sevenfold = {floor.what: floor.reached for floor in floors(_results(700.0))}
    assert all(sevenfold.values())
    assert sevenfold.keys() == at_par.keys()


def test_the_bench_compares_what_was_measured_in_the_same_round() -> None:
    """Rounds in which the machine was slow for everybody must not count for or against a hop."""
    results = _results()
    slow, fast = (Figures(1, 1.0, rate, 0.1, None) for rate in (50.0, 500.0))
    results.rounds["outbound"]["many-50"] = [slow, fast, fast]
    results.rounds["haproxy"]["many-50"] = [slow, fast, fast]
    assert results.ratio("outbound", "haproxy", "many-50") == 1.0


def test_the_bench_leaves_open_what_it_did_not_measure() -> None:
    """A first look at one hop gives its figures, and neither an error nor a floor reached by nothing."""
    results = Results({}, {"outbound": {"many-1": [Figures(1, 1.0, 1.0, 0.1, 30.0)]}}, {}, [])
    assert {floor.reached for floor in floors(results) if "memory" not in floor.what} == {None}
    assert "not measured" in as_text(results)


def test_the_plot_shows_each_hop_with_its_figures_as_well_formed_svg() -> None:
    """A reader without colours, or with a program that reads it aloud, gets every figure as text."""
    head = {
        "date": "2026-03-10",
        "rounds_measured": 3,
        "load_before": 0.1,
        "machine": {"cpu": "A <fast> CPU & more", "cores": 2, "system": "Debian"},
        "versions": {"batv": "0.1.0", "haproxy": "2.6"},
    }
    drawn = ET.fromstring(plot(head | as_data(_results(12_345.0))))  # noqa: S314 -- our own
    texts = [text for element in drawn.iter() if (text := element.text)]
    assert set(HOP_TITLES.values()) <= set(texts)
    assert texts.count("24,690") == 2 * 3
    assert set(HOP_TITLES) == set(HOPS) - {"outbound-10000", "outbound-ledger"}


@pytest.mark.parametrize("path", _RESULTS, ids=[path.name for path in _RESULTS])
def test_results_that_are_kept_name_the_machine_the_versions_and_every_floor(path: Path) -> None:
    """Figures are worth something only with what they were measured on."""
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["date"] == path.stem
    assert {"cpu", "cores", "system"} <= data["machine"].keys()
    assert {"batv", "postfix", "haproxy", "exim", "aiosmtpd", "uvloop", "python"} <= data["versions"].keys()
    assert [floor["what"] for floor in data["floors"]] == [floor.what for floor in floors(_results())]


def test_the_readme_shows_the_plot_of_the_newest_results() -> None:
    """Figures in a README that nobody measured any more would be a claim."""
    assert (_FOLDER / "results/plot.svg").read_text(encoding="utf-8") == plot(
        json.loads(_RESULTS[-1].read_text(encoding="utf-8"))
    )
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    assert "(scripts/bench/results/plot.svg)" in readme
    assert "(scripts/bench/README.md)" in readme
