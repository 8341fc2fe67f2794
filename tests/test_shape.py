"""The shape of the project: what may import what, what stands at the top, what exceptions need a reason."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
PRODUCT: Final = ROOT / "batv"

TOP_LEVEL: Final = {"LICENSE", "README.md", "batv", "keys", "pyproject.toml", "scripts", "tests"}
LEFT_BY_USE: Final = {"batv.toml", "build", "dist", "var"}

NOT_FOR_PURE_MODULES: Final = {
    "aiosmtpd",
    "asyncio",
    "click",
    "datetime",
    "io",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "sqlite3",
    "time",
}

PURE_FILES: Final = sorted(
    path for path in (*PRODUCT.glob("*.py"), *PRODUCT.glob("smtp/**/*.py")) if path.name != "__main__.py"
)


def project() -> dict[str, Any]:
    """Return pyproject.toml as data."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def found_in_tests(pattern: re.Pattern[str]) -> list[str]:
    """Return the place of each line of the tests that a pattern is in, programs that stand in a string included."""
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of every module that a file imports, for type checks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_imports_keep_their_contracts() -> None:
    """A shell that a pure module imports, or a second door to aiosmtpd, ends the design."""
    tool = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([tool, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_contract_of_pure_modules_names_each_of_them() -> None:
    """A pure module that is new must not slip past the contract."""
    contracts = {contract["id"]: contract for contract in project()["tool"]["importlinter"]["contracts"]}
    modules = {f"batv.{path.stem}" for path in PRODUCT.glob("*.py") if not path.stem.startswith("__")}
    assert set(contracts["pure"]["source_modules"]) == modules | {"batv.smtp"}
    assert set(contracts["pure"]["forbidden_modules"]) == NOT_FOR_PURE_MODULES


@pytest.mark.parametrize("path", PURE_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_pure_module_touches_nothing_outside(path: Path) -> None:
    """What has no clock, file or socket gives the same answer to the same question."""
    assert not {name.partition(".")[0] for name in imported(path)} & NOT_FOR_PURE_MODULES


def test_only_two_modules_know_aiosmtpd() -> None:
    """Its private names are pinned by one contract test, which can look at one user only."""
    users = {
        path.relative_to(ROOT).as_posix()
        for path in PRODUCT.rglob("*.py")
        if any(name.partition(".")[0] == "aiosmtpd" for name in imported(path))
    }
    assert users <= {"batv/net/server.py", "batv/demo/next_hop.py"}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt"])
def test_a_lock_file_names_no_address(name: str) -> None:
    """Packages come from wherever the machine is configured to get them, and are known by their hashes."""
    text = (ROOT / "scripts" / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash=sha256:)", text, re.MULTILINE)


def test_tests_run_the_versions_that_users_run() -> None:
    """Both lock files pin the same version of what both hold."""
    runtime, test = (
        dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "scripts" / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("requirements.txt", "requirements-test.txt")
    )
    assert runtime
    assert runtime.items() <= test.items()


def test_nothing_else_stands_at_the_top() -> None:
    """Whoever opens the project sees what it is at one look."""
    entries = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert entries - LEFT_BY_USE <= TOP_LEVEL


def test_every_exception_to_a_rule_carries_its_reason() -> None:
    """An exception without a reason cannot be judged later."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("\n[tool.ruff.lint]\n")[2].partition("\n[tool.ruff.lint.pydocstyle]\n")[0]
    exceptions = re.findall(r"^    \"[A-Z]+[0-9]*\",.*$", section, re.MULTILINE)
    lint = project()["tool"]["ruff"]["lint"]
    assert len(exceptions) == len(lint["ignore"]) + sum(map(len, lint["per-file-ignores"].values()))
    assert [line for line in exceptions if not re.search(r"# \w+(\W+\w+){2,}", line)] == []


def test_an_exception_on_a_line_names_its_rule_and_reason() -> None:
    """As above, for the exceptions that stand in the code: the reason follows two hyphens."""
    marker = re.compile(r"[#] noqa(?!: [A-Z]+[0-9]+(?:, [A-Z]+[0-9]+)* -- \w)")
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("batv", "tests", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if marker.search(line)
    ]
    assert bare == []


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    """A machine that lacks something fails the test, or leaves its mark out by name: see conftest.py."""
    assert found_in_tests(re.compile(r"(?:[.]|\bimport )(?:skip|xfail|importorskip)|\bSkipTest\b")) == []


def test_no_test_sleeps() -> None:
    """It would be too short on a slow machine and too long on every other; `asyncio.sleep(0)` lets other tasks run."""
    assert found_in_tests(re.compile(r"\bsleep[(](?!(?<=asyncio[.]sleep[(])0[)])")) == []


def test_the_version_is_static() -> None:
    """The project installs from an export without git."""
    settings = project()["project"]
    assert "dynamic" not in settings
    assert settings["version"] == metadata.version("batv")


def test_the_licence_is_there_in_full() -> None:
    """What pyproject.toml names is what LICENSE holds."""
    assert project()["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
