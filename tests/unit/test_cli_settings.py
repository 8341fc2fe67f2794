"""`batv init` and `batv config`: the configuration file."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from batv.cli import Site, run
from batv.config import parse
from tests.support.command import TODAY, Answer, Command, process

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `batv` on a site."""
    return Command(tmp_path, capsys)


def _init(batv: Command, *arguments: str) -> Answer:
    """Run `batv init`, which asks for no configuration file."""
    batv.capture.readouterr()
    status = run(["init", *arguments], Site(today=lambda: TODAY))
    said = batv.capture.readouterr()
    return Answer(status, said.out, said.err)


def test_init_makes_a_site_that_signs_at_once(tmp_path: Path) -> None:
    """From a clone, one command must lead to a site that works."""
    folder = tmp_path / "site"
    answer = process("init", "--dir", str(folder), "--domain", "example.com", "--domain", "B.example", folder=tmp_path)
    assert (answer.status, answer.err) == (0, "")
    assert process("config", "check", folder=folder).status == 0
    assert process("sign", "joe@b.example", folder=folder).status == 0
    assert (folder / "keys").stat().st_mode & 0o777 == 0o700
    assert (folder / "keys" / "default.ring").stat().st_mode & 0o777 == 0o600


def test_init_marks_forged_bounces_and_names_the_day_from_which_to_discard(batv: Command) -> None:
    """Mail sent before today carries no tag: discarding at once would lose its bounces."""
    folder = batv.folder / "site"
    answer = _init(batv, "--dir", str(folder), "--domain", "example.com", "--json")
    assert answer.fields == {
        "config": str(folder / "batv.toml"),
        "ring": str(folder / "keys" / "default.ring"),
        "ring_made": True,
        "discard_safe_from": "2026-12-01",
    }
    text = (folder / "batv.toml").read_text()
    assert '# "discard" is safe from 2026-12-01 on.' in text.splitlines()
    assert tomllib.loads(text)["domains"] == {"example.com": {"on_forged": "mark"}}


def test_init_writes_what_forged_bounces_shall_get(batv: Command) -> None:
    """A site without mail under way may discard from the start."""
    folder = batv.folder / "site"
    assert _init(batv, "--dir", str(folder), "--domain", "xn--a.example", "--on-forged", "discard").status == 0
    settings = parse((folder / "batv.toml").read_text(), "batv.toml", str(folder))
    assert str(settings.domains["xn--a.example"].on_forged) == "discard"


def test_init_overwrites_nothing(batv: Command) -> None:
    """A second call must not cost the settings or the keys."""
    folder = batv.folder / "site"
    arguments = ("--dir", str(folder), "--domain", "example.com")
    _init(batv, *arguments)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = _init(batv, *arguments)
    assert answer.status == 73
    assert "exists already" in answer.err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_init_finishes_what_was_cut_short(batv: Command) -> None:
    """A ring that is there is kept, and the settings are written."""
    folder = batv.folder / "site"
    arguments = ("--dir", str(folder), "--domain", "example.com")
    _init(batv, *arguments)
    (folder / "batv.toml").unlink()
    before = (folder / "keys" / "default.ring").read_bytes()
    answer = _init(batv, *arguments)
    assert answer.status == 0
    assert "kept as it was" in answer.out
    assert (folder / "keys" / "default.ring").read_bytes() == before


@pytest.mark.parametrize("domain", ["", "a b", "-a.example", "a..example", "a.example.", "a\nb", 'a"]\nx = 1\n["'])
def test_init_refuses_what_is_no_domain(batv: Command, domain: str) -> None:
    """Nothing that comes as a domain may write settings of its own."""
    answer = _init(batv, "--dir", str(batv.folder / "site"), "--domain", domain)
    assert answer.status == 2
    assert "is no domain name" in answer.err
    assert not (batv.folder / "site").exists()


def test_check_tells_every_error_at_once(batv: Command) -> None:
    """Each line names file, line and key, and the status is that of a wrong configuration."""
    batv.config.write_text('[smtp]\nmax_recipients = 1\ncolour = "red"\n[domains."example.com"]\non_forged = "lose"\n')
    answer = batv("config", "check")
    assert (answer.status, answer.out) == (78, "")
    lines = answer.err.splitlines()
    assert len(lines) == 3
    for number, key in ((2, "smtp.max_recipients"), (3, "smtp.colour"), (5, 'domains."example.com".on_forged')):
        assert any(line.startswith(f"batv: {batv.config}:{number}: {key}: ") for line in lines)
    answer = batv("config", "check", "--json")
    assert (answer.status, answer.err) == (78, "")
    assert len(answer.fields["errors"]) == 3


def test_check_says_that_all_is_well(batv: Command) -> None:
    """No news could also mean that no file was read."""
    assert batv("config", "check").out == f"{batv.config} has no errors: 2 domains, outbound and inbound proxy\n"
    assert batv("config", "check", "--json").fields == {"config": str(batv.config), "errors": []}


def test_what_show_prints_may_be_read_in_again(batv: Command) -> None:
    """The effective settings are the best beginning for a file of one's own."""
    before = batv("config", "show", "--json").fields
    shown = batv("config", "show")
    assert shown.status == 0
    batv.config.write_text(shown.out)
    assert batv("config", "show", "--json").fields == before


def test_show_tells_defaults_from_what_was_set(batv: Command) -> None:
    """Whoever looks for a fault wants to know what somebody chose."""
    lines = batv("config", "show").out.splitlines()
    origins = {
        lines[number + 1]: line.endswith("(default)") for number, line in enumerate(lines[:-1]) if line[:1] == "#"
    }
    assert origins[f'directory = "{batv.keys}"']
    assert origins['on_forged = "discard"']
    assert not origins['on_forged = "reject"']
    assert not origins['next_hop = "127.0.0.1:10026"']
    assert origins["drain_seconds = 10"]
