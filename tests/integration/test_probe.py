"""`batv probe` with running proxies: the test plays the site whose bounces come home, or do not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from email.parser import BytesParser
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.address import Mailbox
from batv.probe import Loop
from batv.rollout import Evidence, Phase, Progress
from batv.store.probe import ProbeStore
from batv.store.rings import RingStore
from batv.store.rollout import RolloutStore
from batv.tag import take_off
from tests.support.command import child_environment
from tests.support.next_hop import Answer, RecordingNextHop, Stage
from tests.support.service import SERVE, ServiceProcess, today
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.support.next_hop import Message

PROBE: Final = '\n[probe]\nsender = "probe+*@example.com"\nrecipient = "nobody@remote.example"\n'
BOUNCE: Final = (
    b"Subject: Undelivered Mail Returned to Sender\r\nMessage-ID: <1@remote.example>\r\n\r\nnobody there\r\n"
)
LOST: Final = "the log of the queueing server says what became of it"


@pytest.fixture
def hop() -> Iterator[RecordingNextHop]:
    """The next hop of both proxies: the queue, with the Internet behind it, and the mail store."""
    with RecordingNextHop() as hop:
        yield hop


@dataclass
class Probed:
    """How a probe ended.

    Attributes:
        status: exit status of the command.
        fields: what it printed, as JSON.
        err: what it said meanwhile.
    """

    status: int
    fields: dict[str, Any]
    err: str

    @property
    def results(self) -> dict[str, str]:
        """The result of each step."""
        return {step["step"]: step["result"] for step in self.fields["steps"]}

    def found(self, name: str) -> str:
        """Return what a step found."""
        return next(str(step["found"]) for step in self.fields["steps"] if step["step"] == name)


def run(
    service: ServiceProcess,
    hop: RecordingNextHop,
    remote: Callable[[ServiceProcess, Message], None],
    more: str = "",
    changes: Sequence[tuple[str, str]] = (),
) -> Probed:
    """Probe the loop of a service, the remote site doing as it is told with the message that comes.

    Args:
        service: the service.
        hop: its next hop.
        remote: what the remote site does.
        more: further lines of [probe].
        changes: what the command finds in the configuration, and what in its place.
    """
    text = service.config.read_text()
    for side in ("outbound", "inbound"):
        host, port = service.address(side)
        text = text.replace(f'[{side}]\nlisten = ["127.0.0.1:0"]', f'[{side}]\nlisten = ["{host}:{port}"]')
    for old, new in changes:
        text = text.replace(old, new)
    config = service.folder / "probe.toml"
    config.write_text(text.replace("[probe]\n", f"[probe]\n{more}\n"))
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, "--config", str(config), "probe", "--json"],
        cwd=service.folder,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        try:
            until(lambda: hop.messages or command.poll() is not None, "message or end of the probe")
            if hop.messages:
                remote(service, hop.messages[0])
            out, err = command.communicate(timeout=60)
        finally:
            command.kill()
    return Probed(command.returncode, json.loads(out) if out else {}, err)


def bounce(service: ServiceProcess, message: Message) -> None:
    """Send a bounce to the envelope sender of a message, as a remote site does."""
    path = re.match(rb"<([^>]*)>", message.mail)
    assert path is not None
    with SmtpClient(service.inbound) as client:
        client.say(b"EHLO mx.remote.example")
        client.mail(b"", [path[1]], BOUNCE)


def lose(service: ServiceProcess, message: Message) -> None:
    """Send no bounce."""
    del service, message


def revoke_and_bounce(service: ServiceProcess, message: Message) -> None:
    """Send a bounce when the service that verifies it no longer has the key that signed it."""
    RingStore(service.folder / "keys").change(None, lambda _: service.ring.with_revoked(0, today()))
    service.wait_for_log("key rings read")
    bounce(service, message)


def refuse_and_bounce(hop: RecordingNextHop, code: int) -> Callable[[ServiceProcess, Message], None]:
    """Return what sends a bounce whose content the mail store refuses, and sends it again once that is mended."""

    def remote(service: ServiceProcess, message: Message) -> None:
        hop.fail(Stage.DOT, Answer(b"%d 5.7.1 spam\r\n" % code))
        bounce(service, message)
        hop.heal()
        bounce(service, message)

    return remote


def content(message: Message) -> Any:  # noqa: ANN401 -- as the parser has it
    """Return a message that the next hop has, taken apart."""
    return BytesParser().parsebytes(message.content)


@pytest.mark.parametrize("on_forged", ["discard", "quarantine", "reject", "mark", "pass"])
def test_a_loop_that_works_is_found_to_work(on_forged: str, hop: RecordingNextHop, tmp_path: Path) -> None:
    """Whatever a forged bounce is to get: it gets that, and the genuine one is delivered."""
    metrics = tmp_path / "batv.prom"
    with ServiceProcess(tmp_path, hop.address, PROBE, on_forged=on_forged) as service:
        found = run(service, hop, bounce, f'metrics_file = "{metrics}"')
    assert found.fields["loop"] == "works", found
    assert found.status == 0
    assert found.results == dict.fromkeys(("mailbox", "sent", "signed", "bounce", "untagged"), "works")
    assert found.found("untagged").startswith(f"{on_forged}, as it is to be: ")
    # The message, its bounce, and the bounce that nobody sent where that is delivered: the proxies add none.
    assert len(hop.messages) == (3 if on_forged in {"mark", "pass"} else 2)
    probes = ProbeStore(tmp_path / "var").read()
    assert probes.outcome is not None
    assert (probes.outcome.loop, probes.outcome.ended) == (Loop.WORKS, probes.worked)
    assert "\nbatv_probe_success 1\n" in metrics.read_text()
    assert f"\nbatv_probe_bounce_seconds {found.fields['bounce_seconds']:g}\n" in metrics.read_text()


@pytest.mark.parametrize(
    ("phase", "gets"), [(Phase.OBSERVE, "pass"), (Phase.MARK, "mark"), (Phase.QUARANTINE, "quarantine")]
)
def test_a_bounce_without_a_tag_is_to_get_what_its_domain_has_come_to(
    phase: Phase, gets: str, hop: RecordingNextHop, tmp_path: Path
) -> None:
    """With `rollout = "auto"`: the settings say discard, and that is not in force yet."""
    state = tmp_path / "var"
    state.mkdir(mode=0o700)
    RolloutStore(state).change(lambda _: {"example.com": Progress(phase, today(), today() + -90)})
    with ServiceProcess(tmp_path, hop.address, f'rollout = "auto"\n{PROBE}') as service:
        found = run(service, hop, bounce)
    assert found.fields["loop"] == "works"
    assert found.found("untagged").startswith(f"{gets}, as it is to be: ")
    progress = RolloutStore(state).read()["example.com"]
    assert (progress.phase, progress.evidence, progress.broken) == (phase, Evidence(), False)


def test_a_domain_that_goes_on_while_the_bounce_is_waited_for_is_not_misjudged(
    hop: RecordingNextHop, tmp_path: Path
) -> None:
    """That may take an hour, and what a bounce without a tag is to get is what it is then."""
    state = tmp_path / "var"
    state.mkdir(mode=0o700)
    store = RolloutStore(state)
    store.change(lambda _: {"example.com": Progress(Phase.OBSERVE, today(), today() + -90)})

    def go_on_and_bounce(service: ServiceProcess, message: Message) -> None:
        store.change(lambda _: {"example.com": Progress(Phase.QUARANTINE, today(), today() + -90)})
        service.wait_for_log(r"rollout: domain=example\.com, phase=quarantine")
        bounce(service, message)

    with ServiceProcess(tmp_path, hop.address, f'rollout = "auto"\n{PROBE}') as service:
        found = run(service, hop, go_on_and_bounce)
    assert found.fields["loop"] == "works", found
    assert found.found("untagged").startswith("quarantine, as it is to be: ")


def test_the_message_says_what_it_is_and_comes_from_an_address_of_its_own(
    hop: RecordingNextHop, tmp_path: Path
) -> None:
    """Nobody at the other site takes it for somebody's mail, and nobody can know the address beforehand."""
    with ServiceProcess(tmp_path, hop.address, PROBE) as service:
        found = run(service, hop, bounce)
    message, came = hop.messages
    path = re.match(rb"<([^>]*)>", message.mail)
    assert path is not None
    tagged = take_off(Mailbox.parse(path[1]))
    assert tagged is not None
    assert re.fullmatch(rb"probe\+[0-9a-f]{12}@example\.com", tagged.mailbox.octets)
    assert message.recipients == (b"<nobody@remote.example>",)
    assert came.recipients == (b"<%b>" % tagged.mailbox.octets,)
    parsed = content(message)
    assert (parsed["Auto-Submitted"], parsed["To"]) == ("auto-generated", "nobody@remote.example")
    assert parsed["From"] == found.fields["sender"] == tagged.mailbox.octets.decode()
    assert parsed["Date"]
    assert "postmaster@example.com" in parsed.get_payload()


def test_a_bounce_that_does_not_come_home_is_a_broken_loop(hop: RecordingNextHop, tmp_path: Path) -> None:
    """It was sent, it left signed, and then nothing."""
    with ServiceProcess(tmp_path, hop.address, PROBE) as service:
        found = run(service, hop, lose, "wait_seconds = 1")
    assert (found.status, found.fields["loop"]) == (1, "broken")
    assert found.fields["reason"] == "bounce: none came home within 1 s"
    assert LOST in found.err
    assert found.results["untagged"] == "works"


def test_what_servers_reply_shows_no_whole_tag(hop: RecordingNextHop, tmp_path: Path) -> None:
    """Some repeat the sender; what a command of a timer prints is kept in the log of the system."""
    hop.fail(Stage.DOT, Answer(b"250 2.0.0 <prvs=3789ab12cd=probe@example.com> queued\r\n"))
    with ServiceProcess(tmp_path, hop.address, PROBE) as service:
        found = run(service, hop, bounce)
    assert "<prvs=3789******=probe@example.com> queued" in found.found("sent")
    assert "ab12cd" not in found.err + json.dumps(found.fields) + ProbeStore(tmp_path / "var").path.read_text()


@pytest.mark.parametrize("on_forged", ["discard", "reject", "pass"])
def test_mail_that_leaves_by_another_way_is_a_broken_loop(
    on_forged: str, hop: RecordingNextHop, tmp_path: Path
) -> None:
    """The submission server hands mail on past the outbound proxy: the bounce comes without a tag, whatever it gets."""
    with ServiceProcess(tmp_path, hop.address, PROBE, on_forged=on_forged) as service:
        found = run(service, hop, bounce, f'via = "{hop.address}"')
    assert (found.status, found.fields["loop"]) == (1, "broken")
    assert "signed" not in found.results
    assert found.found("bounce").startswith(f"untagged, {on_forged}, from 127.0.0.1, after ")
    assert "let this mail leave by the outbound proxy" in found.fields["reason"]


def test_mail_that_is_left_unsigned_is_a_broken_loop(hop: RecordingNextHop, tmp_path: Path) -> None:
    """The record of the outbound proxy tells it, and nobody waits for the bounce."""
    exempt = '\n[[exemptions]]\nreason = "mistaken"\nclients = ["127.0.0.0/8"]\n'
    with ServiceProcess(tmp_path, hop.address, PROBE + exempt) as service:
        found = run(service, hop, lose)
    assert (found.status, found.results["signed"]) == (1, "broken")
    assert found.fields["reason"] == "signed: unsigned: exempt: mistaken"
    assert LOST not in found.err  # nobody waited for the bounce


def test_a_verifier_with_another_key_is_a_broken_loop(hop: RecordingNextHop, tmp_path: Path) -> None:
    """The ring of the outbound proxy was not copied to the inbound one."""
    with ServiceProcess(tmp_path, hop.address, PROBE) as service:
        found = run(service, hop, revoke_and_bounce)
    assert (found.status, found.fields["loop"]) == (1, "broken")
    assert found.found("bounce").startswith("unknown-key, discard, from 127.0.0.1, after ")
    assert found.found("bounce").endswith("give both proxies the same key rings")
    assert found.fields["bounce_seconds"] > 0
    assert LOST not in found.err  # the bounce has come


@pytest.mark.parametrize(("code", "loop"), [(554, "broken"), (454, "works")])
def test_a_bounce_that_the_mail_store_refuses_for_good_is_a_broken_loop(
    code: int, loop: str, hop: RecordingNextHop, tmp_path: Path
) -> None:
    """Whatever its tag: the user does not get it. One that is put off comes again."""
    with ServiceProcess(tmp_path, hop.address, PROBE) as service:
        found = run(service, hop, refuse_and_bounce(hop, code))
    assert found.fields["loop"] == loop
    assert ("554 5.7.1 spam" in found.fields["reason"]) is (loop == "broken")


def test_a_forged_bounce_that_is_delivered_is_told(hop: RecordingNextHop, tmp_path: Path) -> None:
    """The settings say discard, but the service that runs was never told so: no reload."""
    with ServiceProcess(tmp_path, hop.address, PROBE, on_forged="pass") as service:
        found = run(service, hop, bounce, changes=[('on_forged = "pass"', 'on_forged = "discard"')])
    assert (found.status, found.fields["loop"]) == (1, "misjudged")
    assert found.results["bounce"] == "works"
    assert found.found("untagged").startswith("pass, and not discard: no tag")


def test_without_a_mailbox_for_the_bounce_nothing_is_sent(hop: RecordingNextHop, tmp_path: Path) -> None:
    """That is no fault of the loop; and once it is mended, the next probe need not wait for ten minutes."""
    with ServiceProcess(tmp_path, hop.address, PROBE) as service:
        hop.fail(Stage.FIRST_RCPT, Answer(b"550 5.1.1 no such user here\r\n"))
        found = run(service, hop, bounce)
        assert (found.status, found.results) == (75, {"mailbox": "inconclusive"})
        assert "550 5.1.1 no such user here" in found.fields["reason"]
        assert not hop.messages
        hop.heal()
        assert run(service, hop, bounce).fields["loop"] == "works"


def test_proxies_that_do_not_answer_leave_the_loop_unknown(hop: RecordingNextHop, tmp_path: Path) -> None:
    """They are mended first."""
    with ServiceProcess(tmp_path, hop.address, PROBE) as service:
        service.stop()
        assert service.wait() == 0
        found = run(service, hop, bounce)
    assert (found.status, found.fields["loop"]) == (75, "inconclusive")
    assert found.results == {"mailbox": "inconclusive"}


def test_the_other_site_gets_one_message_in_ten_minutes(hop: RecordingNextHop, tmp_path: Path) -> None:
    """Whoever runs the command in a loop does not load a stranger's server."""
    with ServiceProcess(tmp_path, hop.address, PROBE) as service:
        assert run(service, hop, bounce).status == 0
        count = len(hop.messages)
        again = run(service, hop, lose)
    assert again.status == 75
    assert "batv: a probe began " in again.err
    assert len(hop.messages) == count


def test_a_proxy_that_signs_only_what_was_submitted_signs_the_probe(hop: RecordingNextHop, tmp_path: Path) -> None:
    """As the recipe for Postfix has it: a listed peer says with XFORWARD that mail was submitted there."""
    options = 'xforward_from = ["127.0.0.1/32"]\n'
    with ServiceProcess(tmp_path, hop.address, PROBE, options=options) as service:
        text = service.config.read_text()
        service.config.write_text(text.replace("[outbound]\n", "[outbound]\nrequire_local_source = true\n"))
        before = len(service.log)
        service.reload()
        service.wait_for_log("reloaded", after=before)
        service.config.write_text(text)
        assert run(service, hop, bounce).fields["loop"] == "works"


def test_a_broken_loop_leads_a_domain_back_to_mark_while_the_service_runs(
    hop: RecordingNextHop, tmp_path: Path
) -> None:
    """With `rollout = "auto"`: from then on what would have been discarded is delivered, and the status says why."""
    state = tmp_path / "var"
    state.mkdir(mode=0o700)
    enforced = Progress(Phase.ENFORCE, today() + -30, today() + -90)
    RolloutStore(state).change(lambda _: {"example.com": enforced})
    with ServiceProcess(tmp_path, hop.address, f'rollout = "auto"\n{PROBE}') as service:
        found = run(service, hop, lose, "wait_seconds = 1")
        assert found.results["untagged"] == "works"
        service.wait_for_log(r"rollout: domain=example\.com, phase=mark, reason=a probe found the loop broken: bounce")
        before = len(hop.messages)
        with SmtpClient(service.inbound) as client:
            client.say(b"EHLO mx.remote.example")
            assert client.mail(b"", [b"joe@example.com"], BOUNCE).code == 250
        assert hop.messages[before].content.startswith(b"X-Batv-Status: invalid, missing")
    progress = RolloutStore(state).read()["example.com"]
    assert (progress.phase, progress.broken, progress.since) == (Phase.MARK, True, today())
    assert progress.evidence == Evidence(unknown=1)
