"""The fuzzer runs, finds nothing in ten seconds a target, and finds a fault where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from scripts.fuzzing.targets import NAMES

_ROOT: Final = Path(__file__).parents[1]
_FUZZ: Final = _ROOT / "scripts" / "fuzz"
_FUZZING: Final = _ROOT / "scripts" / "fuzzing"

FAULTS: Final[dict[str, tuple[str, str, str]]] = {
    "commands": ("batv/net/server.py", r'_CONTROL = re.compile(rb"[\x00-', r'_CONTROL = re.compile(rb"[\x01-'),
    "data": ("batv/smtp/data.py", r'(b"\r\n.\r", b"\r\n.", ', r'(b"\r\n.\r", '),
    "origin": ("batv/smtp/origin.py", "_MAX_PORT: Final = 65_535", "_MAX_PORT: Final = 65_536"),
    "parameters": ("batv/smtp/extension.py", 'b"REQUIRETLS"', 'b"REQUIRE-TLS"'),
    "path": ("batv/address.py", '_LABEL = rb"(?!-)', '_LABEL = rb"'),
    "proxy_header": ("batv/net/server.py", 'rb"PROXY TCP[46](', 'rb"PROXY TCP4?[46]('),
    "reply": ("batv/smtp/reply.py", "_MAX_LINE_OCTETS: Final = 2048", "_MAX_LINE_OCTETS: Final = 2047"),
    "status_field": (
        "batv/smtp/header.py",
        r'_CONTINUATION = re.compile(rb"(?:\.?[',
        '_CONTINUATION = re.compile(rb"(?:[',
    ),
    "tag": ("batv/tag.py", 'len(rest.rstrip(b"\\\\"))) % 2', 'len(rest.rstrip(b"\\\\"))) % 1'),
    "unstuffing": ("batv/smtp/data.py", r'return octets.replace(b"\r\n.", b"\r\n")', "return octets"),
}
"""For each target a file, what stands there once, and what makes the product wrong in its place."""


def test_the_fuzzer_says_how_it_is_used_wherever_it_is_called_from(tmp_path: Path) -> None:
    """Whoever has a quarter of an hour should not need a quarter of it to find out how."""
    run = subprocess.run([_FUZZ, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "--seconds" in run.stdout


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["--seconds", "0"], ["--seconds", "x"], ["--jobs", "0"], ["--seed", "-1"]]
)
def test_the_fuzzer_refuses_what_it_does_not_know(arguments: list[str]) -> None:
    """A target that is misspelled must not pass for one in which nothing was found."""
    run = subprocess.run([_FUZZ, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert run.stdout == ""


def test_every_target_is_listed_and_begins_with_octets_of_its_own() -> None:
    """A file that nobody calls would look like a check."""
    assert sorted(NAMES) == sorted(path.stem for path in (_FUZZING / "targets").glob("[a-z]*.py"))
    assert sorted(NAMES) == sorted(path.name for path in (_FUZZING / "seeds").iterdir())
    readme = (_FUZZING / "README.md").read_text(encoding="utf-8")
    assert sorted(NAMES) == sorted(re.findall(r"^\| `([a-z_]+)` \|", readme, re.MULTILINE))


@pytest.mark.fuzz
@pytest.mark.parametrize("name", NAMES)
def test_ten_seconds_find_nothing(name: str, tmp_path: Path) -> None:
    """What is found in ten seconds is found by whoever looks."""
    # By chance it might pass here, and fail where somebody else looks; what is new is looked for by scripts/fuzz.
    command = [str(_FUZZ), "--seconds", "10", "--seed", "1", "--folder", str(tmp_path), name]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    executions = re.fullmatch(rf"{name}: ([0-9]+) executions, nothing found\n", run.stdout)
    assert executions is not None, run.stdout
    assert int(executions[1]) > len(list((_FUZZING / "seeds" / name).iterdir()))


@pytest.mark.fuzz
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_is_found_and_what_shows_it_is_kept(name: str, tmp_path: Path) -> None:
    """A check that cannot fail checks nothing."""
    copy, found = tmp_path / "copy", tmp_path / "found"
    for folder in ("batv", "scripts/fuzzing", "tests/support"):
        shutil.copytree(_ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    file, right, wrong = FAULTS[name]
    text = (copy / file).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (copy / file).write_text(text.replace(right, wrong), encoding="utf-8")
    command = [sys.executable, "-m", "scripts.fuzzing", "--seconds", "60", "--seed", "1", "--folder", str(found), name]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "AssertionError" in run.stderr
    (kept,) = (found / "crashes" / name).iterdir()
    assert run.stdout == f"{name}: failed: {kept}\n"
