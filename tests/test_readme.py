"""The README is run: every command in it works as written, and its lists are those of the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import click
import pytest

from batv import errors
from batv.cli import batv as command_line
from batv.config import DomainSettings
from batv.verdict import Verdict

_ROOT: Final = Path(__file__).resolve().parent.parent
_README: Final = (_ROOT / "README.md").read_text(encoding="utf-8")
_BLOCKS: Final = re.findall(r"^```sh\n(.*?)^```$", _README, re.MULTILINE | re.DOTALL)
_PREFIX: Final = "/opt/batv"


def _environment(prefix: Path) -> dict[str, str]:
    path = f"{prefix / 'bin'}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATV_", "PYTHON"))}
    return kept | {"PATH": path}


def _run(block: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],  # noqa: S607 -- whichever shell the administrator has
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def _serve(block: str, folder: Path, environment: dict[str, str]) -> None:
    settings = folder / "batv.toml"
    # The ports of the file may be taken where tests run; everything else stays as `batv init` wrote it.
    settings.write_text(re.sub(r"127\.0\.0\.1:1002[57]", "127.0.0.1:0", settings.read_text()))
    with subprocess.Popen(block.split(), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        seen = []
        for line in service.stderr:
            seen.append(line)
            if "ready" in line:
                service.send_signal(signal.SIGTERM)
        assert service.wait() == 0, "".join(seen)


@pytest.mark.timeout(600)
def test_every_command_of_the_readme_works_as_written(tmp_path: Path) -> None:
    """An administrator types what the README says, in its order, in a folder of his own."""
    prefix, source, site = tmp_path / "opt", tmp_path / "source", tmp_path / "site"
    site.mkdir()
    # What a user installs from is what git has, not what lies about in this folder.
    files = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607 -- the git that made this checkout
        cwd=_ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (_ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_ROOT / name, source / name)
    environment = _environment(prefix)
    done = []
    for block in _BLOCKS:
        if _PREFIX in block:
            _run(block.replace(_PREFIX, str(prefix)), source, environment)
        elif block.startswith("batv serve"):
            _serve(block, site, environment)
        else:
            _run(block, site, environment)
        done.append(block)
    assert len(done) >= 6
    keys = json.loads(
        subprocess.run(
            [prefix / "bin" / "batv", "key", "list", "--json"], cwd=site, capture_output=True, check=True
        ).stdout
    )
    assert len(keys) >= 1


def test_the_table_of_options_is_that_of_the_settings() -> None:
    """An option that is not documented, or documented wrongly, is one nobody can rely on."""
    done = subprocess.run([sys.executable, _ROOT / "scripts" / "options", "--check"], check=False)
    assert done.returncode == 0


def test_every_verdict_is_explained() -> None:
    """An administrator meets these words in the journal."""
    for verdict in Verdict:
        assert f"`{verdict}`" in _README, verdict


def test_every_disposition_of_forged_bounces_is_explained() -> None:
    """The words that `on_forged` takes."""
    words = str(DomainSettings.model_fields["on_forged"].description).partition(": ")[2]
    for word in re.split(r", | or ", words):
        assert f"| `{word}` |" in _README, word


def test_every_exit_status_of_an_error_is_listed() -> None:
    """Scripts act on them."""
    statuses = {getattr(errors, name).exit_status for name in errors.__all__}
    listed = {int(status) for status in re.findall(r"^\| ([0-9]+) \|", _README, re.MULTILINE)}
    assert statuses <= listed


def test_every_command_named_in_the_readme_exists() -> None:
    """`batv x y` in the text is a command and its subcommand."""
    context = click.Context(command_line)
    for words in re.findall(r"`batv ([a-z]+(?: [a-z]+)?)", _README):
        first, _, second = words.partition(" ")
        command = command_line.get_command(context, first)
        assert command is not None, words
        if second and isinstance(command, click.Group):
            assert command.get_command(context, second) is not None, words
