"""Sixty days of a site that is switched on step by step: what is genuine arrives, and what is not known to be is told.

Everything is real but the days: both proxies with a journal, a ledger, a quarantine and a ring that is rotated. The
counter in the tags comes round in the middle of it.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.address import Mailbox
from batv.config import Settings
from batv.day import CYCLE, SECONDS_A_DAY, Day
from batv.keyring import Key, KeyRing, Secret
from batv.observe.event import Direction, Level, Notice
from batv.proxy.service import Service, Source
from batv.report.journal import JournalReader
from batv.report.rollout import Guess, rollout_report
from batv.rollout import Phase
from batv.signing import sign_with
from batv.store.rings import RingStore
from batv.store.rollout import RolloutStore
from tests.support.next_hop import RecordingNextHop
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from batv.observe.event import Event

    Record = Callable[[str, object], None]

DOMAIN: Final = "example.com"
DAYS: Final = 60
WRAP: Final = 25
"""On this day of the sixty the counter in the tags begins anew: on 2027-07-01."""

BEGIN: Final = Day.from_iso("2027-07-01") + -WRAP
MESSAGES_A_DAY: Final = 20
DELAYS: Final = (0, 0, 1, 2, 3, 5, 6, 7)
"""After so many days the bounces of a day's first messages come."""

LATEST: Final = max(DELAYS)
ROTATIONS: Final = (20, 40)
FORGOTTEN_UNTIL: Final = 30
"""Until this day another host sends mail of ours past the outbound proxy."""

USERS: Final = (b"joe@example.com", b"ann@example.com", b"sue@example.com")
NEWS: Final = b"news@example.com"
"""Whom the forgotten host sends for, and nobody else."""

SHARED: Final = b"ann@example.com"
"""Whom it sends for too, though her other mail is signed."""

BOB: Final = b"bob@peer.example"
GENUINE: Final = ("bounce of signed mail", "reply to signed mail", "in flight at the start")
FORGOTTEN: Final = ("forgotten route", "forgotten route, shared sender")
STRANGER: Final = Key(8, Secret(b"published: a key of another site"), BEGIN, signs_from=BEGIN)


_SUBJECT: Final = re.compile(rb"(?m)^Subject: number ([0-9]+)\r?$")
_RELEASED_TO: Final = re.compile(rb"(?m)^X-Original-To: <([^>]+)>$")


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a site wants, and what it must come to.

    Attributes:
        on_forged: what forged bounces get in the last phase.
        phase_days: days of each phase before, as they are set.
        quarantine: day on which that phase is reached, the first day being 0.
        enforce: day on which the last phase is reached.
        held: days on whose evenings the administrator lets the domain go no further; begins with the day on which he
            has looked, ends with the one on which he lets it go on.
    """

    on_forged: str
    phase_days: int = 7
    quarantine: int = 14
    enforce: int = 21
    held: range = range(0)

    @property
    def looks(self) -> set[int]:
        """Days on which the administrator looks: the last one before bounces are kept, and before they are lost."""
        return {self.quarantine - 1, self.held.start if self.held else self.enforce - 1}


SCENARIOS: Final = {
    "discard": Scenario("discard"),
    "quarantine": Scenario("quarantine"),
    # What was in flight is what it waits for then: the lifetime of a tag, from the first one on.
    "reject, as fast as can be": Scenario("reject", phase_days=1, quarantine=8, enforce=9),
    "discard, held by one who has looked": Scenario("discard", enforce=37, held=range(20, 36)),
}


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message with a null sender that comes in.

    Attributes:
        kind: what it is in truth.
        recipient: where it goes.
        message_id: of the message that it says it answers.
        notice: whether it is a vacation notice, not a report on delivery.
    """

    kind: str
    recipient: bytes
    message_id: bytes
    notice: bool = False

    def content(self, number: int) -> bytes:
        """Return its octets; the number tells it from the others."""
        if self.notice:
            return (
                b"From: Bob <%b>\r\nSubject: number %d\r\nAuto-Submitted: auto-replied (vacation)\r\n"
                b"In-Reply-To: <%b>\r\n\r\nI am away.\r\n" % (BOB, number, self.message_id)
            )
        return (
            b"From: MAILER-DAEMON@mx.peer.example\r\nSubject: number %d\r\n"
            b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n"
            b"--b\r\nContent-Type: message/delivery-status\r\n\r\n"
            b"Reporting-MTA: dns; x\r\n\r\nFinal-Recipient: rfc822; %b\r\n\r\n"
            b"--b\r\nContent-Type: message/rfc822\r\n\r\nMessage-ID: <%b>\r\n\r\ntext\r\n--b--\r\n"
            % (number, BOB, self.message_id)
        )


@dataclass
class Diary:
    """What happened.

    Attributes:
        phases: the phase of each day.
        came: the day, the kind and the reply's code of each message that came in, by its number.
        fates: what became of each: delivered, kept, refused or gone.
        never_seen: who had bounces without a tag and sends nothing by the proxy, by the report of a day.
        signing: who had bounces without a tag though what he sends is signed, by the report of a day.
        kept_for: whom the messages in the quarantine were for.
        keys: number of the key that has signed each message.
        stamps: last day of the tag of each message, as it stands there.
        faults: what the log has of errors.
    """

    phases: list[Phase] = field(default_factory=list)
    came: list[tuple[int, str, int]] = field(default_factory=list)
    fates: list[str] = field(default_factory=list)
    never_seen: dict[int, set[str]] = field(default_factory=dict)
    signing: dict[int, set[str]] = field(default_factory=dict)
    kept_for: set[bytes] = field(default_factory=set)
    keys: list[bytes] = field(default_factory=list)
    stamps: list[bytes] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def reached(self) -> dict[str, int]:
        """Return the day on which each phase was reached, the first day being 0."""
        return {phase.value: self.phases.index(phase) for phase in Phase if phase in self.phases}

    def ends(self, kind: str) -> dict[str, list[int]]:
        """Return the days on which messages of a kind came in, by what became of them."""
        found: dict[str, list[int]] = {}
        for (day, of_kind, _), fate in zip(self.came, self.fates, strict=True):
            if of_kind == kind:
                found.setdefault(fate, []).append(day)
        return found

    def table(self) -> str:
        """Return a line for each day: its phase, and what became of what came in."""
        lines = []
        for day, phase in enumerate(self.phases):
            fates = Counter(
                f"{kind} {fate}" for (came, kind, _), fate in zip(self.came, self.fates, strict=True) if came == day
            )
            told = ", ".join(f"{count} {what}" for what, count in sorted(fates.items()))
            lines.append(f"{day:2} {(BEGIN + day).iso()} {phase.value:10} {told}")
        return "\n" + "\n".join(lines)


class Site:
    """A site that lives through the days.

    Args:
        folder: an empty folder.
        scenario: what the site wants.
        world: where mail goes that is sent.
        mailboxes: where mail goes that comes in.
    """

    def __init__(self, folder: Path, scenario: Scenario, world: RecordingNextHop, mailboxes: RecordingNextHop) -> None:
        self.day = 0
        self.diary = Diary()
        self.state = folder / "var"
        self._world, self._mailboxes = world, mailboxes
        self._events: list[Event] = []
        self._due: dict[int, list[Incoming]] = {}
        keys = folder / "keys"
        keys.mkdir(mode=0o700)
        self._rings = RingStore(keys)
        first = Key(3, Secret(b"published: the first key of sixty days"), BEGIN, signs_from=BEGIN)
        self._rings.change(None, lambda _: KeyRing(BEGIN, (first,)))
        values: dict[str, Any] = {
            "keys": {"directory": str(keys)},
            "state": {"directory": str(self.state)},
            "outbound": {"listen": ["127.0.0.1:0"], "next_hop": world.address},
            "inbound": {"listen": ["127.0.0.1:0"], "next_hop": mailboxes.address},
            "domains": {DOMAIN: {"rollout": "auto", "rescue": True, "on_forged": scenario.on_forged}},
            "rollout": dict.fromkeys(("observe_days", "mark_days", "quarantine_days"), scenario.phase_days),
            "ledger": {"enabled": True},
            "smtp": {"hostname": "proxy.example", "drain_seconds": 1},
        }
        self.settings = Settings.model_validate(values)
        source = Source(lambda: self.settings, lambda _: self._rings)
        self.service = Service(source, list(Direction), self._events.append, self.now)
        self.rollout = RolloutStore(self.state)
        self._plan_the_rest()

    @property
    def today(self) -> Day:
        """The day that the service sees."""
        return BEGIN + self.day

    def now(self) -> float:
        """Return POSIX seconds, at noon."""
        return float(self.today.number * SECONDS_A_DAY + SECONDS_A_DAY // 2)

    def _plan_the_rest(self) -> None:
        """Put down what comes in for mail that did not pass the outbound proxy."""
        for day in range(-LATEST, 0):
            for number, user in enumerate(USERS):
                self._expect(day + LATEST, "in flight at the start", user, b"%d.%d@old.example" % (day, number))
        for day in range(-LATEST, FORGOTTEN_UNTIL):
            for number, (kind, sender) in enumerate(zip(FORGOTTEN, (NEWS, SHARED), strict=True)):
                message_id = b"%d.%d@forgotten.example" % (day, number)
                for came in (day, day + LATEST):
                    if came >= 0:
                        self._expect(came, kind, sender, message_id)

    def _expect(self, day: int, kind: str, recipient: bytes, message_id: bytes, *, notice: bool = False) -> None:
        self._due.setdefault(day, []).append(Incoming(kind, recipient, message_id, notice))

    def turn_keys(self) -> None:
        """Make a key two days before it signs, and remove those of which no tag is alive."""

        def changed(ring: KeyRing | None) -> KeyRing:
            assert ring is not None
            for rotation in ROTATIONS:
                if self.day == rotation - 2:
                    secret = Secret(b"published: the key of day %d of sixty" % rotation)
                    ring = ring.with_newcomer(Key(ring.free_number(self.today), secret, self.today), self.today)
                if self.day == rotation:
                    ring = ring.activated(max(key.number for key in ring.keys), self.today, self.today)
            for key in ring.prunable(self.today):
                ring = ring.pruned(key.number, self.today)
            return ring

        ring = self._rings.read(None)
        if changed(ring) != ring:
            self._rings.change(None, changed)
        self.service.look_at_rings()

    def send(self) -> None:
        """Send what the site sends in a day, and put down what it will bring back."""
        # What was sent on the days before has been on the ledger for long.
        assert self.service._ledger is not None
        assert self.service._ledger.flush()
        port = self.service.addresses(Direction.OUTBOUND)[0].port
        self._world.forget()
        with SmtpClient(("127.0.0.1", port)) as client:
            for number in range(MESSAGES_A_DAY):
                user, message_id = USERS[number % len(USERS)], b"%d.%d@example.com" % (self.day, number)
                content = b"From: %b\r\nMessage-ID: <%b>\r\n\r\ntext\r\n" % (user, message_id)
                assert client.mail(user, [BOB], content).code == 250
        assert len(self._world.messages) == MESSAGES_A_DAY
        for number, message in enumerate(self._world.messages):
            path = message.mail.partition(b"<")[2].partition(b">")[0]
            tag = re.match(rb"prvs=([0-9])([0-9]{3})[0-9a-f]{6}=", path)
            assert tag is not None, path
            self.diary.keys.append(tag[1])
            self.diary.stamps.append(tag[2])
            message_id = b"%d.%d@example.com" % (self.day, number)
            user = USERS[number % len(USERS)]
            if number < len(DELAYS):
                self._expect(self.day + DELAYS[number], "bounce of signed mail", path, message_id)
            elif number < len(DELAYS) + 2:
                days = 1 if number == len(DELAYS) else LATEST
                self._expect(self.day + days, "reply to signed mail", user, message_id, notice=True)

    def forge(self) -> None:
        """Put down what forgers send in a day."""
        joe, guessed = USERS[0], b"guessed@example.com"
        key = self._rings.read(None).signing_key(self.today)
        good = sign_with(Mailbox.parse(joe), key, self.today).octets
        head, tail = good.rsplit(b"=", 1)
        wrong = head[:-1] + (b"0" if head[-1:] != b"0" else b"1") + b"=" + tail
        self._expect(self.day, "forged, no tag", joe, guessed)
        self._expect(self.day, "forged, no tag", b"invented%d@example.com" % self.day, guessed)
        foreign = sign_with(Mailbox.parse(joe), STRANGER, self.today).octets
        for path in (wrong, foreign, b"prvs=tag=" + joe):
            self._expect(self.day, "forged, wrong tag", path, guessed)

    def receive(self) -> None:
        """Let in what comes on this day."""
        port = self.service.addresses(Direction.INBOUND)[0].port
        with SmtpClient(("127.0.0.1", port)) as client:
            for each in self._due.pop(self.day, []):
                code = client.mail(b"", [each.recipient], each.content(len(self.diary.came))).code
                self.diary.came.append((self.day, each.kind, code))

    def read_report(self) -> None:
        """Put down what an administrator would read on this day."""
        report = rollout_report(JournalReader([self.state / "journal.jsonl"]), self.settings.policy)
        self.diary.never_seen[self.day] = {address.path for address in report.of(Guess.NEVER_SEEN)}
        self.diary.signing[self.day] = {address.path for address in report.of(Guess.SIGNED)}

    def hold(self, *, held: bool) -> None:
        """Say what `batv rollout hold` says."""
        self.rollout.change(lambda found: {name: replace(each, held=held) for name, each in found.items()})

    def settle(self) -> None:
        """Find out what became of everything that came in."""
        delivered = Counter(_number(message.content) for message in self._mailboxes.messages)
        messages = [file.read_bytes() for file in self.state.glob("quarantine/new/*")]
        kept = Counter(map(_number, messages))
        self.diary.kept_for = {each for message in messages for each in _RELEASED_TO.findall(message)}
        for number, (_, _, code) in enumerate(self.diary.came):
            places = delivered[number] + kept[number]
            assert places <= 1, f"message {number} is in {places} places"
            assert not (places and code != 250), f"message {number} was refused, and is there"
            self.diary.fates.append(
                "delivered" if delivered[number] else "kept" if kept[number] else "gone" if code == 250 else "refused"
            )
        self.diary.faults = [
            f"{event.what} {dict(event.fields)}"
            for event in self._events
            if isinstance(event, Notice) and event.level is not Level.INFO
        ]


def _number(content: bytes) -> int:
    found = _SUBJECT.search(content)
    assert found is not None
    return int(found[1])


@asynccontextmanager
async def started(site: Site) -> AsyncIterator[None]:
    """Run the service of a site until the block ends."""
    await site.service.start()
    try:
        yield
    finally:
        await site.service.drain()


async def lived(site: Site, scenario: Scenario) -> Diary:
    """Let a site live through the days."""
    held = scenario.held
    async with started(site):
        for day in range(DAYS):
            site.day = day
            site.service.look_at_clock()
            site.turn_keys()
            site.service.look_at_rollout()
            site.diary.phases.append(site.rollout.read()[DOMAIN].phase)
            await asyncio.to_thread(site.send)
            site.forge()
            await asyncio.to_thread(site.receive)
            site.service.look_at_rollout()
            if day in scenario.looks:
                site.read_report()
            if held and day in {held.start, held.stop}:
                site.hold(held=day == held.start)
    site.settle()
    return site.diary


@pytest.fixture
def world() -> Iterator[RecordingNextHop]:
    """Where mail goes that is sent."""
    with RecordingNextHop() as hop:
        yield hop


@pytest.fixture
def mailboxes() -> Iterator[RecordingNextHop]:
    """Where mail goes that comes in."""
    with RecordingNextHop() as hop:
        yield hop


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_genuine_bounce_is_lost_in_sixty_days(
    scenario: str,
    world: RecordingNextHop,
    mailboxes: RecordingNextHop,
    tmp_path: Path,
    record_testsuite_property: Record,
) -> None:
    """What signed mail brings back is delivered on each day, and so is what was in flight when signing began.

    Bounces of a forgotten route are another matter. They have no tag, the ledger does not know what they answer, and
    so nothing tells them from forged ones: they pass, are marked, are kept in the quarantine, and in the last phase get
    what forged ones get. The rollout does not wait for them, as it cannot know that they are genuine. Whoever looks
    before the last phase finds them: the report names a sender that never passed the outbound proxy, and the quarantine
    has the messages. A sender whose other mail is signed looks in the report like anybody who gets backscatter: what
    the route brings back for him is told from it in the quarantine alone. With on_forged = "quarantine", or held in
    that phase until the route is in order and its last bounces have come, none is lost.
    """
    wanted = SCENARIOS[scenario]
    diary = asyncio.run(lived(Site(tmp_path, wanted, world, mailboxes), wanted))
    reached, table = diary.reached(), diary.table()
    told = ", ".join(f"{phase} {day}" for phase, day in reached.items())
    record_testsuite_property(f"days of the phases: {scenario}", told)

    assert reached == {
        "observe": 0,
        "mark": wanted.phase_days,
        "quarantine": wanted.quarantine,
        "enforce": wanted.enforce,
    }, table
    assert diary.phases == sorted(diary.phases, key=list(Phase).index), table
    assert diary.faults == [], table
    for kind in GENUINE:
        assert diary.ends(kind).keys() == {"delivered"}, f"{kind}: {table}"

    # The days were what they are said to have been.
    assert set(diary.ends("bounce of signed mail")["delivered"]) == set(range(DAYS))
    assert set(diary.ends("reply to signed mail")["delivered"]) == set(range(1, DAYS))
    assert set(diary.ends("in flight at the start")["delivered"]) == set(range(7))
    begun = (0, *ROTATIONS)
    assert diary.keys == [b"%d" % (2 + sum(day >= each for each in begun)) for day in each_message()]
    assert diary.stamps == [b"%03d" % ((BEGIN.number + 7 + day) % CYCLE) for day in each_message()]

    # What is forged fares worse from phase to phase, and so does what cannot be told from it.
    last = {"discard": "gone", "reject": "refused", "quarantine": "kept"}[wanted.on_forged]
    for kind in (*FORGOTTEN, "forged, no tag", "forged, wrong tag"):
        for fate, days in diary.ends(kind).items():
            for day in days:
                expected = "delivered" if day < wanted.quarantine else "kept" if day < wanted.enforce else last
                assert fate == expected, f"{kind} on day {day} is {fate}: {table}"
    for kind in FORGOTTEN:
        ends = diary.ends(kind)
        assert max(day for days in ends.values() for day in days) == FORGOTTEN_UNTIL - 1 + LATEST
        lost = len(ends.get("gone", ())) + len(ends.get("refused", ()))
        assert bool(lost) is (wanted.on_forged != "quarantine" and not wanted.held), f"{kind}: {table}"

    # Whoever looks in time finds them, and can release what is kept.
    for day in wanted.looks:
        assert NEWS.decode() in diary.never_seen[day]
        assert SHARED.decode() not in diary.never_seen[day]
        assert SHARED.decode() in diary.signing[day]
    assert {NEWS, SHARED} <= diary.kept_for


def each_message() -> Iterator[int]:
    """Yield the day of each message that the site sends."""
    for day in range(DAYS):
        yield from [day] * MESSAGES_A_DAY
