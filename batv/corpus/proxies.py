"""The inbound proxy that a replay is scored on: one of our own on loopback, or one that runs.

Our own takes policy, rings and limits from the configuration. It listens on a port that the system chooses, its next
hop is the sink, journal and quarantine are in a folder that is gone afterwards, and its clock stands at noon of the
corpus's day, so that a corpus says the same on any later day. What is configured is neither read nor touched.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.config import Endpoint, InboundSettings
from batv.corpus.classes import UNKNOWN_USER
from batv.corpus.manifest import About, Corpus, Ending, Entry, Recipient
from batv.corpus.replay import Speed, replay
from batv.day import SECONDS_A_DAY
from batv.errors import UnavailableError
from batv.observe.event import Direction, TransactionEnded, printable
from batv.proxy.service import Service, Source
from batv.store.ledger import Ledger, LedgerLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from batv.config import Settings
    from batv.corpus.manifest import Answered
    from batv.corpus.sink import Sink
    from batv.day import Day
    from batv.observe.event import Event
    from batv.stage import Stage
    from batv.store.rings import RingStore

__all__ = ["Finding", "Findings", "Proxy", "key_of", "own_proxy", "running_proxy"]

_LOOPBACK: Final = Endpoint(host="127.0.0.1", port=0)
_NOON: Final = SECONDS_A_DAY // 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What the proxy says of one recipient.

    Attributes:
        verdict: what it found.
        disposition: what it did.
        reason: its clause for the log.
    """

    verdict: str
    disposition: str
    reason: str


Key = tuple[str, str, str]
"""Client address, Message-ID and forward path, the latter two as the journal prints them."""


@dataclass(slots=True)
class Findings:
    """What the proxy says of all recipients, and what it has put on record.

    Attributes:
        told: what was found for each, in the order of the transactions.
        recorded: how often each is in the journal; None where there is no journal to be read.
    """

    told: dict[Key, deque[Finding]] = field(default_factory=dict)
    recorded: Counter[Key] | None = None

    def observe(self, event: Event) -> None:
        """Take in what the service tells."""
        if isinstance(event, TransactionEnded):
            for each in event.recipients:
                key = (event.client, event.message_id, each.forward_path)
                self.add(key, Finding(each.verdict.value, each.disposition.value, each.reason))

    def add(self, key: Key, finding: Finding) -> None:
        """Take in one finding."""
        self.told.setdefault(key, deque()).append(finding)

    def take(self, key: Key) -> Finding | None:
        """Return what was found for a recipient.

        A client's transactions come in the order of the manifest. What has no Message-ID (a call-out) is told apart by
        that alone: tags are cut short in the records. What has one may have come twice (452), and the last counts.
        """
        found = self.told.get(key)
        if not found:
            return None
        return found[-1] if key[1] else found.popleft()


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy to replay against.

    Attributes:
        endpoint: where it listens.
        state: folder of its journal and quarantine.
        findings: what it says while the replay runs.
        old_octets: octets of the journal that were there before.
        old_quarantine: names that were in the quarantine before.
    """

    endpoint: Endpoint
    state: Path
    findings: Findings
    old_octets: int = 0
    old_quarantine: frozenset[str] = frozenset()

    def read_journal(self) -> None:
        """Add what the journal holds by now to the findings."""
        path = self.state / "journal.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self.old_octets)
            lines = file.read().splitlines()
        recorded: Counter[Key] = Counter()
        observed = bool(self.findings.told)
        for record in map(json.loads, lines):
            key = (record["client"], record["message_id"], record["forward_path"])
            recorded[key] += 1
            if not observed:
                self.findings.add(key, Finding(record["verdict"], record["disposition"], record["reason"]))
        self.findings.recorded = recorded

    def quarantined(self) -> list[bytes]:
        """Return the messages that came into the quarantine, with the fields that it puts before them."""
        folder = self.state / "quarantine" / "new"
        if not folder.is_dir():
            return []
        return [path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in self.old_quarantine]


@asynccontextmanager
async def own_proxy(  # noqa: PLR0913 -- what a proxy depends on
    settings: Settings,
    store: Callable[[Settings], RingStore],
    sink: Sink,
    day: Day,
    *,
    stages: Callable[[Settings, Direction], Stage] | None = None,
    sent: Iterable[Answered] = (),
) -> AsyncIterator[Proxy]:
    """Run an inbound proxy of our own for as long as the context lasts.

    Args:
        settings: policy, rings and limits.
        store: returns the store of the rings.
        sink: the next hop.
        day: the day on which it runs.
        stages: makes what judges; None for what the product judges with.
        sent: what its ledger is to know, if it has one.
    """
    with tempfile.TemporaryDirectory(prefix="batv-corpus-") as folder:
        state = Path(folder) / "state"
        # How the site listens and reaches its mail store is nothing to the sink: what it lets through is.
        wanted = settings.inbound or InboundSettings(listen=(_LOOPBACK,), next_hop=(sink.endpoint,))
        inbound = InboundSettings(
            listen=(_LOOPBACK,),
            next_hop=(sink.endpoint,),
            relay_domains=wanted.relay_domains,
            exempt_clients=wanted.exempt_clients,
        )
        changed = settings.model_copy(
            update={
                "outbound": None,
                "inbound": inbound,
                # What the settings lead to is scored, not the first day on the way there.
                "domains": {
                    name: each.model_copy(update={"rollout": "off"}) for name, each in settings.domains.items()
                },
                # However many answers to one user a corpus has.
                "ledger": settings.ledger.model_copy(update={"max_rescues": 1 << 30}),
                "state": settings.state.model_copy(update={"directory": str(state)}),
                "smtp": settings.smtp.model_copy(update={"drain_seconds": 1.0, "workers": 1}),
            }
        )
        if changed.ledger.enabled:
            await asyncio.to_thread(_note, changed, store(changed), day, sent)
        findings = Findings()
        source = Source(lambda: changed, store)
        clock = float(day.number * SECONDS_A_DAY + _NOON)
        service = Service(source, (Direction.INBOUND,), findings.observe, lambda: clock, stages)
        await service.start()
        run = asyncio.get_running_loop().create_task(service.run())
        try:
            yield Proxy(service.addresses(Direction.INBOUND)[0], state, findings)
        finally:
            service.stop()
            await run


def _note(settings: Settings, store: RingStore, day: Day, sent: Iterable[Answered]) -> None:
    state, policy = Path(settings.state.directory), settings.policy
    state.mkdir(mode=0o700)
    ledger = Ledger(
        state / "ledger",
        store.ledger_secret(),
        lambda: day,
        LedgerLimits(),
        lambda domain: policy.for_domain(domain) is not None,
    )
    for each in sent:
        ledger.note(each.message_id.encode(), (each.sender.encode(),), (each.recipient.encode(),))
    ledger.close()


async def running_proxy(settings: Settings, endpoint: Endpoint, sink: Sink) -> Proxy:
    """Return a proxy that somebody else runs, once it is sure that its next hop is the sink.

    Args:
        settings: where its journal and quarantine are, as far as they can be read from here.
        endpoint: where it listens.
        sink: the sink, listening.

    Raises:
        UnavailableError: it takes no connection, or hands its mail to somebody else.
    """
    domain = next(iter(settings.domains), "example.com").replace("*", "below", 1)
    path = f"<{UNKNOWN_USER}-probe@{domain}>"
    probe = Entry("", "", "", "127.0.0.1", "probe.example", "<>", "", (Recipient(path),), Ending.RSET)
    await replay(Corpus(Path(), About(None), (probe,)), endpoint, Speed(1), lambda _: None)
    if path.encode() not in sink.asked:
        raise UnavailableError(
            f"the proxy at {endpoint} does not ask the sink at {sink.endpoint}",
            f"set its next_hop to {sink.endpoint} for the time of the replay",
        )
    state = Path(settings.state.directory)
    journal = state / "journal.jsonl"
    quarantine = state / "quarantine" / "new"
    try:
        octets = journal.stat().st_size if journal.exists() else 0
        names = frozenset(path.name for path in quarantine.iterdir()) if quarantine.is_dir() else frozenset[str]()
    except OSError:
        return Proxy(endpoint, Path("/nonexistent"), Findings())
    return Proxy(endpoint, state, Findings(), octets, names)


def key_of(entry: Entry, message_id: str, recipient: Recipient) -> Key:
    """Return under what a recipient stands in the findings; the Message-ID as the journal prints it."""
    return (entry.client, message_id, printable(recipient.forward_path.encode()))
