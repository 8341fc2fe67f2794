"""What the tests may count on, and which of them a machine may leave out.

Nothing is left out in silence: a test whose needs are not met fails, unless `BATV_TEST_WITHOUT` names its mark (marks
with spaces between), or it reads the real bounces and they are not beside the checkout. The last lines of a run say
what was left out. Where `CI` is `true`, nothing may be.

Some tests have more cases than a usual run has time for, such as every error at every system call. They take a sample
of them, always the same one; with `--long` they take them all.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).parents[1]
"""The checkout."""

_MAY_BE_LEFT_OUT: Final = frozenset({"browser", "dns", "fuzz", "long", "mta", "root", "strace"})

_PLACES: Final = os.pathsep.join(
    (os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", str(ROOT / ".cache" / "exim")),
)
"""Where mail servers are: Debian keeps them off the PATH of users, and Exim is unpacked beside the system."""

_MAIL_SERVERS: Final = ("postfix", "exim")

_Case = TypeVar("_Case")


class Sample(Protocol):
    """Takes a sample of cases."""

    def __call__(self, cases: Sequence[_Case], every: int) -> Sequence[_Case]:
        """Return one of so many cases; with `--long` all of them."""


def _corpora() -> Path:
    return Path(os.environ.get("BATV_CORPORA", ROOT.parent / "shared" / "corpora" / "real"))


def _in_ci() -> bool:
    return os.environ.get("CI") == "true"


def _without() -> dict[str, str]:
    """Return the marks that are left out, each with the reason."""
    named = os.environ.get("BATV_TEST_WITHOUT", "").split()
    if wrong := sorted(set(named) - _MAY_BE_LEFT_OUT):
        message = f"BATV_TEST_WITHOUT names {' '.join(wrong)}: it may name {' '.join(sorted(_MAY_BE_LEFT_OUT))}"
        raise pytest.UsageError(message)
    if named and _in_ci():
        raise pytest.UsageError("BATV_TEST_WITHOUT is set, but CI leaves nothing out: install what the tests need")
    reasons = dict.fromkeys(named, "BATV_TEST_WITHOUT says so")
    if not _corpora().is_dir() and not _in_ci():
        reasons["realcorpus"] = f"there is no {_corpora()}"
    return reasons


def _lacks(item: pytest.Item) -> str | None:
    """Return what the test needs and this machine lacks, or None."""
    if (mark := item.get_closest_marker("mta")) is not None:
        missing = [name for name in mark.args or _MAIL_SERVERS if shutil.which(name, path=_PLACES) is None]
        if missing:
            return f"there is no {' and no '.join(missing)}: run scripts/test, or set BATV_TEST_WITHOUT=mta"
    if item.get_closest_marker("dns") is not None and shutil.which("dnsmasq", path=_PLACES) is None:
        return "there is no dnsmasq: run scripts/test, or set BATV_TEST_WITHOUT=dns"
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        return "only root can give files to another user: run scripts/test as root, or set BATV_TEST_WITHOUT=root"
    if item.get_closest_marker("strace") is not None and shutil.which("strace") is None:
        return "there is no strace: run scripts/test, or set BATV_TEST_WITHOUT=strace"
    if item.get_closest_marker("fuzz") is not None and find_spec("atheris") is None:
        return "there is no atheris, which is for Linux on x86-64: run scripts/test, or set BATV_TEST_WITHOUT=fuzz"
    if item.get_closest_marker("realcorpus") is not None and not _corpora().is_dir():
        return f"there is no {_corpora()}: put the real bounces there, or say with BATV_CORPORA where they are"
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for a run that may take its time."""
    parser.addoption("--long", action="store_true", help="take every case where a usual run takes a sample of them")


def pytest_configure() -> None:
    """Refuse a wrong BATV_TEST_WITHOUT before any test runs."""
    _without()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out the tests that are left out on this machine."""
    without = _without()
    left_out = [item for item in items if any(item.get_closest_marker(mark) for mark in without)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose needs are not met: a skipped one would look like a good one."""
    if (lack := _lacks(item)) is not None:
        pytest.fail(lack, pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out, and why."""
    for mark, reason in sorted(_without().items()):
        terminalreporter.write_line(f"left out: tests marked '{mark}': {reason}", yellow=True)


@pytest.fixture(scope="session")
def real_corpora() -> Path:
    """The folder of real bounces; for tests marked `realcorpus`."""
    return _corpora()


@pytest.fixture(scope="session")
def sample(pytestconfig: pytest.Config) -> Sample:
    """Takes every so many of the cases of a test; all of them with `--long`."""
    takes_all = bool(pytestconfig.getoption("--long"))

    def sampled(cases: Sequence[_Case], every: int) -> Sequence[_Case]:
        return cases if takes_all else cases[::every]

    return sampled
