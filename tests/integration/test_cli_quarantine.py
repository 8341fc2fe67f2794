"""The way out of the quarantine: what a service put there is listed, judged again, released as it came, deleted."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.cli import Site, run
from tests.support.command import Answer as Said
from tests.support.command import child_environment
from tests.support.next_hop import CLOSE, Answer, RecordingNextHop, Stage
from tests.support.service import SERVE, ServiceProcess, today
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_JOE: Final = b"joe@example.com"
_ANN: Final = b"ann@example.com"
# It begins as the quarantine's own fields do; dots are stuffed.
_CONTENT: Final = (
    b"X-Original-To: <mallory@example.com>\r\nX-Batv-Transaction: mine\r\nSubject: =?x?=\r\n\r\n"
    b"..one dot\r\n...two\r\n\xe4\xf6\xfc\r\n\r\nlast line\r\n..\r\n"
)
_REPLY: Final = (
    b"From: bob@peer.example\r\nAuto-Submitted: auto-replied\r\nIn-Reply-To: <sent@example.com>\r\n\r\nAway.\r\n"
)


class Quarantine:
    """A service that quarantines, and the commands of its administrator."""

    def __init__(self, service: ServiceProcess, hop: RecordingNextHop, capture: pytest.CaptureFixture[str]) -> None:
        self.service: Final = service
        self.hop: Final = hop
        self._capture = capture

    def __call__(self, *arguments: str) -> Said:
        """Run `batv quarantine`."""
        self._capture.readouterr()
        status = run(["--config", str(self.service.config), "quarantine", *arguments], Site(today=today))
        said = self._capture.readouterr()
        return Said(status, said.out, said.err)

    def receive(self, *recipients: bytes, content: bytes = _CONTENT, sender: bytes = b"") -> str:
        """Let a forged bounce come, and return its name."""
        before = {each["name"] for each in self.messages()}
        with SmtpClient(self.service.inbound) as client:
            assert client.mail(sender, recipients, content).code == 250
        self.hop.forget()
        (name,) = {each["name"] for each in self.messages()} - before
        return str(name)

    def messages(self) -> list[dict[str, Any]]:
        """Return what is listed."""
        found: list[dict[str, Any]] = self("list", "--json").fields["messages"]
        return found

    def names(self) -> list[str]:
        """Return the names of what is listed."""
        return [each["name"] for each in self.messages()]


@pytest.fixture
def quarantine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Quarantine]:
    """An empty quarantine."""
    with (
        RecordingNextHop(rejects=frozenset({b"gone"})) as hop,
        ServiceProcess(tmp_path, hop.address, "[ledger]\nenabled = true\n", on_forged="quarantine") as service,
    ):
        yield Quarantine(service, hop, capsys)


def test_it_lists_what_is_there_the_newest_first(quarantine: Quarantine) -> None:
    """Who it was for, and why it is there, by the names that the journal has too."""
    assert quarantine.messages() == []
    first, second = quarantine.receive(_JOE), quarantine.receive(_JOE, _ANN, content=b"Subject: x\r\n\r\n")
    newest, oldest = quarantine.messages()
    assert [newest["name"], oldest["name"]] == [second, first]
    assert newest["recipients"] == [
        {"recipient": "<joe@example.com>", "verdict": "untagged", "reason": "no tag"},
        {"recipient": "<ann@example.com>", "verdict": "untagged", "reason": "no tag"},
    ]
    assert (newest["sender"], newest["size"]) == ("<>", len("Subject: x\n\n"))
    assert newest["transaction"] == quarantine.service.journal()[-1]["transaction"]
    assert quarantine.service.journal()[-1]["time"].startswith(newest["time"][:10])
    table = quarantine("list").out
    assert table.index(second) < table.index(first)
    assert "untagged (no tag)" in table


@pytest.mark.parametrize("command", ["list", "rejudge"])
def test_a_narrow_terminal_shows_names_whole(quarantine: Quarantine, command: str) -> None:
    """They are what `release` asks for, and nobody can type what was cut off."""
    name = quarantine.receive(_JOE)
    screen, terminal = os.openpty()
    try:
        termios.tcsetwinsize(terminal, (24, 80))
        subprocess.run(
            [sys.executable, "-c", SERVE, "--config", quarantine.service.config, "quarantine", command],
            cwd=quarantine.service.folder,
            env=child_environment() | {"COLUMNS": "80"},
            stdout=terminal,
            check=True,
        )
        shown = os.read(screen, 65536).decode()
    finally:
        os.close(screen)
        os.close(terminal)
    assert name in shown
    assert "…" not in shown


def test_a_released_message_is_the_one_that_came(quarantine: Quarantine) -> None:
    """Octet for octet, the fields of the quarantine taken off, to whom it was for; and it is there no more."""
    name, other = quarantine.receive(_JOE, _ANN), quarantine.receive(_JOE)
    done = quarantine("release", name)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"{name}: released to <joe@example.com> <ann@example.com>: 250")
    (message,) = quarantine.hop.messages
    assert message.content == _CONTENT
    assert message.mail == b"<> BODY=8BITMIME"
    assert message.recipients == (b"<joe@example.com>", b"<ann@example.com>")
    assert quarantine.names() == [other]


@pytest.mark.parametrize("content", [b"", b"..\r\n", b"\r\n\r\n", b"no header\r\n"])
def test_odd_messages_come_out_as_they_went_in(quarantine: Quarantine, content: bytes) -> None:
    """One without octets too."""
    assert quarantine("release", quarantine.receive(_JOE, content=content)).status == 0
    assert [message.content for message in quarantine.hop.messages] == [content]


def test_a_message_that_a_mail_program_has_shown_can_be_released(quarantine: Quarantine) -> None:
    """Such programs move it, and put flags after its name."""
    name = quarantine.receive(_JOE)
    folder = quarantine.service.folder / "var/quarantine"
    (folder / "new" / name).rename(folder / "cur" / f"{name}:2,S")
    assert quarantine("release", name).status == 0
    assert quarantine.hop.messages[0].content == _CONTENT
    assert quarantine.names() == []


def test_the_tag_of_the_recipient_is_taken_off(quarantine: Quarantine) -> None:
    """The mail store knows no tags; the quarantine does not keep what it would take to judge one again."""
    tag = quarantine.service.tagged(_JOE).replace(b"=joe@", b"=jim@")
    name = quarantine.receive(tag)
    (judged,) = quarantine("rejudge", "--json").fields["messages"]
    assert (judged["passes"], judged["recipients"][0]["verdict"]) == (False, "bad-signature")
    assert judged["recipients"][0]["reason"].endswith("its tag is not kept: look at it, and release it by name")
    assert quarantine("release", name).status == 0
    assert quarantine.hop.messages[0].recipients == (b"<jim@example.com>",)


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.FIRST_RCPT, Stage.DATA, Stage.DOT])
def test_a_refused_message_stays(quarantine: Quarantine, stage: Stage) -> None:
    """And the administrator reads why; what is taken goes out all the same."""
    name = quarantine.receive(_JOE)
    quarantine.hop.fail(stage, Answer(b"451 4.2.2 mailbox full\r\n"))
    done = quarantine("release", name)
    assert (done.status, done.out) == (1, f"{name}: stays: 451 4.2.2 mailbox full\n")
    assert quarantine.names() == [name]
    quarantine.hop.heal()
    assert quarantine("release", name).status == 0
    assert len(quarantine.hop.messages) == 1


def test_a_message_is_not_delivered_in_part(quarantine: Quarantine) -> None:
    """If one recipient is refused the other would get it again with the next try."""
    name = quarantine.receive(_JOE, _ANN)
    quarantine.hop.fail(Stage.LAST_RCPT, Answer(b"550 5.1.1 gone\r\n"), recipients=2)
    done = quarantine("release", name)
    assert (done.status, done.out) == (1, f"{name}: stays: 550 5.1.1 gone\n")
    assert quarantine.hop.messages == []
    assert quarantine.names() == [name]


def test_where_the_next_hop_breaks_down_the_message_is_handed_over_once(quarantine: Quarantine) -> None:
    """It may have been delivered: that is said, and not tried again."""
    name, _ = quarantine.receive(_JOE), quarantine.receive(_JOE)
    quarantine.hop.fail(Stage.DOT, CLOSE)
    done = quarantine("release", name)
    assert (done.status, done.out) == (69, "")
    assert f"{name} stays: " in done.err
    assert "it may have been delivered" in done.err
    assert sum(connection.dots for connection in quarantine.hop.connections) == 1
    assert len(quarantine.names()) == 2
    quarantine.hop.stop_listening()
    assert quarantine("release", name).status == 69
    assert len(quarantine.names()) == 2


def test_what_would_pass_now_is_found_and_released(quarantine: Quarantine) -> None:
    """An exemption that was missing lets out what it would have let through, and nothing else."""
    joe, ann, both = quarantine.receive(_JOE), quarantine.receive(_ANN), quarantine.receive(_JOE, _ANN)
    assert not any(each["passes"] for each in quarantine("rejudge", "--json").fields["messages"])
    assert "nothing in it would pass now" in quarantine("release", "--rejudged").err
    quarantine.service.configure('exempt_recipients = ["joe"]\n', on_forged="quarantine")
    judged = {each["name"]: each["passes"] for each in quarantine("rejudge", "--json").fields["messages"]}
    assert judged == {joe: True, ann: False, both: False}
    assert "exempt: exempt_recipients has joe" in quarantine("rejudge", joe).out
    dry = quarantine("release", "--rejudged", "--dry-run")
    assert (dry.status, dry.out) == (0, f"{joe}: would go to <joe@example.com>\n")
    assert quarantine.hop.messages == []
    assert quarantine("release", "--rejudged").status == 0
    assert [message.recipients for message in quarantine.hop.messages] == [(b"<joe@example.com>",)]
    assert quarantine.names() == [both, ann]


def test_a_client_that_is_exempt_now_is_known_from_the_journal(quarantine: Quarantine) -> None:
    """The quarantine itself does not say who brought a message."""
    quarantine.receive(_JOE)
    quarantine.service.configure(on_forged="quarantine", options="")
    settings = quarantine.service.config.read_text()
    quarantine.service.config.write_text(
        settings.replace("[inbound]\n", '[inbound]\nexempt_clients = ["127.0.0.0/8"]\n')
    )
    (judged,) = quarantine("rejudge", "--json").fields["messages"]
    assert judged["passes"]
    assert judged["recipients"][0]["reason"] == "exempt: exempt_clients has 127.0.0.0/8"


def test_a_genuine_reply_is_found_by_the_ledger(quarantine: Quarantine) -> None:
    """Where rescue is switched on after the reply has come."""
    with SmtpClient(quarantine.service.outbound) as client:
        content = b"From: joe@example.com\r\nMessage-ID: <sent@example.com>\r\n\r\ntext\r\n"
        assert client.mail(_JOE, [b"bob@peer.example"], content).code == 250
    genuine = quarantine.receive(_JOE, content=_REPLY)
    quarantine.receive(_JOE, content=_REPLY.replace(b"sent@", b"other@"))
    rescue = "rescue = true\n[ledger]\nenabled = true\n"
    quarantine.service.configure(rescue, on_forged="quarantine")

    def passing() -> list[str]:
        return [each["name"] for each in quarantine("rejudge", "--json").fields["messages"] if each["passes"]]

    until(lambda: bool(passing()), "the entry")
    assert passing() == [genuine]
    assert quarantine("release", "--rejudged").status == 0
    assert [message.content for message in quarantine.hop.messages] == [_REPLY]


def test_an_address_too_long_for_a_tag_passes_where_the_site_takes_to_leaving_it_alone(quarantine: Quarantine) -> None:
    """Judged again it is by the record, or by none."""
    long = b"x" * 49 + b"@example.com"
    service = quarantine.service
    service.configure('[tags]\non_too_long = "refuse"\n', on_forged="quarantine")
    service.reload()
    service.wait_for_log("reloaded")
    quarantine.receive(long)
    (judged,) = quarantine("rejudge", "--json").fields["messages"]
    assert not judged["passes"]
    service.configure("[ledger]\nenabled = true\n", on_forged="quarantine")
    (judged,) = quarantine("rejudge", "--json").fields["messages"]
    assert judged["recipients"][0]["verdict"] == "not-judged"
    assert judged["passes"]


def test_a_bounce_with_a_sender_is_judged_again_as_one_and_goes_on_with_it(quarantine: Quarantine) -> None:
    """By sender or header, by its own setting; where its tag was not kept, a sender goes on as none."""
    wanted = 'on_bounce_with_sender = "{}"\n[ledger]\nenabled = true\n'
    quarantine.service.configure(wanted.format("quarantine"), on_forged="quarantine")
    quarantine.service.reload()
    quarantine.service.wait_for_log(r"\breloaded\b")
    header = b"X-Failed-Recipients: bob@peer.example\r\n\r\ntext\r\n"
    by_header = quarantine.receive(_JOE, content=header, sender=b"robot@peer.example")
    by_sender = quarantine.receive(_JOE, sender=b"mailer-daemon@peer.example")
    tagged = quarantine.receive(_JOE, sender=b"prvs=3789abcdef=postmaster@peer.example")
    null = quarantine.receive(_JOE)
    assert not any(each["passes"] for each in quarantine("rejudge", "--json").fields["messages"])
    quarantine.service.configure(wanted.format("pass"), on_forged="quarantine")
    judged = {each["name"]: each["passes"] for each in quarantine("rejudge", "--json").fields["messages"]}
    assert judged == {by_header: True, by_sender: True, tagged: True, null: False}
    assert quarantine("release", "--rejudged").status == 0
    assert [command for command in quarantine.hop.commands if command.startswith(b"MAIL")] == [
        b"MAIL FROM:<robot@peer.example>",
        b"MAIL FROM:<mailer-daemon@peer.example> BODY=8BITMIME",
        b"MAIL FROM:<> BODY=8BITMIME",
    ]
    assert quarantine.names() == [null]


def test_what_others_have_put_there_is_left_alone(quarantine: Quarantine) -> None:
    """A file that does not say whom it was for can go to nobody, and links are not followed."""
    name = quarantine.receive(_JOE)
    folder = quarantine.service.folder / "var/quarantine/new"
    (folder / "1.000000.x.batv").write_bytes(b"Return-Path: <>\nX-Batv-Transaction: x\n\n")
    (folder / "2.000000.x.batv").write_bytes((folder / name).read_bytes()[:60])
    (folder / "mail").write_bytes((folder / name).read_bytes())
    assert quarantine.names() == [name]
    assert quarantine("delete", "--older-than", "0").status == 0
    assert len(list(folder.iterdir())) == 4
    (folder / "3.000000.x.batv").symlink_to(folder / name)
    assert quarantine("list").status == 74


def test_nothing_is_released_to_a_domain_that_is_ours_no_more(quarantine: Quarantine) -> None:
    """The next hop trusts us, and would send it elsewhere."""
    name = quarantine.receive(_JOE)
    quarantine.service.configure(domains=["example.org"])
    done = quarantine("release", name)
    assert (done.status, done.out) == (78, "")
    assert "example.com is not a domain of the configuration" in done.err
    assert quarantine.hop.connections == []
    (judged,) = quarantine("rejudge", "--json").fields["messages"]
    assert (judged["passes"], judged["recipients"][0]["verdict"]) == (False, "foreign")


def test_messages_are_deleted_by_name_or_by_age(quarantine: Quarantine) -> None:
    """And nothing else is."""
    first, second = quarantine.receive(_JOE), quarantine.receive(_JOE)
    assert quarantine("delete", first).out == "1 message deleted\n"
    folder = quarantine.service.folder / "var/quarantine/new"
    days_ago = float(second.partition(".")[0]) - 3 * 86_400
    (folder / f"{days_ago:.6f}.old.batv").write_bytes((folder / second).read_bytes())
    assert quarantine("delete", "--older-than", "3").out == "0 messages deleted\n"
    assert quarantine("delete", "--older-than", "2").out == "1 message deleted\n"
    assert quarantine.names() == [second]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["release"], 2),
        (["release", "x", "--rejudged"], 2),
        (["delete"], 2),
        (["delete", "x", "--older-than", "1"], 2),
        (["release", "../../batv.toml"], 74),
        (["rejudge", "x"], 74),
    ],
)
def test_a_command_that_names_nothing_changes_nothing(
    quarantine: Quarantine, arguments: list[str], status: int
) -> None:
    """A name that is mistyped among good ones lets none of them out."""
    name = quarantine.receive(_JOE)
    assert quarantine(*arguments, *([name] if status == 74 else [])).status == status
    assert quarantine.hop.messages == []
    assert quarantine.names() == [name]
