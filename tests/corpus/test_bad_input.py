"""What is wrong with a corpus is told in one line with the documented exit status, and nothing half-written stays."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.command import child_environment
from tests.support.port import free_port
from tests.support.service import ServiceProcess
from tests.support.signals import heeding_interrupts
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.corpus.ground import Ground, Said


@pytest.fixture
def folder(ground: Ground) -> Path:
    """Return a small corpus."""
    path = ground.folder / "corpus"
    assert ground("generate", "--out", str(path), "--count", "60").status == 0
    return path


def complains(said: Said, status: int, *words: str) -> None:
    """Check that a command ended with one line of complaint."""
    assert said.status == status, (said.out, said.err)
    *_, line = said.err.splitlines()
    assert line.startswith("batv: ")
    assert line.count(": ") >= 2, line
    assert "Traceback" not in said.err
    for word in words:
        assert word in line, line


def test_a_folder_that_exists_is_not_overwritten(ground: Ground, folder: Path) -> None:
    """Somebody's corpus may be in it."""
    before = (folder / "manifest.jsonl").read_bytes()
    complains(ground("generate", "--out", str(folder), "--count", "5"), 73, "exists already")
    assert (folder / "manifest.jsonl").read_bytes() == before


@pytest.mark.parametrize("place", ["nowhere/corpus", "batv.toml/corpus", "/proc/corpus"])
def test_a_folder_that_cannot_be_made_is_named(ground: Ground, place: str) -> None:
    """Before any time is spent on messages."""
    before = sorted(ground.folder.rglob("*"))
    complains(ground("generate", "--out", str(ground.folder / place), "--count", "5"), 73, "cannot make the corpus")
    assert sorted(ground.folder.rglob("*")) == before


def test_nothing_stays_of_a_corpus_that_was_not_finished(ground: Ground, tmp_path: Path) -> None:
    """An import that meets a fault half-way leaves no folder that looks like a corpus."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.eml").write_bytes(b"To: joe@example.com\n\nhello\n")
    (source / "b.eml").symlink_to(source / "b.eml")
    (source / "c.eml").mkdir()
    before = sorted(tmp_path.iterdir())
    said = ground("import", str(source / "nothing"), "--out", str(tmp_path / "new"))
    complains(said, 65, "there is no")
    (source / "a.eml").write_bytes(b"Subject: for nobody\n\nhello\n")
    complains(ground("import", str(source), "--out", str(tmp_path / "new")), 65, "no message")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_of_a_corpus_that_was_interrupted(ground: Ground, number: signal.Signals) -> None:
    """A service manager that stops a job, or a hand at the keyboard."""
    before = set(ground.folder.iterdir())
    command = ("--config", str(ground.config), "corpus", "generate", "--out", str(ground.folder / "new"))
    with heeding_interrupts():
        process = subprocess.Popen(
            [sys.executable, "-c", "from batv.cli import main; main()", *command, "--count", "1000000"],
            env=child_environment(),
            stderr=subprocess.PIPE,
        )
    with process:
        try:
            until(lambda: any(ground.folder.glob(".new.*/messages/000050.eml")), "fiftieth message")
            process.send_signal(number)
            assert process.wait(60) == 130
        finally:
            process.kill()
    assert set(ground.folder.iterdir()) == before


def test_a_manifest_with_a_missing_file_is_refused(ground: Ground, folder: Path) -> None:
    """Before the first message is sent."""
    gone = sorted((folder / "messages").iterdir())[3]
    gone.unlink()
    complains(ground("run", str(folder)), 65, "there is no", gone.name)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"class": "no-such-class"}, "unknown class 'no-such-class'"),
        ({"recipients": []}, "no recipient"),
        ({"file": "../../etc/passwd"}, "no file of a corpus"),
        ({"client": "192.0.2.1"}, "127.0.0.0/8"),
        ({"helo": "x\r\nDATA"}, "control character"),
        ({"reverse_path": "joe"}, "PathError"),
        ({"ending": "bang"}, "ValueError"),
        ({"recipients": "joe"}, "TypeError"),
    ],
)
def test_a_wrong_line_of_a_manifest_is_named(
    ground: Ground, folder: Path, change: dict[str, object], word: str
) -> None:
    """A manifest may be written by hand: the number of the line says where to look."""
    path = folder / "manifest.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, json.dumps(json.loads(rest[0]) | change), *rest[1:]]) + "\n")
    complains(ground("run", str(folder)), 65, "manifest.jsonl:2", word)


@pytest.mark.parametrize("octets", [b"", b"[]", b"{", b'{"format": 2, "day": null}', b"\xff\xfe", b'{"format": 1}'])
def test_a_damaged_description_is_refused(ground: Ground, folder: Path, octets: bytes) -> None:
    """A corpus of another format must not be scored by guessing."""
    (folder / "corpus.json").write_bytes(octets)
    complains(ground("run", str(folder)), 65, "corpus.json")


def test_a_folder_that_is_no_corpus_is_refused(ground: Ground) -> None:
    """As is one that does not exist."""
    complains(ground("run", str(ground.folder)), 65, "corpus.json")
    complains(ground("diff", str(ground.folder / "nowhere"), str(ground.config), str(ground.config)), 65, "there is no")


def test_a_sink_address_that_is_taken_is_named(ground: Ground) -> None:
    """The running next hop was not stopped, say."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sink = f"127.0.0.1:{taken.getsockname()[1]}"
        said = ground("run", *small_corpus(ground), "--inbound", "127.0.0.1:1", "--sink", sink)
    complains(said, 69, "the sink cannot listen on", sink)


def test_a_proxy_that_is_not_there_is_named(ground: Ground) -> None:
    """Not one message is counted as lost where nothing was sent."""
    port = free_port()
    said = ground("run", *small_corpus(ground), "--inbound", f"127.0.0.1:{port}", "--sink", "127.0.0.1:0")
    complains(said, 69, f"the proxy at 127.0.0.1:{port} takes no connection: connection refused: ")


def test_a_proxy_with_another_next_hop_is_not_sent_a_corpus(ground: Ground) -> None:
    """Its next hop could be the site's mail store: forged bounces would land in mailboxes."""
    live = ground.folder / "live"
    live.mkdir()
    with ServiceProcess(live, f"127.0.0.1:{free_port()}") as service:
        host, port = service.inbound
        said = ground("run", *small_corpus(ground), "--inbound", f"{host}:{port}", "--sink", "127.0.0.1:0")
    complains(said, 69, "does not ask the sink")


def test_a_corpus_of_another_day_is_not_sent_to_a_running_proxy(ground: Ground, folder: Path) -> None:
    """Half of its tags would have expired, and the proxy would be blamed."""
    path = folder / "corpus.json"
    path.write_text(path.read_text().replace("2026-11-23", "2026-11-20"))
    said = ground("run", str(folder), "--inbound", "127.0.0.1:1", "--sink", "127.0.0.1:0")
    complains(said, 65, "was made for 2026-11-20", "leave --inbound out")


def test_a_page_that_cannot_be_written_is_an_error(ground: Ground, folder: Path) -> None:
    """Not silence."""
    complains(ground("run", str(folder), "--html", str(folder / "nowhere" / "page.html")), 73)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--out", "x", "--weight", "storm"),
        ("generate", "--out", "x", "--weight", "nothing=1"),
        ("generate", "--out", "x", "--weight", "storm=-1"),
        ("generate", "--out", "x", "--count", "0"),
        ("run", "x", "--inbound", "127.0.0.1:1"),
        ("run", "x", "--inbound", "here", "--sink", "127.0.0.1:1"),
    ],
)
def test_a_wrong_call_is_told_so(ground: Ground, arguments: tuple[str, ...]) -> None:
    """Exit status 2, as for every command."""
    assert ground(*arguments).status == 2


def small_corpus(ground: Ground) -> tuple[str]:
    """Make a small corpus, and return its folder as an argument."""
    path = ground.folder / "today"
    assert ground("generate", "--out", str(path), "--count", "60").status == 0
    return (str(path),)
