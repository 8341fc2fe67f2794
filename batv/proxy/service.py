"""The service: listeners, settings and rings that are read anew while it runs, and the end without loss.

Rules:

1. A reload takes all that is new or nothing: where anything in it is wrong, everything stays as it was, and the log
   says why.
2. A ring file that changed is picked up within 5 seconds without being asked. A ring file that vanished is not: what
   verifies live tags goes only when the administrator says so, by SIGHUP or restart.
3. At the end no new connection is taken, clients without a transaction are sent away at once, the others get
   `drain_seconds`; what is not done then stays with its client.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from batv.access import Access, Holder, within
from batv.clock import ClockJudge, Reading, newest_day
from batv.config import Endpoint, InboundSettings, NextHopTls, OutboundSettings
from batv.day import Day
from batv.errors import BatvError, CannotCreateError, ConfigError, NoSigningKeyError
from batv.guessing import Guessing
from batv.net.destination import Link
from batv.net.door import Door
from batv.net.listening import ACCEPTED_AT_ONCE, cannot_listen, open_to_group, refuse_taken, set_bounds
from batv.net.next_hop import NextHop
from batv.net.tls import client_context, server_context
from batv.observe.event import Direction, Level, Notice
from batv.proxy.rollout import Rollout
from batv.proxy.session import ProxySession
from batv.proxy.side import Side
from batv.smtp.auth import parse_credentials
from batv.smtp.reply import Reply
from batv.stage import SigningStage, VerifyingStage
from batv.store.clock import TrustStore
from batv.store.files import read_private
from batv.store.journal import Journal
from batv.store.quarantine import Quarantine

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from batv.config import Settings
    from batv.keyring import KeyRings
    from batv.net.dnsbl import Blocklists
    from batv.observe.event import Event, Observer
    from batv.proxy.workers import SharedListeners
    from batv.rollout import Progress
    from batv.smtp.origin import Origin
    from batv.stage import Stage
    from batv.store.ledger import Ledger
    from batv.store.rings import RingStore

__all__ = ["Service", "Source", "link_of"]

_ROLLOUT_SECONDS: Final = 5.0
"""Between two looks at how far the domains have come."""

_EVIDENCE_SECONDS: Final = 60.0
"""After so long, what was counted is written down at the latest."""

_WATCH_SECONDS: Final = 2.0
"""Between two looks at the ring files; well under the 5 seconds that are promised."""

_LEDGER_SECONDS: Final = 60.0
"""Between two times that the log says what is not in the ledger."""

_OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_OUT_OF_FILES_SECONDS: Final = 60.0
_OTHER_FILES: Final = 32
"""Listeners, journal, quarantine, what the event loop needs, and connections that are being sent away."""

_CREDENTIALS_OCTETS: Final = 4096
_NOT_ALLOWED: Final = Reply.of(554, "5.7.1 Access denied")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the service gets its settings and rings from, each time anew, and its listeners.

    Attributes:
        settings: reads the settings; raises BatvError where they are wrong.
        store: returns the store of the rings that the settings name.
        listeners: those that this process has in common with others, and then it is not for this process to say where
            they are, and that all is ready; None for its own.
    """

    settings: Callable[[], Settings]
    store: Callable[[Settings], RingStore]
    listeners: SharedListeners | None = None


@dataclass(slots=True)
class _Keys:
    """The rings as they are now, and what their files looked like when they were read."""

    store: RingStore
    rings: KeyRings
    fingerprint: Hashable
    read_at: float
    newest: Day | None


class _Place(NamedTuple):
    """An address of the settings on which to listen, and whether with TLS from the first octet."""

    endpoint: Endpoint
    tls: bool


@dataclass(frozen=True, slots=True)
class _Ends:
    """What the settings and the files that they name say of both ends of a proxy.

    Attributes:
        tls: what listeners do TLS with; None if they do none.
        access: whose mail is taken.
        link: how the next hop is spoken to.
    """

    tls: ssl.SSLContext | None
    access: Access
    link: Link


@dataclass(slots=True)
class _Proxy:
    direction: Direction
    side: Side
    door: Door
    servers: dict[_Place, asyncio.Server] = field(default_factory=dict)

    def close(self, place: _Place, *, leave_file: bool = False) -> None:
        """Stop listening there, and leave no socket file behind that is ours."""
        self.servers.pop(place).close()
        if place.endpoint.path and not leave_file:
            Path(place.endpoint.path).unlink(missing_ok=True)


class Service:
    """Runs the proxies in this process.

    Args:
        source: where settings and rings come from.
        directions: which proxies to run; those that the settings do not have are an error.
        observer: told of every event.
        clock: returns POSIX seconds.
        stages: makes what each proxy asks about paths; None for signing and verifying.
    """

    def __init__(
        self,
        source: Source,
        directions: Sequence[Direction],
        observer: Observer,
        clock: Callable[[], float] = time.time,
        stages: Callable[[Settings, Direction], Stage] | None = None,
    ) -> None:
        self._source = source
        self._directions = directions
        self._observer = observer
        self._clock = clock
        self._judge = ClockJudge()
        self._doubt = ""
        self._stages = stages or self._stage
        self._shared = source.listeners
        self._settings = source.settings()
        self._rollout = Rollout(self._settings)
        self._keys = self._read_keys(self._settings)
        self._journal = self._open_journal(self._settings)
        self._blocklists = self._open_blocklists(self._settings)
        self._ledger = self._open_ledger(self._settings, self._keys.store)
        self._quarantine = _quarantine(self._settings)
        self._guessing = _guessing(self._settings)
        self._trust = TrustStore(Path(self._settings.state.directory))
        self._trust_fingerprint = self._read_trust(given_now=False)
        self._proxies = [
            self._proxy(direction, _ends(self._listener_settings(self._settings, direction)))
            for direction in directions
        ]
        self._most_connections = _most_connections()
        self._says_out_of_files_from = 0.0
        self._stopping = asyncio.Event()
        self._hangup = asyncio.Event()
        self._refused_fingerprint: Hashable = None
        if self._rollout.wanted:
            self.look_at_rollout()

    # What a shell calls.

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            UnavailableError: an address is taken, or is not ours.
        """
        self.clock_doubt()
        self._begin_ledger()
        try:
            for proxy in self._proxies:
                await self._listen(proxy, _places(self._listener_settings(self._settings, proxy.direction)))
        except BatvError:
            if self._ledger is not None:
                self._ledger.close()
            raise
        if self._shared is None:
            self._notice(Level.INFO, "ready", keys=self._keys.store.directory)

    def addresses(self, direction: Direction) -> list[Endpoint]:
        """Return where a proxy listens, with the ports that the system chose."""
        found = []
        for proxy in self._proxies:
            if proxy.direction is direction:
                for place, server in proxy.servers.items():
                    found.extend(_bound(place.endpoint, server))
        return found

    def handle_signals(self) -> None:
        """Let SIGTERM and SIGINT stop the service, and SIGHUP reload it; called before it says that it is ready."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)

    async def run(self) -> None:
        """Serve until `stop` is called, then drain."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._fault_in_loop)
        watch = [loop.create_task(self._watch_rings()), loop.create_task(self._watch_hangup())]
        watch.append(loop.create_task(self._watch_rollout()))
        watch.append(loop.create_task(self._watch_ledger()))
        try:
            await self._stopping.wait()
        finally:
            for task in watch:
                task.cancel()
            await self.drain()

    def stop(self) -> None:
        """Let `run` come to its end."""
        self._stopping.set()

    async def reload(self) -> bool:
        """Read settings and rings anew; return whether they are in force."""
        try:
            # Whatever the new settings are worth: a journal that was renamed is not to be written to any more.
            self._journal.reopen()
        except BatvError as error:
            self._notice(Level.ERROR, "journal not begun anew", cause=error)
        journal = None
        try:
            settings = self._source.settings()
            ends = {direction: _ends(self._listener_settings(settings, direction)) for direction in self._directions}
            keys = self._read_keys(settings)
            if (settings.state, settings.journal) != (self._settings.state, self._settings.journal):
                journal = self._open_journal(settings)
            quarantine = self._quarantine
            if settings.state.directory != self._settings.state.directory:
                # It is counted first, and a million files take seconds.
                quarantine = await asyncio.to_thread(_quarantine, settings)
            blocklists = self._blocklists
            if (settings.dns, settings.dnsbl) != (self._settings.dns, self._settings.dnsbl):
                blocklists = self._open_blocklists(settings)
            opened = await self._open_listeners(settings)
        except BatvError as error:
            if journal is not None:
                journal.close()
            self._notice(Level.ERROR, "reload refused, the old settings and keys stay", cause=error)
            return False
        if settings.guessing != self._settings.guessing:
            self._guessing = _guessing(settings)
        self._settings, self._keys, self._quarantine = settings, keys, quarantine
        before, self._rollout = self._rollout, Rollout(settings)
        self._rollout.take_over(before)
        quarantine.max_octets = settings.state.quarantine_max_octets
        self._trust = TrustStore(Path(settings.state.directory))
        # What was asked of the old lists comes to its end by itself.
        self._blocklists = blocklists
        before_ledger, self._ledger = self._ledger, self._open_ledger(settings, keys.store)
        self._begin_ledger()
        if journal is not None:
            self._journal.close()
            self._journal = journal
        for proxy in self._proxies:
            self._apply(proxy, ends[proxy.direction], opened[proxy.direction])
        if before_ledger is not None:
            await asyncio.to_thread(before_ledger.close)
            if self._ledger is not None:
                self._ledger.take_over(before_ledger)
        if self._rollout.wanted:
            self.look_at_rollout()
        self._notice(Level.INFO, "reloaded", keys=keys.store.directory)
        return True

    async def drain(self) -> None:
        """Take no more connections, let transactions end, and close."""
        self._notice(Level.INFO, "stopping", drain_seconds=self._settings.smtp.drain_seconds)
        doors = [proxy.door for proxy in self._proxies]
        for proxy in self._proxies:
            for place in list(proxy.servers):
                proxy.close(place, leave_file=self._shared is not None)
            proxy.door.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.smtp.drain_seconds):
                await asyncio.gather(*(door.emptied() for door in doors))
        for door in doors:
            await door.cut()
        if self._rollout.wanted:
            self.look_at_rollout()
        for proxy in self._proxies:
            proxy.side.next_hop.close()
        if self._blocklists is not None:
            await self._blocklists.close()
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.close)
            self._tell_of_ledger()
        self._journal.close()
        self._notice(Level.INFO, "stopped")

    # Parts.

    def _proxy(self, direction: Direction, ends: _Ends) -> _Proxy:
        settings = self._settings
        listener = self._listener_settings(settings, direction)
        hostname = settings.smtp.hostname or socket.gethostname()
        side = Side(
            direction=direction,
            stage=self._stages(settings, direction),
            rings=lambda: self._keys.rings,
            next_hop=NextHop(listener.next_hop, settings.next_hop, hostname, ends.link),
            access=ends.access,
            xclient_from=listener.xclient_from,
            xforward_from=listener.xforward_from,
            journal=self._journal,
            quarantine=self._quarantine,
            observer=self._tell,
            settings=settings.smtp,
            hostname=hostname,
            clock=self._clock,
            day=lambda: Day.at(self._clock()),
            clock_doubt=self.clock_doubt,
            blocklists=self._blocklists if direction is Direction.INBOUND else None,
            guessing=self._guessing if direction is Direction.INBOUND else None,
            ledger=self._ledger,
        )
        door = Door(
            hostname, settings.smtp, self._observer, lambda address, origin: self._converse(proxy, address, origin)
        )
        door.tls, door.proxy_protocol_from = ends.tls, listener.proxy_protocol_from
        door.max_connections_per_client = _most_of_a_client(listener)
        door.crowded = self._crowded
        proxy = _Proxy(direction, side, door)
        return proxy

    def _crowded(self) -> bool:
        return sum(len(proxy.door.connections) for proxy in self._proxies) > self._most_connections

    def _converse(self, proxy: _Proxy, address: str, origin: Origin) -> ProxySession | Reply:
        side = proxy.side
        # A certificate, or a peer that speaks for others, may say more; then it is settled at MAIL. A load balancer
        # that speaks for itself looks whether we are there.
        speakers = (*side.xclient_from, *proxy.door.proxy_protocol_from)
        if side.access.by_network(address) or side.access.holders or within(address, speakers):
            return ProxySession(side, address, origin)
        self._notice(Level.WARNING, "client not allowed", direction=proxy.direction, client=address)
        return _NOT_ALLOWED

    def _apply(self, proxy: _Proxy, ends: _Ends, opened: dict[_Place, asyncio.Server]) -> None:
        settings = self._settings
        listener = self._listener_settings(settings, proxy.direction)
        for place in set(proxy.servers) - set(_places(listener)):
            proxy.close(place)
        proxy.servers.update(opened)
        for place, server in opened.items():
            self._tell_where(proxy, place, server)
        side, door = proxy.side, proxy.door
        side.hostname = door.hostname = settings.smtp.hostname or socket.gethostname()
        side.settings = door.settings = settings.smtp
        door.tls, door.proxy_protocol_from = ends.tls, listener.proxy_protocol_from
        door.max_connections_per_client = _most_of_a_client(listener)
        side.stage = self._stages(settings, proxy.direction)
        side.access = ends.access
        side.xclient_from, side.xforward_from = listener.xclient_from, listener.xforward_from
        side.journal = self._journal
        side.blocklists = self._blocklists if proxy.direction is Direction.INBOUND else None
        side.guessing = self._guessing if proxy.direction is Direction.INBOUND else None
        side.ledger = self._ledger
        side.quarantine = self._quarantine
        next_hop = NextHop(listener.next_hop, settings.next_hop, side.hostname, ends.link)
        if not side.next_hop.same_as(next_hop):
            side.next_hop.close()
            side.next_hop = next_hop

    @staticmethod
    def _listener_settings(settings: Settings, direction: Direction) -> OutboundSettings | InboundSettings:
        found = settings.outbound if direction is Direction.OUTBOUND else settings.inbound
        if found is None:
            raise ConfigError(
                f"there is no [{direction}] section", f"give it listen and next_hop, or do not run {direction}"
            )
        return found

    async def _listen(self, proxy: _Proxy, places: Sequence[_Place]) -> None:
        for place in places:
            proxy.servers[place] = await self._server(proxy, place)
            if self._shared is None:
                self._tell_where(proxy, place, proxy.servers[place])

    async def _server(self, proxy: _Proxy, place: _Place) -> asyncio.Server:
        endpoint, tls = place
        shared = self._shared.take(proxy.direction, endpoint, tls=tls) if self._shared is not None else None
        server = await _server(partial(proxy.door.connection, encrypted=tls), endpoint, shared)
        set_bounds(server)
        return server

    def _tell_where(self, proxy: _Proxy, place: _Place, server: asyncio.Server) -> None:
        for bound in _bound(place.endpoint, server):
            fields = {"direction": proxy.direction, "address": bound, **({"tls": "yes"} if place.tls else {})}
            self._notice(Level.INFO, "listening", **fields)

    async def _open_listeners(self, settings: Settings) -> dict[Direction, dict[_Place, asyncio.Server]]:
        opened: dict[Direction, dict[_Place, asyncio.Server]] = {}
        try:
            for proxy in self._proxies:
                servers = opened.setdefault(proxy.direction, {})
                for place in _places(self._listener_settings(settings, proxy.direction)):
                    if place not in proxy.servers:
                        servers[place] = await self._server(proxy, place)
        except BatvError:
            for servers in opened.values():
                for server in servers.values():
                    server.close()
            raise
        return opened

    def _open_journal(self, settings: Settings) -> Journal:
        directory = Path(settings.state.directory)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CannotCreateError(
                f"cannot make the folder {directory}: {error.strerror}", "make it, or set state.directory"
            ) from error
        return Journal(directory, fsync=settings.journal.fsync)

    def _open_ledger(self, settings: Settings, store: RingStore) -> Ledger | None:
        """Return the ledger, or None where none is wanted, or none can be had: mail goes on without one."""
        if not settings.ledger.enabled:
            return None
        from batv.store.ledger import Ledger, LedgerLimits  # noqa: PLC0415 -- SQLite is memory that few sites need

        options, policy = settings.ledger, settings.policy
        try:
            secret = store.ledger_secret()
        except (BatvError, FileNotFoundError) as error:
            self._notice(Level.ERROR, "ledger not opened: no reply is rescued", cause=error)
            return None
        return Ledger(
            Path(settings.state.directory) / "ledger",
            secret,
            lambda: Day.at(self._clock()),
            LedgerLimits(options.keep_days, options.max_octets, options.max_rescues, options.max_bounces_per_recipient),
            lambda domain: policy.for_domain(domain) is not None,
        )

    def _begin_ledger(self) -> None:
        """Let the ledger have a mark, if mail is to be noted there that leaves."""
        if self._ledger is not None and Direction.OUTBOUND in self._directions:
            self._ledger.begin()

    def _open_blocklists(self, settings: Settings) -> Blocklists | None:
        if not settings.dnsbl.zones or Direction.INBOUND not in self._directions:
            return None
        from batv.net.dnsbl import Blocklists  # noqa: PLC0415 -- questions to the DNS cost memory that few sites need
        from batv.net.resolver import Resolver  # noqa: PLC0415 -- as above

        seconds = settings.dnsbl.seconds
        resolver = Resolver(settings.dns.servers, seconds)
        return Blocklists(settings.dnsbl.zones, resolver, seconds, self._list_fails)

    def _list_fails(self, zone: str, fault: BatvError) -> None:
        self._notice(
            Level.WARNING, "a list is left alone for a while, and nobody is listed there", zone=zone, cause=fault
        )

    # Keys.

    def _read_keys(self, settings: Settings) -> _Keys:
        store = self._source.store(settings)
        fingerprint = store.fingerprint()
        domains = settings.policy.domains
        rings = store.read_all(settings.policy.own_rings(store.domains()))
        today = Day.at(self._clock())
        for domain in domains:
            try:
                ring = rings.ring_for(domain)
            except NoSigningKeyError as error:
                # Not an answer to a question, as for the commands: the service lacks what its settings promise.
                raise ConfigError(error.what, error.remedy) from error
            if Direction.OUTBOUND in self._directions and not ring.signs(today):
                self._notice(
                    Level.ERROR, "no key signs: mail gets 451 until one does", domain=domain.decode(), day=today
                )
        return _Keys(store, rings, fingerprint, self._clock(), newest_day(rings))

    # Rollout.

    def _stage(self, settings: Settings, direction: Direction) -> SigningStage | VerifyingStage:
        if direction is Direction.INBOUND:
            return VerifyingStage(self._rollout.applied(settings.policy))
        local_only = settings.outbound is not None and settings.outbound.require_local_source
        return SigningStage(settings.policy, settings.tags.style, local_only)

    def _tell(self, event: Event) -> None:
        if self._rollout.wanted:
            self._rollout.observe(event)
        self._observer(event)

    def _lifetime(self, domain: str) -> int:
        """Return the days for which a tag of a domain is good, by the key with which it is good for longest."""
        ring = self._keys.rings.ring_for(domain.encode())
        return max((key.lifetime for key in ring.keys), default=0)

    def look_at_rollout(self) -> None:
        """Write down what was counted, and let the domains be judged as far as they have come."""
        counted = self._rollout.take()
        try:
            moved = self._rollout.look(counted, Day.at(self._clock()), self._lifetime)
        except BatvError as error:
            self._rollout.give_back(counted)
            self._notice(Level.ERROR, "rollout not written, each domain stays where it is", cause=error)
            return
        self._tell_moved(moved)

    def _tell_moved(self, moved: Sequence[tuple[str, Progress]]) -> None:
        if self._rollout.unheard is not None:
            self._notice(Level.ERROR, "the last probe is not heard of", cause=self._rollout.unheard)
        for domain, progress in moved:
            self._notice(Level.INFO, "rollout", domain=domain, phase=progress.phase.value, reason=progress.reason)
        if moved:
            for proxy in self._proxies:
                proxy.side.stage = self._stages(self._settings, proxy.direction)

    async def _watch_rollout(self) -> None:
        loop = asyncio.get_running_loop()
        written = loop.time()
        while True:
            await asyncio.sleep(_ROLLOUT_SECONDS)
            if not self._rollout.wanted or (not self._rollout.stale and loop.time() - written < _EVIDENCE_SECONDS):
                continue
            written = loop.time()
            rollout, counted = self._rollout, self._rollout.take()
            try:
                # In a thread: who changes the file at the same moment is waited for.
                moved = await asyncio.to_thread(rollout.look, counted, Day.at(self._clock()), self._lifetime)
            except BatvError as error:
                rollout.give_back(counted)
                self._notice(Level.ERROR, "rollout not written, each domain stays where it is", cause=error)
            except Exception as error:  # noqa: BLE001 -- the next look must come all the same
                self._fault("error in the rollout", error)
            else:
                self._tell_moved(moved)

    async def _watch_ledger(self) -> None:
        """Say what is not in the ledger: soon, and then once a minute at most."""
        seconds = _WATCH_SECONDS
        while True:
            await asyncio.sleep(seconds)
            seconds = _LEDGER_SECONDS if self._tell_of_ledger() else _WATCH_SECONDS

    def _tell_of_ledger(self) -> bool:
        notices = self._ledger.notices() if self._ledger is not None else []
        for notice in notices:
            self._observer(notice)
        return bool(notices)

    async def _watch_hangup(self) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            try:
                await self.reload()
            except Exception as error:  # noqa: BLE001 -- the next SIGHUP must be heard all the same
                self._fault("error in a reload", error)

    async def _watch_rings(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                self.look_at_rings()
            except Exception as error:  # noqa: BLE001 -- the next change must be seen all the same
                self._fault("error in reading key rings", error)
            try:
                self.look_at_clock()
            except Exception as error:  # noqa: BLE001 -- as above
                self._fault("error in looking at the clock", error)

    def look_at_rings(self) -> None:
        """Read the rings anew if their files have changed; keep the old ones where the new are not right."""
        keys = self._keys
        fingerprint = keys.store.fingerprint()
        if fingerprint == keys.fingerprint:
            return
        try:
            rings = keys.store.read_all(self._settings.policy.own_rings(keys.store.domains()))
            lost = {str(keys.store.path(domain)) for domain in set(keys.rings.own) - set(rings.own)}
            if rings.default is None and keys.rings.default is not None:
                lost.add(str(keys.store.path(None)))
            if lost:
                what = f"{'a key ring has' if len(lost) == 1 else 'key rings have'} vanished, {', '.join(sorted(lost))}"
                raise ConfigError(what, "restore what is missing, or send SIGHUP to go on without it")
        except BatvError as error:
            if fingerprint != self._refused_fingerprint:
                self._refused_fingerprint = fingerprint
                age = round(self._clock() - keys.read_at)
                self._notice(Level.ERROR, "key rings not read, the old ones stay", age_seconds=age, cause=error)
            return
        self._keys = _Keys(keys.store, rings, fingerprint, self._clock(), newest_day(rings))
        self._notice(Level.INFO, "key rings read", keys=keys.store.directory)

    # The clock.

    def clock_doubt(self) -> str:
        """Return why the clock cannot be believed now, as a clause; empty if it can. The log is told of each change."""
        doubt = self._judge.doubt(self._reading(), self._keys.newest)
        if doubt and not self._doubt:
            remedy = "set the clock, or say with 'batv clock trust' that it is right"
            said = "the clock cannot be right: what would be signed, and forged bounces, get 451"
            self._notice(Level.ERROR, said, cause=f"{doubt}: {remedy}")
        elif self._doubt and not doubt:
            self._notice(Level.INFO, "the clock is believed again", day=Day.at(self._clock()))
        self._doubt = doubt
        return doubt

    def _reading(self) -> Reading:
        # A counter that goes on while the machine sleeps: else each sleep would look like a jump.
        return Reading(self._clock(), time.clock_gettime(time.CLOCK_BOOTTIME))

    def look_at_clock(self) -> None:
        """Hear whether somebody has said that the clock is right, and look at it."""
        if self._trust.fingerprint() != self._trust_fingerprint:
            self._trust_fingerprint = self._read_trust(given_now=True)
        self.clock_doubt()

    def _read_trust(self, *, given_now: bool) -> Hashable:
        fingerprint = self._trust.fingerprint()
        try:
            trust = self._trust.read()
        except BatvError as error:
            self._notice(Level.ERROR, "nobody's word on the clock is heard", cause=error)
        else:
            now = self._reading()
            self._judge.trust(trust, now if given_now and trust is not None else None)
        return fingerprint

    def _fault_in_loop(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
        """Say in a line what the event loop would say in a traceback, which could show values."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _OUT_OF_FILES:
            # It takes no connections for a second then, and finds the same again for as long as a flood lasts.
            if loop.time() >= self._says_out_of_files_from:
                self._says_out_of_files_from = loop.time() + _OUT_OF_FILES_SECONDS
                self._notice(Level.WARNING, "too many connections", cause=error.strerror)
            return
        self._notice(
            Level.ERROR, "error in the event loop", error=type(error).__name__, cause=context.get("message", "?")
        )

    def _fault(self, what: str, error: Exception) -> None:
        # Its text is left out: it could hold a secret.
        self._notice(Level.ERROR, what, error=type(error).__name__)

    def _notice(self, level: Level, what: str, **fields: object) -> None:
        self._observer(Notice(level, what, fields))


def _most_of_a_client(listener: OutboundSettings | InboundSettings) -> int:
    return listener.max_connections_per_client if isinstance(listener, InboundSettings) else 0


def _most_connections() -> int:
    """Return how many clients the process can serve with the files that it may open: a client needs two."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else max((limit - _OTHER_FILES) // 2, 1)


def _guessing(settings: Settings) -> Guessing | None:
    wanted = settings.guessing
    return Guessing(wanted.max_failures, wanted.window_seconds) if wanted.max_failures else None


def _quarantine(settings: Settings) -> Quarantine:
    return Quarantine(Path(settings.state.directory) / "quarantine", settings.state.quarantine_max_octets)


def _places(listener: OutboundSettings | InboundSettings) -> list[_Place]:
    return [_Place(each, tls=False) for each in listener.listen] + [
        _Place(each, tls=True) for each in listener.listen_tls
    ]


def _ends(listener: OutboundSettings | InboundSettings) -> _Ends:
    """Read the files that the settings of a proxy name; raises BatvError where one is not right."""
    tls = None
    if listener.tls_certificate is not None:
        tls = server_context(listener.tls_certificate, listener.tls_key, listener.tls_client_ca)
    access = Access()
    if isinstance(listener, OutboundSettings):
        holders = tuple(Holder(each.name, each.spellings, each.tenant) for each in listener.client_certificates)
        access = Access(listener.clients, holders)
    return _Ends(tls, access, link_of(listener))


def link_of(listener: OutboundSettings | InboundSettings) -> Link:
    """Return how the next hop of a proxy is spoken to, with the files that its settings name.

    Raises:
        BatvError: one of the files is not right.
    """
    context, credentials = None, None
    if listener.next_hop_tls is not NextHopTls.OFF:
        context = client_context(listener.next_hop_tls, listener.next_hop_tls_ca)
    if listener.next_hop_credentials is not None:
        path = Path(listener.next_hop_credentials)
        try:
            text = read_private(path, _CREDENTIALS_OCTETS).decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8", "write user and password there, each on a line") from error
        credentials = parse_credentials(text, str(path))
    return Link(listener.next_hop_identity, listener.next_hop_tls, context, listener.next_hop_tls_name, credentials)


def _bound(endpoint: Endpoint, server: asyncio.Server) -> list[Endpoint]:
    if endpoint.path:
        return [endpoint]
    return [Endpoint(host=name[0], port=name[1]) for name in (each.getsockname() for each in server.sockets)]


async def _server(
    connection: Callable[[], asyncio.Protocol], endpoint: Endpoint, shared: Endpoint | socket.socket | None = None
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    try:
        if isinstance(shared, socket.socket):
            return await loop.create_server(connection, sock=shared, backlog=ACCEPTED_AT_ONCE)
        if endpoint.path:
            refuse_taken(endpoint)
            server = await loop.create_unix_server(connection, endpoint.path, backlog=ACCEPTED_AT_ONCE)
            open_to_group(endpoint)
            return server
        where = shared or endpoint
        return await loop.create_server(
            connection, where.host, where.port, backlog=ACCEPTED_AT_ONCE, reuse_port=shared is not None
        )
    except (OSError, UnicodeError) as error:  # the latter for what no host can be called
        raise cannot_listen(endpoint, error) from error
