"""`batv probe`: what it refuses before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from batv.store.probe import ProbeStore
from tests.support.command import Command
from tests.support.next_hop import RecordingNextHop
from tests.support.port import free_port

if TYPE_CHECKING:
    from pathlib import Path

PROBE: Final = '[probe]\nsender = "probe+*@example.com"\nrecipient = "nobody@remote.example"\n'


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A site with a key, whose proxies do not run."""
    command = Command(tmp_path, capsys)
    text = command.config.read_text().replace("10025", str(free_port())).replace("10027", str(free_port()))
    command.config.write_text(f"{text}\n{PROBE}")
    assert command("key", "new").status == 0
    (tmp_path / "var").mkdir(mode=0o700)
    return command


def listen(batv: Command, side: str, lines: str) -> None:
    """Put other lines in the place of where a proxy listens."""
    head, _, rest = batv.config.read_text().partition(f"[{side}]\n")
    batv.config.write_text(f"{head}[{side}]\n{lines}\n{rest.partition(chr(10))[2]}")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            PROBE,
            "",
            "batv: probe.sender is not set: there is nothing to probe with: set [probe] sender and recipient\n",
        ),
        (
            '[domains."example.com"]',
            '[domains."example.com"]\nexempt_recipients = ["probe*"]',
            "are not judged: exempt: exempt_recipients has probe*: name others in probe.sender\n",
        ),
        (
            PROBE,
            PROBE.replace("probe+", "probe" * 10) + "[ledger]\nenabled = true\n",
            " is not signed: local part too long for a tag: name another address\n",
        ),
        (
            PROBE,
            PROBE + '[[exemptions]]\nreason = "tests"\nrecipients = ["remote.example"]\n',
            "to nobody@remote.example is not signed: exempt: tests: name others in probe.sender and probe.recipient\n",
        ),
    ],
)
def test_what_could_prove_nothing_is_refused(batv: Command, old: str, new: str, said: str) -> None:
    """The settings say so before any message does."""
    text = batv.config.read_text()
    assert old in text
    batv.config.write_text(text.replace(old, new))
    answer = batv("probe")
    assert answer.status == 78
    assert answer.err.endswith(said)


@pytest.mark.parametrize("side", ["outbound", "inbound"])
def test_a_proxy_without_an_address_in_clear_is_told(batv: Command, side: str) -> None:
    """It needs one that the command can reach."""
    listen(batv, side, f'listen = []\nlisten_tls = ["127.0.0.1:{free_port()}"]\ntls_certificate = "pem"')
    answer = batv("probe")
    assert answer.status == 78
    assert f"batv: {side}.listen names no address" in answer.err


def test_a_host_with_one_proxy_is_told_what_is_missing(batv: Command) -> None:
    """The journal of the inbound one tells of the bounce; the message has to be handed in somewhere."""
    outbound, _, rest = batv.config.read_text().partition("[inbound]\n")
    inbound, _, domains = rest.partition("\n\n")
    batv.config.write_text(f"{outbound}{domains}")
    assert "there is no [inbound]" in batv("probe").err
    batv.config.write_text(f"[inbound]\n{inbound}\n\n{domains}")
    assert "say with probe.via where mail of users is handed in" in batv("probe").err


def test_a_proxy_that_listens_everywhere_is_reached_here(batv: Command) -> None:
    """An address to listen on need not be one to connect to. Where the message is not taken, nothing is broken."""
    with RecordingNextHop() as hop:
        listen(batv, "inbound", f'listen = ["0.0.0.0:{hop.port}"]')
        answer = batv("probe")
        assert hop.commands[0] == b"MAIL FROM:<>"
    lines = answer.out.splitlines()
    assert lines[0].startswith("mailbox   works ")
    assert lines[1].startswith("sent      inconclusive ")
    assert lines[2:] == ["the loop: inconclusive"]
    assert answer.status == 75
    # It may have been taken all the same, before the connection broke.
    assert ProbeStore(batv.folder / "var").read().began > 0


def test_a_journal_that_is_not_the_proxy_s_is_told(batv: Command) -> None:
    """It has neither the bounce nor what was handed in without a tag."""
    with RecordingNextHop() as hop:
        for side in ("outbound", "inbound"):
            listen(batv, side, f'listen = ["127.0.0.1:{hop.port}"]')
        batv.config.write_text(f"{batv.config.read_text()}wait_seconds = 0.1\n")
        answer = batv("probe", "--json")
    assert answer.fields["loop"] == "broken"
    untagged = answer.fields["steps"][-1]
    assert (untagged["step"], untagged["result"]) == ("untagged", "inconclusive")
    assert untagged["found"].startswith(f"{batv.folder}/var/journal.jsonl does not have it")
    assert "the log of the queueing server says what became of it" in answer.err
