"""Whatever goes wrong ends as one line that says what to do, and as an exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import pytest

from batv.cli import Site, run
from batv.cli import batv as command_line
from tests.support.command import TODAY, Command, child_environment, process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `batv` on a site with one key."""
    command = Command(tmp_path, capsys)
    assert command("key", "new").status == 0
    return command


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something that users do.

    Attributes:
        name: what it is.
        arguments: the command.
        status: exit status.
        line: what the line must hold.
        before: what was done to the site before.
    """

    name: str
    arguments: tuple[str, ...]
    status: int
    line: str
    before: Callable[[Command], object] = lambda _: None


def _ring(batv: Command) -> Path:
    return batv.keys / "default.ring"


def _add(batv: Command, text: str) -> None:
    batv.config.write_text(batv.config.read_text() + text)


def _fifo(batv: Command) -> None:
    _ring(batv).unlink()
    os.mkfifo(_ring(batv))


def _folder(batv: Command) -> None:
    batv.config.unlink()
    batv.config.mkdir()


def _linked(batv: Command) -> None:
    _ring(batv).rename(batv.folder / "elsewhere")
    _ring(batv).symlink_to(batv.folder / "elsewhere")


SIGN = ("sign", "joe@example.com")

MISTAKES = (
    Mistake("no such configuration", SIGN, 78, "make one with 'batv init", lambda b: b.config.unlink()),
    Mistake("broken TOML", SIGN, 78, "mend the TOML syntax", lambda b: b.config.write_text("[keys\n")),
    Mistake("settings that are not UTF-8", SIGN, 78, "write it as UTF-8", lambda b: b.config.write_bytes(b"# \xff")),
    Mistake("unknown option", SIGN, 78, "no such option", lambda b: _add(b, "[keys]\ncolour = 1\n")),
    Mistake("folder as configuration", SIGN, 74, "--config FILE", _folder),
    Mistake("huge configuration", SIGN, 78, "--config FILE", lambda b: os.truncate(b.config, 2 << 20)),
    Mistake("no address", ("sign",), 2, "missing argument 'ADDRESS': see 'batv sign --help'"),
    Mistake("bad address", ("sign", "joe"), 65, "'joe' is no mail address: give it as local@domain"),
    Mistake("address with a newline", ("verify", "joe\n@example.com"), 65, r"'joe\n@example.com' is no mail address"),
    Mistake("bad day", (*SIGN, "--day", "2026-02-30"), 65, "write it as YYYY-MM-DD"),
    Mistake("unknown command", ("sing",), 2, "no such command 'sing'"),
    Mistake("no command", (), 2, "missing command: see 'batv --help'"),
    Mistake("no command of the group", ("key",), 2, "missing command: see 'batv key --help'"),
    Mistake("no report", ("report",), 2, "missing command: see 'batv report --help'"),
    Mistake("no command of a rollout", ("rollout",), 2, "missing command: see 'batv rollout --help'"),
    Mistake("no command of a corpus", ("corpus",), 2, "missing command: see 'batv corpus --help'"),
    Mistake("unknown option of a command", ("key", "list", "--colour"), 2, "see 'batv key list --help'"),
    Mistake("number out of range", ("key", "retire", "10"), 2, "see 'batv key retire --help'"),
    Mistake("lifetime out of range", ("key", "new", "--lifetime", "366"), 2, "see 'batv key new --help'"),
    Mistake("no such key", ("key", "activate", "5"), 1, "there is no key 5 in the default ring: see 'batv key list'"),
    Mistake("a key that signs already", ("key", "activate", "0"), 1, "key 0 signs already since 2026-11-23"),
    Mistake("a key that is needed", ("key", "prune", "--number", "0"), 1, "retire it first"),
    Mistake("no domain", SIGN, 78, "domains: there is none", lambda b: b.config.write_text("[keys]\n")),
    Mistake("no number", ("key", "revoke"), 2, "which key? Give its number, as in 'batv key revoke 0': see 'batv key"),
    Mistake("no number for Exim", ("key", "export", "--exim"), 2, "as in 'batv key export 1 --exim --out exim.secret'"),
    Mistake("export to nowhere", ("key", "export", "0"), 2, "say --out FILE"),
    Mistake("export of a secret as JSON", ("key", "export", "0", "--out", "-", "--json"), 2, "exclude each other"),
    Mistake(
        "import of no file", ("key", "import", "--number", "1", "--secret-file", "/no"), 74, "there is no file /no"
    ),
    Mistake("no ring", ("key", "list"), 74, "make one with 'batv key new'", lambda b: _ring(b).unlink()),
    Mistake("no ring to sign with", SIGN, 1, "make one with 'batv key new'", lambda b: _ring(b).unlink()),
    Mistake("ring cut short", SIGN, 65, "restore it from a copy", lambda b: os.truncate(_ring(b), 100)),
    Mistake("empty ring", SIGN, 65, "is empty: restore it from a copy", lambda b: os.truncate(_ring(b), 0)),
    Mistake("huge ring", SIGN, 77, "longer than 65536 octets", lambda b: os.truncate(_ring(b), 1 << 30)),
    Mistake("ring that others read", SIGN, 77, "run chmod 600", lambda b: _ring(b).chmod(0o644)),
    Mistake("folder that others write", SIGN, 77, "run chmod 700", lambda b: b.keys.chmod(0o777)),
    Mistake("FIFO as ring", SIGN, 77, "is no regular file", _fifo),
    Mistake("link as ring", SIGN, 77, "is a symbolic link", _linked),
    Mistake("no master key", ("key", "seal"), 78, "set keys.master_key_file"),
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: str(mistake.name))
def test_a_mistake_ends_as_one_line_that_says_what_to_do(batv: Command, mistake: Mistake) -> None:
    """No traceback, nothing on standard output, and a status that scripts can tell apart."""
    mistake.before(batv)
    answer = batv(*mistake.arguments)
    assert answer.status == mistake.status
    assert answer.out == ""
    assert answer.err.startswith("batv: ")
    assert answer.err.count("\n") == 1
    assert mistake.line in answer.err


def test_without_any_configuration_the_line_names_the_places(tmp_path: Path) -> None:
    """A new user reads this line first."""
    answer = process("sign", "joe@example.com", folder=tmp_path)
    assert (answer.status, answer.out) == (78, "")
    assert answer.err == (
        "batv: there is no configuration file: looked for batv.toml and /etc/batv/batv.toml:"
        " make one with 'batv init --domain DOMAIN', or name one with --config FILE\n"
    )


def test_the_configuration_file_is_looked_for_in_order(batv: Command, tmp_path: Path) -> None:
    """Option before environment before this folder."""
    other = tmp_path / "other.toml"
    other.write_text('[domains."other.example"]\n')
    wrong = {"BATV_CONFIG": str(tmp_path / "wrong.toml")}
    assert process(*SIGN, folder=batv.folder).status == 0
    assert process("sign", "joe@other.example", folder=batv.folder, environment={"BATV_CONFIG": str(other)}).status == 0
    assert "wrong.toml" in process(*SIGN, folder=batv.folder, environment=wrong).err
    named = ("--config", str(batv.config))
    assert process(*named, *SIGN, folder=tmp_path, environment=wrong).status == 0


def test_a_fault_of_ours_shows_neither_a_traceback_nor_its_text(
    batv: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text could quote a secret; the place is enough to mend it."""

    def broken() -> None:
        raise RuntimeError("canary of the unit tests")

    del batv
    status = run(["sign", "joe@example.com"], _Broken(broken))
    said = capsys.readouterr()
    assert (status, said.out) == (70, "")
    line = (
        r"batv: internal fault: RuntimeError in \S*test_cli_errors line \d+, called from batv\.cli\.?\S* line \d+: .*\n"
    )
    assert re.fullmatch(line, said.err)
    assert said.err.count("\n") == 1
    assert "canary" not in said.err


@pytest.mark.parametrize("error", [KeyboardInterrupt, click.Abort])
def test_an_interrupted_command_says_nothing(error: type[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever pressed the keys knows what happened."""

    def interrupted() -> None:
        raise error

    assert run(["sign", "joe@example.com"], _Broken(interrupted)) == 130
    assert "batv:" not in capsys.readouterr().err


class _Broken(Site):
    """A site whose settings end in an exception."""

    def __init__(self, broken: Callable[[], None]) -> None:
        super().__init__(today=lambda: TODAY)
        self._broken = broken

    @property
    def config_path(self) -> str:
        """End in the exception."""
        self._broken()
        return ""


def test_a_reader_that_goes_away_is_no_error(batv: Command) -> None:
    """`batv key list | head -1` must not end in a complaint."""
    script = "import sys; sys.stdin.readline(); from batv.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, "--config", str(batv.config), "key", "list"],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process_:
        assert process_.stdin is not None
        assert process_.stdout is not None
        assert process_.stderr is not None
        process_.stdout.close()
        process_.stdin.write(b"\n")
        process_.stdin.close()
        assert process_.stderr.read() == b""


def test_help_names_every_command_without_importing_any(tmp_path: Path) -> None:
    """A command whose own imports fail must not take the help of the others with it."""
    answer = process("--help", folder=tmp_path)
    assert answer.status == 0
    for name in ("init", "serve", "sign", "verify", "strip", "explain", "key", "config", "corpus", "demo"):
        assert f"\n  {name} " in answer.out
    script = "import sys; from batv.cli import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stderr.split())
    assert not loaded & {"rich", "pydantic", "asyncio", "batv.config", "batv.cli.keys", "batv.cli.address"}


def _commands(group: click.Group, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [words]
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        below = (*words, name)
        found += _commands(command, below) if isinstance(command, click.Group) else [below]
    return found


@pytest.mark.parametrize("words", _commands(command_line), ids=" ".join)
def test_every_command_that_help_lists_has_help_of_its_own(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A command that is listed but is not there, or cannot be imported, would be a broken promise."""
    answer = process(*words, "--help", folder=tmp_path)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: {' '.join(('batv', *words))} ")


def test_a_key_command_without_a_table_does_not_import_rich(batv: Command) -> None:
    """Rich takes longer to import than the command to run."""
    script = "import sys; from batv.cli import run; run(sys.argv[1:]); sys.exit('rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, "--config", str(batv.config), "key", "list", "--json"],
        env=child_environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
