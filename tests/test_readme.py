"""The README is run: every command in it works as written, and its lists are those of the code."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from textwrap import dedent
from typing import Final

import click
import pytest

from batv import errors
from batv.cli import batv as command_line
from batv.config import DomainSettings, Settings
from batv.probe import METRICS, Loop
from batv.store.journal import JOURNAL_FIELDS
from batv.verdict import STATUS_BY_VERDICT, Disposition, Verdict
from tests.support.relay import merged

_ROOT: Final = Path(__file__).resolve().parent.parent
_README: Final = (_ROOT / "README.md").read_text(encoding="utf-8")
_BLOCKS: Final = re.findall(r"^```sh\n(.*?)^```$", _README, re.MULTILINE | re.DOTALL)
_SETTINGS: Final = re.findall(
    r"^( *)```toml\n(.*?)^ *```$",
    "\n".join((_ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "scripts/mta/README.md")),
    re.MULTILINE | re.DOTALL,
)
_UNITS: Final = _ROOT / "scripts/deploy"
_MOVED: Final = re.compile(r"(?:/opt/batv|/usr/local/bin|/etc/(?:batv|systemd|logrotate\.d)|/var/lib/batv)\b")
"""What commands of the README write to; in tests it lies below another root."""


def _section(heading: str) -> str:
    return _README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


class _Host:
    """A host that an administrator sets up by the README, below a folder in the place of the root.

    Users and services are the system's own, so the two commands for these do nothing here.
    """

    def __init__(self, root: Path, clone: Path) -> None:
        self.root: Final = root
        self._folder = clone
        self._pwd: Final = root / "pwd"
        stubs = root / "stubs"
        for folder in (stubs, *(root / name for name in ("usr/local/bin", "etc/systemd/system", "etc/logrotate.d"))):
            folder.mkdir(parents=True)
        for name in ("useradd", "systemctl"):
            (stubs / name).write_text("#!/bin/sh\n")
            (stubs / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATV_", "PYTHON"))}
        self._environment: Final = kept | {"PATH": f"{stubs}:{root / 'usr/local/bin'}:{os.environ['PATH']}"}

    def run(self, block: str) -> str:
        """Run a block where the one before it has ended, and return what it prints."""
        script = self._here(block).replace("chown -R batv ", f"chown -R {os.geteuid()} ")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{script}\npwd > {self._pwd}"],  # noqa: S607 -- whichever shell there is
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        self._folder = Path(self._pwd.read_text().strip())
        return done.stdout

    def serve(self) -> None:
        """Run what systemd would run, until it is ready, and stop it as systemd would."""
        settings = self.root / "etc/batv/batv.toml"
        # The ports of the file may be taken where tests run; everything else stays as the README has it.
        settings.write_text(re.sub(r"127\.0\.0\.1:1002[57]", "127.0.0.1:0", settings.read_text()))
        unit = (self.root / "etc/systemd/system/batv.service").read_text()
        command = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)[0]
        with subprocess.Popen(
            self._here(command).split(), cwd="/", env=self._environment, stderr=subprocess.PIPE, text=True
        ) as service:
            assert service.stderr is not None
            seen = []
            for line in service.stderr:
                seen.append(line)
                if "ready" in line:
                    service.send_signal(signal.SIGTERM)
            assert service.wait() == 0, "".join(seen)

    def _here(self, text: str) -> str:
        return _MOVED.sub(lambda match: f"{self.root}{match[0]}", text)


@pytest.mark.timeout(600)
def test_every_command_of_the_readme_works_as_written(tmp_path: Path) -> None:
    """An administrator types what the README says, in its order, in a clone in which he took the tour before."""
    clone = tmp_path / "clone"
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
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_ROOT / name, clone / name)
    tour = '[domains."tour.example"]\n'
    (clone / "batv.toml").write_text(tour)
    host = _Host(tmp_path / "root", clone)
    for block in _BLOCKS:
        host.run(block)
        if "systemctl enable --now batv" in block:
            host.serve()
    assert len(_BLOCKS) >= 7
    assert json.loads(host.run("batv key list --json"))
    assert "example.com" in host.run("batv --config /etc/batv/batv.toml config show")
    assert (host.root / "var/lib/batv/journal.jsonl").exists()
    assert (clone / "batv.toml").read_text() == tour


@pytest.mark.parametrize("block", [dedent(indent + text) for indent, text in _SETTINGS])
def test_the_settings_that_are_shown_are_taken(block: str) -> None:
    """An administrator adds them to the file that `batv init` wrote."""
    begun = {
        "outbound": {"listen": ["127.0.0.1:10025"], "next_hop": "127.0.0.1:10026"},
        "inbound": {"listen": ["127.0.0.1:10027"], "next_hop": "127.0.0.1:10028"},
        "domains": {"example.com": {}},
    }
    Settings.model_validate(merged(begun, tomllib.loads(block)))


@pytest.mark.parametrize("name", ["batv.service", "batv-probe.service"])
def test_a_unit_runs_as_the_user_and_in_the_folders_of_the_readme(name: str) -> None:
    """A probe that could not read what the service writes would find nothing."""
    # Options may stand more than once, which configparser does not like.
    parsed = configparser.RawConfigParser(strict=False)
    parsed.read_string((_UNITS / name).read_text())
    assert parsed["Service"]["User"] == "batv"
    assert parsed["Service"]["StateDirectory"] == parsed["Service"]["ConfigurationDirectory"] == "batv"


def test_the_units_are_some_that_systemd_takes(tmp_path: Path) -> None:
    """A misspelt option of hardening would be passed over with no more than a warning."""
    names = sorted(path.name for path in _UNITS.glob("batv*.*"))
    assert names == ["batv-probe.service", "batv-probe.timer", "batv.service"]
    # Where systemd is not installed, nothing here would run the units either.
    if shutil.which("systemd-analyze"):
        for name in names:
            text = (_UNITS / name).read_text()
            unit = tmp_path / name
            unit.write_text(text.replace("/opt/batv/bin/batv", str(Path(sys.executable).with_name("batv"))))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in names)],  # noqa: S607 -- the system's own
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_the_journal_that_is_rotated_is_the_service_s() -> None:
    """A path that differs would let the journal grow until the disk is full."""
    rotated = re.findall(r"^(/\S+) \{$", (_ROOT / "scripts/deploy/logrotate").read_text(), re.MULTILINE)
    assert rotated == ["/var/lib/batv/journal.jsonl"]
    assert rotated[0] in _README


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


def test_every_disposition_of_the_journal_is_named_with_the_verdicts() -> None:
    """An administrator meets these words in the journal, beside the verdict."""
    section = _section("Verdicts and dispositions")
    for disposition in Disposition:
        assert f"`{disposition}`" in section, disposition


def test_every_value_of_the_status_field_is_listed() -> None:
    """Filters of users look for them."""
    for status in STATUS_BY_VERDICT.values():
        assert f"`{status.decode()}`" in _section("Verdicts and dispositions"), status


def test_the_fields_of_the_journal_are_those_of_the_table() -> None:
    """Programs read the journal by them."""
    table = _README.partition("| field | is |\n")[2].partition("\n\n")[0]
    named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(JOURNAL_FIELDS)


def test_the_metrics_are_those_of_the_table() -> None:
    """Alarms are made of them."""
    table = _README.partition("| metric | is |\n")[2].partition("\n\n")[0]
    named = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE))
    assert list(named) == list(METRICS)
    for name, about in named.items():
        assert METRICS[name].removesuffix(".").lower().startswith(about.lower()), name


def test_every_result_of_a_probe_is_explained() -> None:
    """An administrator meets these words, and scripts act on the exit status beside them."""
    table = _README.partition("| result | means | exit status |\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [loop.value for loop in Loop]


def test_every_exit_status_is_listed() -> None:
    """Scripts act on them: those of errors, of a fault in batv, of SIGINT."""
    statuses = {getattr(errors, name).exit_status for name in errors.__all__} | {0, 2, 70, 130}
    listed = {int(status) for status in re.findall(r"^\| ([0-9]+) \|", _section("Exit codes"), re.MULTILINE)}
    assert statuses == listed


def test_every_link_leads_somewhere() -> None:
    """To a file of the project, and to a heading in it."""
    for document in (_ROOT / "README.md", _ROOT / "scripts/mta/README.md"):
        for target in re.findall(r"\]\(([^)#]*(?:#[^)]*)?)\)", document.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            file = document.parent / name if name else document
            assert file.is_file(), target
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, target


def test_every_command_named_in_the_readme_exists() -> None:
    """`batv x y` in the text is a command and its subcommand."""
    context = click.Context(command_line)
    for words in re.findall(r"`batv ([a-z]+(?: [a-z]+)?)", _README):
        first, _, second = words.partition(" ")
        command = command_line.get_command(context, first)
        assert command is not None, words
        if second and isinstance(command, click.Group):
            assert command.get_command(context, second) is not None, words
