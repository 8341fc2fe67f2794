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
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.config import Endpoint
from batv.day import Day
from batv.errors import BatvError, CannotCreateError, ConfigError, NoSigningKeyError
from batv.net.listening import BACKLOG, cannot_listen, open_to_group, refuse_taken
from batv.net.next_hop import NextHop
from batv.net.server import UNIX_CLIENT, Door
from batv.observe.event import Direction, Level, Notice
from batv.proxy.session import ProxySession
from batv.proxy.side import Side
from batv.smtp.reply import Reply
from batv.stage import SigningStage, VerifyingStage
from batv.store.journal import Journal
from batv.store.quarantine import Quarantine

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from batv.config import InboundSettings, OutboundSettings, Settings
    from batv.keyring import KeyRings
    from batv.observe.event import Observer
    from batv.proxy.workers import SharedListeners
    from batv.stage import Stage
    from batv.store.rings import RingStore

__all__ = ["Service", "Source"]

_WATCH_SECONDS: Final = 2.0
"""Between two looks at the ring files; well under the 5 seconds that are promised."""

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


@dataclass(slots=True)
class _Proxy:
    direction: Direction
    side: Side
    door: Door
    networks: Sequence[IPv4Network | IPv6Network] = ()
    servers: dict[Endpoint, asyncio.Server] = field(default_factory=dict)

    def close(self, endpoint: Endpoint, *, leave_file: bool = False) -> None:
        """Stop listening there, and leave no socket file behind unless others listen there still."""
        self.servers.pop(endpoint).close()
        if endpoint.path and not leave_file:
            Path(endpoint.path).unlink(missing_ok=True)


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
        self._stages = stages or _stage
        self._shared = source.listeners
        self._settings = source.settings()
        self._keys = self._read_keys(self._settings)
        self._journal = self._open_journal(self._settings)
        self._proxies = [self._proxy(direction) for direction in directions]
        self._stopping = asyncio.Event()
        self._hangup = asyncio.Event()
        self._refused_fingerprint: Hashable = None

    # What a shell calls.

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            UnavailableError: an address is taken, or is not ours.
        """
        for proxy in self._proxies:
            await self._listen(proxy, self._listener_settings(self._settings, proxy.direction).listen)
        if self._shared is None:
            self._notice(Level.INFO, "ready", keys=self._keys.store.directory)

    def addresses(self, direction: Direction) -> list[Endpoint]:
        """Return where a proxy listens, with the ports that the system chose."""
        found = []
        for proxy in self._proxies:
            if proxy.direction is direction:
                for endpoint, server in proxy.servers.items():
                    found.extend(_bound(endpoint, server))
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
        watch = [loop.create_task(self._watch_rings()), loop.create_task(self._watch_hangup())]
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
            for direction in self._directions:
                self._listener_settings(settings, direction)
            keys = self._read_keys(settings)
            if (settings.state, settings.journal) != (self._settings.state, self._settings.journal):
                journal = self._open_journal(settings)
            opened = await self._open_listeners(settings)
        except BatvError as error:
            if journal is not None:
                journal.close()
            self._notice(Level.ERROR, "reload refused, the old settings and keys stay", cause=error)
            return False
        self._settings, self._keys = settings, keys
        if journal is not None:
            self._journal.close()
            self._journal = journal
        for proxy in self._proxies:
            self._apply(proxy, opened[proxy.direction])
        self._notice(Level.INFO, "reloaded", keys=keys.store.directory)
        return True

    async def drain(self) -> None:
        """Take no more connections, let transactions end, and close."""
        self._notice(Level.INFO, "stopping", drain_seconds=self._settings.smtp.drain_seconds)
        doors = [proxy.door for proxy in self._proxies]
        for proxy in self._proxies:
            for endpoint in list(proxy.servers):
                proxy.close(endpoint, leave_file=self._shared is not None)
            proxy.door.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.smtp.drain_seconds):
                await asyncio.gather(*(door.emptied() for door in doors))
        for door in doors:
            await door.cut()
        for proxy in self._proxies:
            proxy.side.next_hop.close()
        self._journal.close()
        self._notice(Level.INFO, "stopped")

    # Parts.

    def _proxy(self, direction: Direction) -> _Proxy:
        settings = self._settings
        listener = self._listener_settings(settings, direction)
        hostname = settings.smtp.hostname or socket.gethostname()
        side = Side(
            direction=direction,
            stage=self._stages(settings, direction),
            marks=direction is Direction.INBOUND and settings.policy.marks,
            rings=lambda: self._keys.rings,
            next_hop=NextHop(listener.next_hop[0], settings.next_hop, hostname),
            journal=self._journal,
            quarantine=Quarantine(Path(settings.state.directory) / "quarantine"),
            observer=self._observer,
            settings=settings.smtp,
            hostname=hostname,
            clock=self._clock,
            day=lambda: Day.at(self._clock()),
        )
        door = Door(hostname, settings.smtp, self._observer, lambda address: self._converse(proxy, address))
        proxy = _Proxy(direction, side, door, _clients(settings, direction))
        return proxy

    def _converse(self, proxy: _Proxy, address: str) -> ProxySession | Reply:
        if proxy.direction is Direction.OUTBOUND and not _allowed(address, proxy.networks):
            self._notice(Level.WARNING, "client not allowed", direction=proxy.direction, client=address)
            return _NOT_ALLOWED
        return ProxySession(proxy.side, address)

    def _apply(self, proxy: _Proxy, opened: dict[Endpoint, asyncio.Server]) -> None:
        settings = self._settings
        listener = self._listener_settings(settings, proxy.direction)
        for endpoint in set(proxy.servers) - set(listener.listen):
            proxy.close(endpoint)
        proxy.servers.update(opened)
        for endpoint, server in opened.items():
            self._tell_where(proxy, endpoint, server)
        side, door = proxy.side, proxy.door
        side.hostname = door.hostname = settings.smtp.hostname or socket.gethostname()
        side.settings = door.settings = settings.smtp
        side.stage = self._stages(settings, proxy.direction)
        side.marks = proxy.direction is Direction.INBOUND and settings.policy.marks
        side.journal = self._journal
        side.quarantine = Quarantine(Path(settings.state.directory) / "quarantine")
        proxy.networks = _clients(settings, proxy.direction)
        next_hop = NextHop(listener.next_hop[0], settings.next_hop, side.hostname)
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

    async def _listen(self, proxy: _Proxy, endpoints: Sequence[Endpoint]) -> None:
        for endpoint in endpoints:
            proxy.servers[endpoint] = await self._server(proxy, endpoint)
            if self._shared is None:
                self._tell_where(proxy, endpoint, proxy.servers[endpoint])

    async def _server(self, proxy: _Proxy, endpoint: Endpoint) -> asyncio.Server:
        shared = self._shared.take(proxy.direction, endpoint) if self._shared is not None else None
        return await _server(proxy.door, endpoint, shared)

    def _tell_where(self, proxy: _Proxy, endpoint: Endpoint, server: asyncio.Server) -> None:
        for bound in _bound(endpoint, server):
            self._notice(Level.INFO, "listening", direction=proxy.direction, address=bound)

    async def _open_listeners(self, settings: Settings) -> dict[Direction, dict[Endpoint, asyncio.Server]]:
        opened: dict[Direction, dict[Endpoint, asyncio.Server]] = {}
        try:
            for proxy in self._proxies:
                servers = opened.setdefault(proxy.direction, {})
                for endpoint in self._listener_settings(settings, proxy.direction).listen:
                    if endpoint not in proxy.servers:
                        servers[endpoint] = await self._server(proxy, endpoint)
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

    # Keys.

    def _read_keys(self, settings: Settings) -> _Keys:
        store = self._source.store(settings)
        fingerprint = store.fingerprint()
        domains = settings.policy.domains
        rings = store.read_all(domains)
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
        return _Keys(store, rings, fingerprint, self._clock())

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

    def look_at_rings(self) -> None:
        """Read the rings anew if their files have changed; keep the old ones where the new are not right."""
        keys = self._keys
        fingerprint = keys.store.fingerprint()
        if fingerprint == keys.fingerprint:
            return
        try:
            rings = keys.store.read_all(self._settings.policy.domains)
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
        self._keys = _Keys(keys.store, rings, fingerprint, self._clock())
        self._notice(Level.INFO, "key rings read", keys=keys.store.directory)

    def _fault(self, what: str, error: Exception) -> None:
        # Its text is left out: it could hold a secret.
        self._notice(Level.ERROR, what, error=type(error).__name__)

    def _notice(self, level: Level, what: str, **fields: object) -> None:
        self._observer(Notice(level, what, fields))


def _stage(settings: Settings, direction: Direction) -> SigningStage | VerifyingStage:
    if direction is Direction.OUTBOUND:
        return SigningStage(settings.policy, settings.tags.style)
    return VerifyingStage(settings.policy)


def _clients(settings: Settings, direction: Direction) -> Sequence[IPv4Network | IPv6Network]:
    return settings.outbound.clients if direction is Direction.OUTBOUND and settings.outbound is not None else ()


def _allowed(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    if address == UNIX_CLIENT:
        return True  # the mode of the socket says who may connect
    if not address:
        return False
    client = ip_address(address.partition("%")[0])
    mapped = client.ipv4_mapped if isinstance(client, IPv6Address) else None
    return any((mapped or client) in network for network in networks)


def _bound(endpoint: Endpoint, server: asyncio.Server) -> list[Endpoint]:
    if endpoint.path:
        return [endpoint]
    return [Endpoint(host=name[0], port=name[1]) for name in (each.getsockname() for each in server.sockets)]


async def _server(door: Door, endpoint: Endpoint, shared: Endpoint | socket.socket | None = None) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    try:
        if isinstance(shared, socket.socket):
            return await loop.create_server(door.connection, sock=shared, backlog=BACKLOG)
        if endpoint.path:
            refuse_taken(endpoint)
            server = await loop.create_unix_server(door.connection, endpoint.path, backlog=BACKLOG)
            open_to_group(endpoint)
            return server
        where = shared or endpoint
        return await loop.create_server(
            door.connection, where.host, where.port, backlog=BACKLOG, reuse_port=shared is not None
        )
    except (OSError, UnicodeError) as error:  # the latter for what no host can be called
        raise cannot_listen(endpoint, error) from error
