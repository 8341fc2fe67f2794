"""The tour, as `scripts/start` and `batv demo` run it: real processes, real sockets, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest

from batv.cli import Site
from batv.config import Settings, parse
from batv.day import Day
from batv.demo.processes import company
from batv.demo.tour import CORRESPONDENTS, FORGED_FATES, Course, Tour, users_of
from batv.verdict import Disposition
from tests.support.port import free_port
from tests.support.signals import heeding_interrupts
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BATV: Final = (sys.executable, "-P", "-m", "batv.cli")
_SECONDS: Final = 90.0
_STEPS: Final = (
    "mail out",
    "its bounce",
    "no tag",
    "ann's tag",
    "one digit",
    "expired tag",
    "plain mail",
    "unknown user",
    "mailboxes",
)
_FORGED_STEPS: Final = _STEPS[2:6]
_WHOLE_TAG = re.compile(r"prvs=[0-9]{4}[0-9a-f]{6}=")


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """A folder as `batv init` leaves it, with ports of its own."""
    subprocess.run([*_BATV, "init", "--dir", tmp_path, "--domain", "example.com"], check=True, capture_output=True)
    config = tmp_path / "batv.toml"
    text = config.read_text()
    for port in ("10025", "10026", "10027", "10028"):
        text = text.replace(port, str(free_port()))
    config.write_text(text)
    return tmp_path


def set_on_forged(folder: Path, word: str) -> None:
    """Change what the domain of the folder wants for forged bounces, expired tags and all."""
    config = folder / "batv.toml"
    config.write_text(re.sub(r'(?m)^on_(forged|expired) = ".*"$', rf'on_\1 = "{word}"', config.read_text()))


def settings_of(folder: Path) -> Settings:
    """Return the settings in a folder."""
    return parse((folder / "batv.toml").read_text(), "batv.toml", str(folder))


def once(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `batv demo --once` in a folder."""
    command = [*_BATV, "demo", "--once", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)


def rows_of(answer: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Return the rows that `--json` printed, by step."""
    return {row["step"]: row for row in json.loads(answer.stdout)["rows"]}


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that the tour of a folder started, and that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if ours:
            found.append(process)
    return found


@contextmanager
def going_on(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `batv demo` in a folder, until the tour is over and the proxies go on."""
    with (folder / "out").open("w") as out:
        demo = subprocess.Popen([*_BATV, "demo"], cwd=folder, stdout=out, stderr=subprocess.STDOUT, text=True)
    try:
        until(
            lambda: "until Ctrl-C" in (folder / "out").read_text() or demo.poll() is not None,
            "end of the tour",
            _SECONDS,
        )
        assert demo.poll() is None, (folder / "out").read_text()
        yield demo
    finally:
        if demo.poll() is None:
            demo.terminate()
        try:
            demo.wait(timeout=_SECONDS)
        finally:
            demo.kill()
            demo.wait()


@pytest.mark.parametrize("on_forged", list(FORGED_FATES), ids=str)
def test_every_step_of_the_tour_is_as_the_settings_want_it(folder: Path, on_forged: Disposition) -> None:
    """Whoever tries the product sees what it would do for them, on a fresh folder too (mark)."""
    set_on_forged(folder, on_forged.value)
    answer = once(folder, "--json")
    rows = rows_of(answer)
    assert tuple(rows) == _STEPS
    assert [row for row in rows.values() if not row["ok"]] == []
    assert {rows[step]["happened"] for step in _FORGED_STEPS} == {FORGED_FATES[on_forged]}
    assert answer.returncode == 0
    assert processes_of(folder) == []


def test_the_tour_can_be_taken_again(folder: Path) -> None:
    """What the first tour left in mailboxes and journal must not count in the second."""
    first, second = once(folder), once(folder)
    assert (first.returncode, second.returncode) == (0, 0), first.stdout + second.stdout


def test_the_tour_goes_with_tags_in_any_place(folder: Path) -> None:
    """A site that writes subaddresses sees them in the tour."""
    config = folder / "batv.toml"
    config.write_text(config.read_text() + '\n[tags]\nplacement = "subaddress"\ncase = "exact"\n')
    answer = once(folder)
    assert answer.returncode == 0, answer.stdout
    assert re.search(r"the next hop got   MAIL FROM:<joe\+prvs=[0-9a-f]{10}@example\.com>", answer.stdout)


def test_the_table_fits_a_terminal_and_hides_tags(folder: Path) -> None:
    """A whole tag can have a bounce delivered: it is shown once, where the tour is about it."""
    answer = once(folder)
    narration, _, table = answer.stdout.partition("\nstep ")
    assert len(_WHOLE_TAG.findall(narration)) == 1
    assert not _WHOLE_TAG.search(table)
    assert max(map(len, answer.stdout.splitlines())) <= 80
    assert "\x1b" not in answer.stdout
    assert answer.stderr == ""


def test_the_tour_shows_what_a_late_bounce_gets(folder: Path) -> None:
    """On a folder as it is begun: marked like every forged bounce, but kept in quarantine where its tag has expired."""
    rows = rows_of(once(folder, "--json"))
    assert [row for row in rows.values() if not row["ok"]] == []
    assert {step: rows[step]["happened"] for step in _FORGED_STEPS} == {
        "no tag": "marked",
        "ann's tag": "marked",
        "one digit": "marked",
        "expired tag": "quarantined",
    }


def test_a_tour_that_finds_something_else_says_no(folder: Path) -> None:
    """A tour that is always content would prove nothing: here the proxies deliver what should be discarded."""
    set_on_forged(folder, "pass")
    settings = settings_of(folder)
    site = Site(str(folder / "batv.toml"))
    today = Day.at(time.time())

    async def take() -> dict[str, str]:
        async with company(folder / "batv.toml", settings, users_of("example.com"), CORRESPONDENTS) as running:
            course = Course(
                domain="example.com",
                on_forged=Disposition.DISCARD,
                ring=site.rings(settings).ring_for(b"example.com"),
                style=settings.tags.style,
                today=today,
                outbound=running.outbound,
                inbound=running.inbound,
                state=folder / "var/demo",
                mail=folder / "var/mail",
            )
            rows = await Tour(course, lambda _: None).take()
        return {row.step: row.happened for row in rows if not row.ok}

    wrong = asyncio.run(take())
    assert wrong == dict.fromkeys(_FORGED_STEPS, "delivered") | {"mailboxes": "7 messages"}


def test_a_bounce_that_does_not_come_home_makes_the_status_1(folder: Path) -> None:
    """The proxies refuse our clients here, so nothing is signed and nothing bounces."""
    config = folder / "batv.toml"
    config.write_text(config.read_text().replace("127.0.0.0/8", "192.0.2.0/24"))
    answer = once(folder, "--json")
    rows = rows_of(answer)
    assert answer.returncode == 1
    assert {step: rows[step]["ok"] for step in _STEPS[:2]} == {"mail out": False, "its bounce": False}
    assert rows["plain mail"]["ok"]
    assert answer.stderr.endswith(f"batv: not every step did what it should: see {folder}/var/demo/log\n")


def test_the_proxies_go_on_until_they_are_told_to_end(folder: Path) -> None:
    """They are there to be tried by hand; afterwards the ports are free."""
    with going_on(folder) as demo:
        assert len(processes_of(folder)) == 3
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(timeout=_SECONDS) == 0
    assert processes_of(folder) == []
    out = (folder / "out").read_text()
    assert f"--config {folder}/batv.toml sign joe@example.com" in out
    assert f"tail -n 3 {folder}/var/demo/journal.jsonl" in out
    assert f"ls -t {folder}/var/mail/joe@example.com/new" in out


def test_the_tour_leaves_the_records_of_the_site_alone(folder: Path) -> None:
    """What a site has on record must not be mixed with mail that was made up."""
    (folder / "var").mkdir(mode=0o700)
    journal = folder / "var/journal.jsonl"
    journal.write_text('{"time": "2026-11-23T00:00:00Z"}\n')
    set_on_forged(folder, "quarantine")
    answer = once(folder)
    assert answer.returncode == 0, answer.stdout
    assert journal.read_text() == '{"time": "2026-11-23T00:00:00Z"}\n'
    assert sorted(path.name for path in (folder / "var").iterdir()) == ["demo", "journal.jsonl", "mail"]
    assert {path.name for path in (folder / "var/demo").iterdir()} == {"journal.jsonl", "log", "quarantine"}


def test_the_help_of_the_tour_says_how_many_messages_there_are(folder: Path) -> None:
    """Whoever counts the table must come to the same number."""
    said = subprocess.run([*_BATV, "demo", "--help"], capture_output=True, text=True, check=True).stdout
    assert "eight messages" in said
    assert "a count of all mailboxes" in " ".join(said.split())
    # Messages are numbered in the narration, and the last line of the table is the count.
    assert re.findall(r"(?m)^([0-9])\. ", once(folder).stdout)[-1] == "8"
    assert len(_STEPS) == 9


@pytest.mark.parametrize("module", ["batv.cli", "batv.demo.next_hop"])
def test_the_demo_ends_when_one_of_its_processes_does(folder: Path, module: str) -> None:
    """Proxies without a next hop, or the other way round, would be half a demonstration."""
    with going_on(folder) as demo:
        (victim,) = (process for process in psutil.Process(demo.pid).children() if module in process.cmdline())
        victim.kill()
        assert demo.wait(timeout=_SECONDS) == 69
    last = (folder / "out").read_text().splitlines()[-1]
    assert re.fullmatch(r"batv: the (proxies|next hop) ended with status -9: see \S+/var/demo/log", last)
    assert processes_of(folder) == []


def test_ctrl_c_in_the_middle_leaves_nothing_running(folder: Path) -> None:
    """The tour is ended at any moment; the processes it started are its own to end."""
    with heeding_interrupts():
        demo = subprocess.Popen([*_BATV, "demo"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with demo:
        try:
            until((folder / "var/demo/log").exists, "log", _SECONDS)
            demo.send_signal(signal.SIGINT)
            out, _ = demo.communicate(timeout=_SECONDS)
        finally:
            demo.kill()
    assert demo.returncode in {130, 0}
    assert b"Traceback" not in out
    assert processes_of(folder) == []


@pytest.mark.parametrize("section", ["outbound", "inbound"])
@pytest.mark.parametrize("option", ["listen", "next_hop"])
def test_a_port_that_is_taken_is_named(folder: Path, section: str, option: str) -> None:
    """The commonest trouble of a first look: a mail server that listens there already."""
    settings = getattr(settings_of(folder), section)
    endpoint = settings.next_hop[0] if option == "next_hop" else settings.listen[0]
    with socket.create_server((endpoint.host, endpoint.port)):
        answer = once(folder)
    assert answer.returncode == 69
    assert answer.stdout == ""
    what = "batv: cannot" if option == "listen" else "batv: the tour's next hop cannot"
    other = "another address" if option == "listen" else f"another {section}.next_hop"
    reason = "address already in use: stop what listens there, or set"
    assert answer.stderr == f"{what} listen on {endpoint}: {reason} {other}\n"
    assert processes_of(folder) == []


def test_an_unsafe_key_ring_is_named_before_anything_starts(folder: Path) -> None:
    """A secret that others could have read is not used, in a demonstration either."""
    (folder / "keys/default.ring").chmod(0o644)
    answer = once(folder)
    assert answer.returncode == 77
    assert answer.stderr.startswith("batv: ")
    assert len(answer.stderr.splitlines()) == 1
    assert not (folder / "var").exists()


def test_a_missing_key_ring_is_named_before_anything_starts(folder: Path) -> None:
    """Without a key nothing can be signed."""
    shutil.rmtree(folder / "keys")
    answer = once(folder)
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert not (folder / "var").exists()


def test_the_tour_plays_no_next_hop_but_on_loopback(folder: Path) -> None:
    """A site's own configuration names its mail servers: the tour must neither stand in for them nor reach them."""
    config = folder / "batv.toml"
    config.write_text(re.sub(r'next_hop = "127.0.0.1:', 'next_hop = "192.0.2.1:', config.read_text()))
    answer = once(folder)
    assert answer.returncode == 78
    assert "loopback only" in answer.stderr
    assert processes_of(folder) == []
