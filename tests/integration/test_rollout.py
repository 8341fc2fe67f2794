"""Rollout in a running service: what it counts, when it moves, and what the administrator's word does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.day import SECONDS_A_DAY
from batv.observe.event import Direction, Notice, TransactionEnded
from batv.probe import Loop, Outcome
from batv.rescue import claims_of
from batv.rollout import Evidence, Phase, Progress
from batv.store.probe import ProbeStore
from batv.store.rollout import RolloutStore
from tests.support.command import process
from tests.support.next_hop import RecordingNextHop
from tests.support.relay import FIXED_DAY, World, badly_tagged, expired, noon, running, signed
from tests.support.service import SERVE, ServiceProcess, today
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batv.rescue import Claims
    from tests.support.relay import Relay

DOMAIN: Final = "example.com"
JOE: Final = b"joe@example.com"
AUTO: Final[dict[str, Any]] = {
    "domains": {DOMAIN: {"rollout": "auto", "on_forged": "discard"}},
    "rollout": {"observe_days": 2, "mark_days": 2, "quarantine_days": 2},
}
PROBED: Final[dict[str, Any]] = {
    **AUTO,
    "probe": {"sender": "probe+*@example.com", "recipient": "nobody@remote.example"},
}
MESSAGE: Final = b"Subject: Undelivered\r\n\r\nnobody there\r\n"


@pytest.fixture
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop that takes everything."""
    with RecordingNextHop() as hop:
        yield hop


class Days:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.passed = 0

    def now(self) -> float:
        """Return POSIX seconds."""
        return noon() + self.passed * SECONDS_A_DAY


async def send(relay: Relay, sender: bytes, recipient: bytes) -> int:
    """Send a message through a proxy; return the code of the last reply."""

    def say() -> int:
        with SmtpClient(("127.0.0.1", relay.port)) as client:
            client.say(b"EHLO client.example")
            return client.mail(sender, [recipient], MESSAGE).code

    return await asyncio.to_thread(say)


def port(hop: RecordingNextHop) -> int:
    """Return where the next hop listens."""
    return int(hop.address.rpartition(":")[2])


def test_a_forged_bounce_fares_worse_from_phase_to_phase(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Passed, marked, kept and at last discarded, on the days that the settings say; a good one always arrives."""

    async def test() -> list[str]:
        days = Days()
        found: list[str] = []
        RolloutStore(tmp_path / "var").path.parent.mkdir()
        RolloutStore(tmp_path / "var").change(lambda _: {DOMAIN: Progress(Phase.OBSERVE, FIXED_DAY, FIXED_DAY + -9)})
        async with running(tmp_path, Direction.INBOUND, port(next_hop), AUTO, World(clock=days.now)) as relay:
            for passed in range(8):
                days.passed = passed
                relay.service.look_at_rollout()
                next_hop.forget()
                assert await send(relay, b"", JOE) == 250
                arrived = [message.content for message in next_hop.messages]
                kept = len(list(relay.quarantine.iterdir())) if relay.quarantine.is_dir() else 0
                found.append(
                    "marked"
                    if arrived and arrived[0].startswith(b"X-Batv-Status: invalid, missing")
                    else "passed"
                    if arrived
                    else "kept"
                    if kept > found.count("kept")
                    else "discarded"
                )
                assert await send(relay, b"", signed(JOE, days_ago=-passed)) == 250
                assert len(next_hop.messages) == len(arrived) + 1
        return found

    assert asyncio.run(test()) == ["passed"] * 2 + ["marked"] * 2 + ["kept"] * 2 + ["discarded"] * 2


def test_what_was_counted_is_in_the_file_after_the_end(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """It is the evidence that an administrator looks at."""

    async def test() -> None:
        async with running(tmp_path, Direction.INBOUND, port(next_hop), AUTO) as relay:
            for recipient in (JOE, JOE, badly_tagged(JOE), signed(JOE)):
                assert await send(relay, b"", recipient) == 250
            assert await send(relay, b"ann@peer.example", JOE) == 250

    asyncio.run(test())
    assert RolloutStore(tmp_path / "var").read()[DOMAIN].evidence == Evidence(unknown=2, forged=1)


def test_domains_below_a_wildcard_are_counted_with_it(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """They are switched on together."""
    changes = {**AUTO, "domains": {DOMAIN: {}, "*.example.com": {"rollout": "auto"}}}

    async def test() -> None:
        async with running(tmp_path, Direction.INBOUND, port(next_hop), changes) as relay:
            for recipient in (b"joe@a.example.com", b"joe@b.c.example.com", JOE):
                assert await send(relay, b"", recipient) == 250
        assert len(next_hop.messages) == 2

    asyncio.run(test())
    assert {name: each.evidence for name, each in RolloutStore(tmp_path / "var").read().items()} == {
        "*.example.com": Evidence(unknown=2)
    }


def test_the_first_signature_is_remembered(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """From it the days are counted before which nothing is withheld."""

    async def test() -> None:
        async with running(tmp_path, Direction.OUTBOUND, port(next_hop), AUTO) as relay:
            assert await send(relay, b"someone@elsewhere.example", b"ann@peer.example") == 250
            relay.service.look_at_rollout()
            assert RolloutStore(tmp_path / "var").read()[DOMAIN].first_signed is None
            assert await send(relay, JOE, b"ann@peer.example") == 250

    asyncio.run(test())
    assert RolloutStore(tmp_path / "var").read()[DOMAIN].first_signed == FIXED_DAY


def test_a_word_of_the_administrator_is_heard(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """`batv rollout` writes the file; the service goes by it, and says so in its log."""

    async def test() -> None:
        async with running(tmp_path, Direction.INBOUND, port(next_hop), AUTO) as relay:
            RolloutStore(tmp_path / "var").change(
                lambda found: {DOMAIN: found[DOMAIN].moved(Phase.ENFORCE, FIXED_DAY, "moved by hand")}
            )
            relay.service.look_at_rollout()
            assert await send(relay, b"", JOE) == 250
            assert not next_hop.messages
            said = [event for event in relay.events if isinstance(event, Notice) and event.what == "rollout"]
            assert dict(said[-1].fields) == {"domain": DOMAIN, "phase": "enforce", "reason": "moved by hand"}

    asyncio.run(test())


def test_a_broken_loop_withholds_nothing_from_then_on(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Back to marking at once, no further while it is broken, and on again when a probe has found it whole."""

    async def test() -> list[str]:
        days = Days()
        state = tmp_path / "var"
        state.mkdir()
        probes = ProbeStore(state)
        RolloutStore(state).change(lambda _: {DOMAIN: Progress(Phase.ENFORCE, FIXED_DAY, FIXED_DAY + -9)})
        phases: list[str] = []
        async with running(tmp_path, Direction.INBOUND, port(next_hop), PROBED, World(clock=days.now)) as relay:
            for passed, loop in enumerate(
                (Loop.WORKS, Loop.MISJUDGED, Loop.BROKEN, Loop.BROKEN, Loop.INCONCLUSIVE, Loop.INCONCLUSIVE, Loop.WORKS)
            ):
                days.passed = passed
                probes.end(Outcome(loop, "as it is", "probe+0a1b@example.com", days.now()))
                relay.service.look_at_rollout()
                phases.append(RolloutStore(state).read()[DOMAIN].phase.value)
                next_hop.forget()
                assert await send(relay, b"", JOE) == 250
                assert bool(next_hop.messages) is (phases[-1] == "mark")
        said = [event.fields for event in relay.events if isinstance(event, Notice) and event.what == "rollout"]
        assert [each["phase"] for each in said] == ["enforce", "mark", "quarantine"]
        assert said[1]["reason"] == "a probe found the loop broken: as it is"
        return phases

    assert asyncio.run(test()) == ["enforce", "enforce", "mark", "mark", "mark", "mark", "quarantine"]


def test_what_probes_send_and_what_comes_back_is_no_evidence(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Their own bounces without a tag are no backscatter, a late one is no loss, and no user's mail is signed yet."""
    probe = b"probe+0a1b@example.com"

    async def test() -> None:
        for direction in (Direction.OUTBOUND, Direction.INBOUND):
            folder = tmp_path / str(direction)
            folder.mkdir()
            changes = {**PROBED, "state": {"directory": str(tmp_path / "var")}}
            async with running(folder, direction, port(next_hop), changes) as relay:
                if direction is Direction.OUTBOUND:
                    assert await send(relay, probe, b"nobody@remote.example") == 250
                for recipient in (probe, badly_tagged(probe), expired(probe), signed(probe)):
                    if direction is Direction.INBOUND:
                        assert await send(relay, b"", recipient) == 250

    asyncio.run(test())
    progress = RolloutStore(tmp_path / "var").read()[DOMAIN]
    assert (progress.evidence, progress.first_signed, progress.phase) == (Evidence(), None, Phase.OBSERVE)


def test_a_broken_loop_is_that_of_its_domain(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Another domain may have other servers. One below a wildcard is switched on with it."""
    state = tmp_path / "var"
    state.mkdir()
    names = ("*.example.com", DOMAIN)
    enforced = Progress(Phase.ENFORCE, FIXED_DAY, FIXED_DAY + -9)
    RolloutStore(state).change(lambda _: dict.fromkeys(names, enforced))
    ProbeStore(state).end(Outcome(Loop.BROKEN, "lost", "probe+0a1b@mail.example.com", noon()))
    changes = {
        **PROBED,
        "domains": dict.fromkeys(names, AUTO["domains"][DOMAIN]),
        "probe": {**PROBED["probe"], "sender": "probe+*@mail.example.com"},
    }

    async def test() -> None:
        async with running(tmp_path, Direction.INBOUND, port(next_hop), changes):
            pass

    asyncio.run(test())
    found = RolloutStore(state).read()
    assert {name: each.phase for name, each in found.items()} == {names[0]: Phase.MARK, names[1]: Phase.ENFORCE}


@pytest.mark.parametrize("sender", [None, "probe+*@other.example"], ids=["none", "another domain's"])
def test_without_probes_none_keeps_a_domain_from_going_on(
    next_hop: RecordingNextHop, tmp_path: Path, sender: str | None
) -> None:
    """Whoever takes [probe] out of the settings could never mend a loop that the last one found broken.

    Nor could who probes another domain from now on.
    """
    changes = AUTO
    if sender is not None:
        domains = {**AUTO["domains"], "other.example": {}}
        changes = {**PROBED, "domains": domains, "probe": {**PROBED["probe"], "sender": sender}}
    state = tmp_path / "var"
    state.mkdir()
    ProbeStore(state).end(Outcome(Loop.BROKEN, "lost", "probe+0a1b@example.com", noon()))
    broken = Progress(Phase.MARK, FIXED_DAY + -2, FIXED_DAY + -9, probe=noon(), broken=True)
    RolloutStore(state).change(lambda _: {DOMAIN: broken})

    async def test() -> None:
        async with running(tmp_path, Direction.INBOUND, port(next_hop), changes):
            pass

    asyncio.run(test())
    assert RolloutStore(state).read()[DOMAIN].phase is Phase.QUARANTINE


def test_a_damaged_file_withholds_nothing(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """A domain of which nothing is known looks on."""

    async def test() -> None:
        state = tmp_path / "var"
        state.mkdir()
        (state / "rollout.json").write_text("{")
        async with running(tmp_path, Direction.INBOUND, port(next_hop), AUTO) as relay:
            assert await send(relay, b"", JOE) == 250
            assert len(next_hop.messages) == 1
            assert [event.what for event in relay.events if isinstance(event, Notice) and "rollout" in event.what] == [
                "rollout not written, each domain stays where it is"
            ]

    asyncio.run(test())
    assert (tmp_path / "var" / "rollout.json").read_text() == "{"


@pytest.mark.parametrize("octets", ["{", "[" * 50_000], ids=["cut short", "deep"])
def test_a_damaged_file_of_the_last_probe_moves_no_domain(
    next_hop: RecordingNextHop, tmp_path: Path, octets: str
) -> None:
    """What is enforced is enforced, and the log says what is wrong."""
    state = tmp_path / "var"
    state.mkdir()
    RolloutStore(state).change(lambda _: {DOMAIN: Progress(Phase.ENFORCE, FIXED_DAY, FIXED_DAY + -9)})
    (state / "probe.json").write_text(octets)

    async def test() -> None:
        async with running(tmp_path, Direction.INBOUND, port(next_hop), PROBED) as relay:
            assert await send(relay, b"", JOE) == 250
            assert next_hop.messages == []
            (notice,) = (each for each in relay.events if isinstance(each, Notice) and "probe" in each.what)
            assert "probe.json is damaged" in str(notice.fields["cause"])

    asyncio.run(test())
    assert RolloutStore(state).read()[DOMAIN].phase is Phase.ENFORCE


LOOKS_ON: Final = 'rollout = "auto"\n[rollout]\nmax_losses = 100\n[ledger]\nenabled = true\n'
SENT: Final = b"From: joe@example.com\r\nMessage-ID: <sent@example.com>\r\n\r\ntext\r\n"
ANSWER: Final = (
    b"From: Bob <bob@peer.example>\r\nAuto-Submitted: auto-replied\r\nIn-Reply-To: <%b@example.com>\r\n\r\naway\r\n"
)
RETURNED: Final = (
    b"From: MAILER-DAEMON@peer.example\r\nContent-Type: multipart/report; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: message/delivery-status\r\n\r\nFinal-Recipient: rfc822; bob@peer.example\r\n\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\n"
    b"DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=x\r\nMessage-ID: <1@shop.example>\r\n\r\n--b--\r\n"
)


@pytest.mark.parametrize(
    ("rescue", "evidence", "status"),
    [("", Evidence(genuine=2, unknown=3), 1), ("rescue = true\n", Evidence(unknown=3), 0)],
    ids=["rescues nothing", "rescues"],
)
def test_what_would_be_lost_counts_as_lost_while_the_domain_looks_on(
    next_hop: RecordingNextHop, tmp_path: Path, rescue: str, evidence: Evidence, status: int
) -> None:
    """What the ledger knows would be, unless the domain rescues it; what bears our name alone is unknown, and named."""
    with (
        ServiceProcess(tmp_path, next_hop.address, rescue + LOOKS_ON) as service,
        SmtpClient(service.outbound) as out,
        SmtpClient(service.inbound) as back,
    ):
        assert out.mail(JOE, [b"bob@peer.example"], SENT).code == 250
        long = ANSWER % b"sent" + b"0123456789\r\n" * 50_000
        for content in (ANSWER % b"sent", long, ANSWER % b"other", RETURNED, MESSAGE):
            assert back.mail(b"", [JOE], content).code == 250
        assert [each.content for each in next_hop.messages[1:3]] == [ANSWER % b"sent", long]
        assert len(next_hop.messages) == 6
        records = service.journal()[1:]
    assert {(each["verdict"], each["disposition"]) for each in records} == {("untagged", "pass")}
    assert [each["reason"] for each in records] == [
        "no tag; auto-reply, answers a message on the ledger",
        "no tag; auto-reply, answers a message on the ledger",
        "no tag; answers nothing that this recipient has sent",
        "no tag; answers nothing that this recipient has sent; returns mail in the name of example.com",
        "no tag; names no message that it answers",
    ]
    assert RolloutStore(tmp_path / "var").read()[DOMAIN].evidence == evidence
    answer = process("report", "rollout", "--json", folder=tmp_path)
    classes = answer.fields["domains"][DOMAIN]
    assert (answer.status, classes["unknown"]) == (status, 3)
    assert (classes["genuine"], classes["rescued"]) == ((0, 2) if rescue else (2, 0))


def test_a_message_is_looked_into_once_for_all_its_recipients(
    next_hop: RecordingNextHop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be made to take long, and may name a thousand of them."""
    looks: list[bytes] = []

    def counted(octets: bytes) -> Claims:
        looks.append(octets)
        return claims_of(octets)

    monkeypatch.setattr("batv.proxy.judging.claims_of", counted)

    async def test() -> None:
        async with running(tmp_path, Direction.INBOUND, port(next_hop), {**AUTO, "ledger": {"enabled": True}}) as relay:

            def say() -> None:
                with SmtpClient(("127.0.0.1", relay.port)) as client:
                    client.say(b"EHLO client.example")
                    assert client.mail(b"", [JOE, b"ann@example.com", b"jim@example.com"], MESSAGE).code == 250

            await asyncio.to_thread(say)
            (ended,) = (event for event in relay.events if isinstance(event, TransactionEnded))
            assert [each.reason for each in ended.recipients] == ["no tag; names no message that it answers"] * 3

    asyncio.run(test())
    assert len(looks) == 1


def test_of_many_recipients_of_a_message_some_are_looked_up(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Each look costs something, and whoever forges a bounce may name a thousand."""

    async def test() -> None:
        async with running(tmp_path, Direction.INBOUND, port(next_hop), {**AUTO, "ledger": {"enabled": True}}) as relay:

            def say() -> None:
                with SmtpClient(("127.0.0.1", relay.port)) as client:
                    client.say(b"EHLO client.example")
                    named = [b"user%d@example.com" % number for number in range(60)]
                    assert client.mail(b"", named, MESSAGE).code == 250

            await asyncio.to_thread(say)
            (ended,) = (event for event in relay.events if isinstance(event, TransactionEnded))
            looked_up = [each for each in ended.recipients if each.reason == "no tag; names no message that it answers"]
            assert looked_up == list(ended.recipients[:50])

    asyncio.run(test())


def test_whoever_looks_on_keeps_nobody_waiting(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Several recipients share a message as ever, each with what is known of it; no rescue is used up."""
    with (
        ServiceProcess(tmp_path, next_hop.address, LOOKS_ON + "max_rescues = 1\n") as service,
        SmtpClient(service.outbound) as out,
        SmtpClient(service.inbound) as back,
    ):
        assert out.mail(JOE, [b"bob@peer.example"], SENT).code == 250
        for _ in range(3):
            assert back.mail(b"", [JOE, b"ann@example.com", service.tagged(JOE)], ANSWER % b"sent").code == 250
            assert [each["reason"].partition("; ")[2] for each in service.journal()[-3:]] == [
                "auto-reply, answers a message on the ledger",
                "answers nothing that this recipient has sent",
                "",
            ]
    assert len(next_hop.messages) == 4


_LITTLE_MEMORY: Final = f"import batv.proxy.session as session; session._GATHERED_OCTETS = 4096; {SERVE}"


@pytest.mark.parametrize(
    "settings", [LOOKS_ON, "rescue = true\n[ledger]\nenabled = true\n"], ids=["looks on", "rescues"]
)
def test_what_was_looked_into_takes_no_memory_afterwards(
    next_hop: RecordingNextHop, tmp_path: Path, settings: str
) -> None:
    """However a message ends: else after some thousands none would be looked into any more."""
    with (
        ServiceProcess(tmp_path, next_hop.address, settings, code=_LITTLE_MEMORY) as service,
        SmtpClient(service.outbound) as out,
    ):
        assert out.mail(JOE, [b"bob@peer.example"], SENT).code == 250
        for number in range(10):
            with SmtpClient(service.inbound) as back:
                assert back.mail(b"", [JOE], ANSWER % b"sent" + b"x" * 70 + b"\r\n").code == 250
                assert service.journal()[-1]["reason"].endswith("answers a message on the ledger"), number
            with SmtpClient(service.inbound) as back:
                for command in (b"MAIL FROM:<>", b"RCPT TO:<" + JOE + b">", b"DATA"):
                    assert back.say(command).code in {250, 354}
                back.send(b"0123456789\r\n" * 100)


def test_what_is_kept_for_now_is_looked_into_and_what_is_thrown_away_is_not(
    next_hop: RecordingNextHop, tmp_path: Path
) -> None:
    """The last phase but one is the last chance to see a loss coming; in the last one a flood would cost too much."""
    (tmp_path / "var").mkdir()
    store = RolloutStore(tmp_path / "var")
    for phase, kept in ((Phase.QUARANTINE, True), (Phase.ENFORCE, False)):
        store.change(lambda _, phase=phase: {DOMAIN: Progress(phase, today(), today() + -30)})  # type: ignore[misc]
        with (
            ServiceProcess(tmp_path, next_hop.address, LOOKS_ON) as service,
            SmtpClient(service.outbound) as out,
            SmtpClient(service.inbound) as back,
        ):
            assert out.mail(JOE, [b"bob@peer.example"], SENT).code == 250
            assert back.mail(b"", [JOE], ANSWER % b"sent").code == 250
            record = service.journal()[-1]
        assert record["disposition"] == ("quarantine" if kept else "discard")
        assert ("answers a message on the ledger" in record["reason"]) is kept
        assert store.read()[DOMAIN].evidence == (Evidence(genuine=1) if kept else Evidence(unknown=1))
