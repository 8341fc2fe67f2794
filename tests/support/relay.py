"""A proxy in this process, between a test's client and a test's next hop: fixed day, published ring, loopback.

What the ring signs on the fixed day, or signed on another one, `Signer` makes.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from batv.address import Mailbox
from batv.config import Settings
from batv.day import Day
from batv.keyring import Key, KeyRing, Secret
from batv.observe.event import Direction, Notice
from batv.proxy.service import Service, Source
from batv.signing import DEFAULT_STYLE, Style, sign_with
from batv.store.rings import RingStore, ring_octets
from batv.tag import Placement, take_off

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from batv.observe.event import Event

__all__ = [
    "DOMAIN",
    "FIXED_DAY",
    "LOOPS",
    "RING",
    "SILENT_RING",
    "USUAL",
    "Relay",
    "World",
    "badly_tagged",
    "expired",
    "merged",
    "noon",
    "running",
    "signed",
    "signed_behind",
    "unknown_key",
]

DOMAIN: Final = "example.com"
"""The domain that is ours in tests."""

FIXED_DAY: Final = Day.from_iso("2026-03-10")
"""The day on which tests of the relay take place."""

_SECONDS_A_DAY: Final = 86_400
_EPOCH: Final = Day.from_iso("1970-01-01")


def noon() -> float:
    """Return POSIX seconds at noon of the fixed day, in UTC."""
    return float((FIXED_DAY - _EPOCH) * _SECONDS_A_DAY + _SECONDS_A_DAY // 2)


_BEGUN: Final = Day.from_iso("2026-01-01")
_KEY: Final = Key(3, Secret(b"published: the secret of tests"), _BEGUN, signs_from=_BEGUN)
RING: Final = KeyRing(_BEGUN, (_KEY,))
"""The published ring: key 3 signs."""

SILENT_RING: Final = KeyRing(_BEGUN, (replace(_KEY, signs_from=None),))
"""The same ring before its key signs: tags made with it verify."""

_FOREIGN_KEY: Final = Key(8, Secret(b"published: a key of another site"), _BEGUN, signs_from=_BEGUN)

_EXPIRED_DAYS: Final = 20


@dataclass(frozen=True, slots=True)
class World:
    """What a proxy finds around it.

    Attributes:
        ring: the keys.
        clock: returns POSIX seconds.
    """

    ring: KeyRing = RING
    clock: Callable[[], float] = noon


USUAL: Final = World()
"""The published ring, at noon of the fixed day."""


def _loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop  # noqa: PLC0415 -- optional, as it is for the product
    except ImportError:
        return loops
    loops["uvloop"] = uvloop.new_event_loop
    return loops


LOOPS: Final = _loops()
"""The event loops that the product can run on here, by name."""


def signed(address: bytes, *, key: Key = _KEY, days_ago: int = 0, style: Style = DEFAULT_STYLE) -> bytes:
    """Return the address with a tag, as it was signed that many days before the fixed day."""
    return sign_with(Mailbox.parse(address), key, FIXED_DAY + -days_ago, style).octets


def signed_behind(address: bytes) -> bytes:
    """Return the address with a tag behind the user."""
    return signed(address, style=Style(placement=Placement.SUBADDRESS))


def expired(address: bytes) -> bytes:
    """Return the address with a tag whose days are past."""
    return signed(address, days_ago=_EXPIRED_DAYS)


def unknown_key(address: bytes) -> bytes:
    """Return the address with a tag of a key that is not in the ring."""
    return signed(address, key=_FOREIGN_KEY)


def badly_tagged(address: bytes) -> bytes:
    """Return the address with a tag whose last digit is another."""
    tagged = signed(address)
    taken = take_off(Mailbox.parse(tagged))
    assert taken is not None
    tag = taken.tag.octets
    return tagged.replace(tag, tag[:-1] + (b"0" if tag[-1:] != b"0" else b"1"), 1)


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with others put over them."""
    result = dict(base)
    for name, value in more.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


@dataclass
class Relay:
    """A running proxy.

    Attributes:
        port: where it listens on 127.0.0.1.
        journal: the journal's file.
        quarantine: folder of the messages in quarantine.
        service: the service that runs it.
        events: what its observer was told so far.
        crashes: what the event loop was told of exceptions that nobody caught.
    """

    port: int
    journal: Path
    quarantine: Path
    service: Service
    events: list[Event] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    _drained: bool = False

    async def drain(self) -> None:
        """Stop the proxy as SIGTERM does; harmless when it has stopped."""
        if not self._drained:
            self._drained = True
            await self.service.drain()

    @property
    def errors(self) -> list[str]:
        """Errors of the proxy's own, which no client and no next hop may bring about."""
        own = [event for event in self.events if isinstance(event, Notice) and event.what == "error in a session"]
        return [*map(str, own), *self.crashes]


@asynccontextmanager
async def running(
    folder: Path,
    direction: Direction,
    next_hop_port: int,
    changes: Mapping[str, Any] | None = None,
    world: World = USUAL,
) -> AsyncIterator[Relay]:
    """Run one proxy until the block ends, then drain it.

    Args:
        folder: an empty folder for ring, journal and quarantine.
        direction: which proxy.
        next_hop_port: where the next hop listens on 127.0.0.1.
        changes: settings that differ from these: one domain of ours, limits of two seconds for the next hop.
        world: ring and clock.
    """
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    file = keys / "default.ring"
    file.touch(mode=0o600)
    file.write_bytes(ring_octets(world.ring))
    base = {
        "keys": {"directory": str(keys)},
        "state": {"directory": str(folder / "var")},
        str(direction): {"listen": ["127.0.0.1:0"], "next_hop": f"127.0.0.1:{next_hop_port}"},
        "domains": {DOMAIN: {}},
        "smtp": {"hostname": "proxy.example", "drain_seconds": 1},
        "next_hop": {"command_seconds": 2, "data_seconds": 2, "message_seconds": 2, "connect_seconds": 2},
    }
    settings = Settings.model_validate(merged(base, changes or {}))
    crashes: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: crashes.append(str(context)))
    events: list[Event] = []
    source = Source(lambda: settings, lambda _: RingStore(keys))
    service = Service(source, [direction], events.append, world.clock)
    await service.start()
    port = service.addresses(direction)[0].port
    state = folder / "var"
    relay = Relay(port, state / "journal.jsonl", state / "quarantine" / "new", service, events, crashes)
    try:
        yield relay
    finally:
        await relay.drain()
