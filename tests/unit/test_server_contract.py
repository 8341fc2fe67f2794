"""What the listener relies on in aiosmtpd beyond its documentation, held against the installed release."""

from __future__ import annotations

import ast
import inspect
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest
from aiosmtpd.smtp import SMTP

from batv.net.server import PRIVATE_NAMES, ClientConnection

ROOT: Final = Path(__file__).parents[2]


def _attributes(source: str) -> set[str]:
    """Return the private attributes that a source reads, sets or defines."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:1] == "_" != node.name[1:2]:
            found.add(node.name)
    return found


AIOSMTPD: Final = _attributes(inspect.getsource(sys.modules[SMTP.__module__]))
OURS: Final = _attributes(inspect.getsource(ClientConnection))


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_the_installed_release_has_the_private_name(name: str) -> None:
    """A name that is gone would leave a method of ours that nobody calls, or an attribute that nobody reads."""
    assert name in AIOSMTPD


def test_every_private_name_in_use_is_listed() -> None:
    """A name that nobody listed is one that a release could change under us; one that nobody uses misleads."""
    assert set(PRIVATE_NAMES) == OURS & AIOSMTPD


def test_the_installed_release_is_within_the_pin() -> None:
    """The minor version is pinned, since private names may change with the next one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [pin for pin in project["dependencies"] if pin.startswith("aiosmtpd")]
    assert pins == ["aiosmtpd>=1.4.6,<1.5"]
    major, minor, patch, *_ = (int(part) for part in metadata.version("aiosmtpd").split("."))
    assert (major, minor) == (1, 4)
    assert patch >= 6


def test_no_verb_of_aiosmtpd_is_left_as_it_is() -> None:
    """A stock verb that became reachable would parse addresses in its own way and answer with our exceptions."""
    verbs = {name for name in dir(SMTP) if name.startswith("smtp_")}
    assert {name for name in verbs if getattr(ClientConnection, name) is getattr(SMTP, name)} == set()


def test_every_verb_has_its_method() -> None:
    """A verb without a method would be an error of ours, answered with 451 for ever."""
    assert {name for name in ClientConnection._VERBS.values() if not hasattr(ClientConnection, name)} == set()
