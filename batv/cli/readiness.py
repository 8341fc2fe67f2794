"""What `batv config check` looks for beyond the text of the settings: whether the service could do its work with them.

Nothing is made or changed. What only a start can show, such as an address that somebody else listens on, is left to
the start: a site that runs must be able to check its settings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import collapse_addresses
from pathlib import Path
from typing import TYPE_CHECKING

from batv.config import NextHopTls
from batv.errors import BatvError, CannotCreateError, ConfigError, NoSigningKeyError, UnsafeFileError
from batv.keyring import KeyRings
from batv.net.tls import client_context, server_context
from batv.store.files import check_private_folder
from batv.tag import Scheme

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from batv.cli import Site
    from batv.config import InboundSettings, OutboundSettings, Settings
    from batv.day import Day
    from batv.keyring import KeyRing
    from batv.store.rings import RingStore

__all__ = ["Readiness", "readiness"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """What stands in the way of the service.

    Attributes:
        errors: what would keep it from starting.
        warnings: what it would start with, though nobody can want it.
    """

    errors: tuple[BatvError, ...]
    warnings: tuple[str, ...]

    @property
    def status(self) -> int:
        """Exit status of a command that found this: that of the errors where they agree."""
        statuses = {error.exit_status for error in self.errors}
        return statuses.pop() if len(statuses) == 1 else ConfigError.exit_status if statuses else 0


def readiness(site: Site, settings: Settings) -> Readiness:
    """Return what stands in the way of a service with these settings."""
    errors: list[BatvError] = []
    warnings: list[str] = []
    if settings.outbound is None and settings.inbound is None:
        errors.append(
            ConfigError("there is neither an [outbound] nor an [inbound] section", "add one with listen and next_hop")
        )
    if settings.outbound is not None:
        warnings.extend(_open_to_all(settings.outbound))
    for name, side in (("outbound", settings.outbound), ("inbound", settings.inbound)):
        if side is not None:
            warnings.extend(_believing_all(name, side))
            errors.extend(_tls(side))
    if settings.inbound is not None and settings.dnsbl.zones:
        warnings.extend(_lists_for_nothing(settings.inbound))
    try:
        store = site.store(settings)
    except BatvError as error:
        errors.append(error)
    else:
        rings, unreadable = _rings(store, settings)
        errors.extend(unreadable)
        if not unreadable:
            # The settings are none the worse for it: on a new site the key is the next thing to make.
            warnings.extend(_without_ring(rings, settings))
        warnings.extend(_without_key(rings, settings, site.today()))
        warnings.extend(_other_step(rings, settings, site.today()))
        warnings.extend(_draft_tags(rings, settings, site.today()))
        warnings.extend(_for_root_only(store, settings))
    warnings.extend(_exemptions_over(settings, site.today()))
    state = Path(settings.state.directory)
    errors.extend(_state(state))
    if state.is_dir():
        warnings.extend(_open_to_others(state))
    # One ring can stand behind several domains: each thing is said once.
    said = {str(error): error for error in errors}
    return Readiness(tuple(said.values()), tuple(dict.fromkeys(warnings)))


def _rings(store: RingStore, settings: Settings) -> tuple[KeyRings, list[BatvError]]:
    """Return the rings that can be read, and what is wrong with the others."""
    errors: list[BatvError] = []
    own: dict[bytes, KeyRing] = {}
    default = None
    try:
        default = store.find(None)
    except BatvError as error:
        errors.append(error)
    for domain in settings.policy.own_rings(store.domains()):
        try:
            own |= store.read_own(domain)
        except BatvError as error:
            errors.append(error)
    return KeyRings(default, own), errors


def _without_ring(rings: KeyRings, settings: Settings) -> Iterator[str]:
    for domain in settings.policy.domains:
        try:
            rings.ring_for(domain)
        except NoSigningKeyError as error:
            yield f"{error.what}, and the service does not start: {error.remedy}"


def _without_key(rings: KeyRings, settings: Settings, today: Day) -> Iterator[str]:
    for domain in settings.policy.domains if settings.outbound is not None else ():
        try:
            rings.ring_for(domain).signing_key(today)
        except NoSigningKeyError as error:
            if domain in rings.own or rings.default is not None:
                yield f"{error.what}, and mail is answered 451: {error.remedy}"


def _other_step(rings: KeyRings, settings: Settings, today: Day) -> Iterator[str]:
    for ring in (rings.default, *rings.own.values()):
        if ring is None or not ring.signs(today):
            continue
        key = ring.signing_key(today)
        if key.step != settings.tags.step:
            yield (
                f"tags.step is {settings.tags.step}, but key {key.number} of {ring.name} has {key.step}, which"
                f" counts: for another step, run batv key rotate{ring.option}"
            )


def _draft_tags(rings: KeyRings, settings: Settings, today: Day) -> Iterator[str]:
    for name, domain in settings.policy.domains.items():
        style = domain.style
        if style is None or style.scheme is not Scheme.STRONG:
            continue
        lives = 1 + max((key.longest for ring in rings.rings_for(name, today) for key in ring.keys), default=0)
        until, safe = domain.draft_until, today + lives
        if until is None:
            yield (
                f"{name.decode()} has the strong scheme, but the draft's tags are accepted too, and can be guessed: set"
                f" accept_draft_until to {safe}, when those under way have expired"
            )
        # When the scheme was switched is not known; what was sent before that and is alive is to be let through.
        elif today + -lives <= until < safe:
            yield (
                f"{name.decode()} accepts the draft's tags until {until}, so that bounces to those made after"
                f" {until + -lives} are lost: set accept_draft_until to {safe}, unless the strong scheme was on by then"
            )


def _exemptions_over(settings: Settings, today: Day) -> Iterator[str]:
    for number, exemption in enumerate(settings.policy.exemptions.every):
        if exemption.over(today):
            yield f"exemptions.{number} ({exemption.reason}) has ended on {exemption.until}: renew it, or leave it out"


def _open_to_all(outbound: OutboundSettings) -> Iterator[str]:
    public = [endpoint for endpoint in (*outbound.listen, *outbound.listen_tls) if not endpoint.local]
    everybody = [str(network) for network in _collapsed(outbound.clients) if network.prefixlen == 0]
    if public and everybody:
        yield (
            f"outbound.clients has {' and '.join(everybody)} while outbound.listen has {public[0]}: anybody can send"
            " mail through it, signed as yours: name your own networks"
        )


def _believing_all(name: str, side: OutboundSettings | InboundSettings) -> Iterator[str]:
    public = [endpoint for endpoint in (*side.listen, *side.listen_tls) if not endpoint.local]
    for option in ("proxy_protocol_from", "xclient_from", "xforward_from"):
        everybody = [str(network) for network in _collapsed(getattr(side, option)) if network.prefixlen == 0]
        if public and everybody:
            yield (
                f"{name}.{option} has {' and '.join(everybody)} while {name} listens on {public[0]}: anybody can say"
                " that he is a client of yours: name your own peers"
            )


def _lists_for_nothing(inbound: InboundSettings) -> Iterator[str]:
    believed = (*inbound.xclient_from, *inbound.xforward_from, *inbound.proxy_protocol_from)
    if not believed and all(endpoint.local for endpoint in (*inbound.listen, *inbound.listen_tls)):
        yield (
            "dnsbl.zones names lists that are never asked: every client of inbound is this host itself: name the server"
            " in front in inbound.xforward_from"
        )


def _tls(side: OutboundSettings | InboundSettings) -> Iterator[BatvError]:
    if side.tls_certificate is not None:
        try:
            server_context(side.tls_certificate, side.tls_key, side.tls_client_ca)
        except BatvError as error:
            yield error
    if side.next_hop_tls is not NextHopTls.OFF:
        try:
            client_context(side.next_hop_tls, side.next_hop_tls_ca)
        except BatvError as error:
            yield error


def _collapsed(networks: Sequence[IPv4Network | IPv6Network]) -> Iterator[IPv4Network | IPv6Network]:
    # Two halves are the whole.
    yield from collapse_addresses([network for network in networks if network.version == 4])  # noqa: PLR2004 -- IPv4
    yield from collapse_addresses([network for network in networks if network.version == 6])  # noqa: PLR2004 -- IPv6


def _state(folder: Path) -> Iterator[BatvError]:
    journal = folder / "journal.jsonl"
    remedy = f"give it to the service's user, {os.geteuid()} now, or set state.directory"
    if folder.is_dir():
        if not os.access(folder, os.W_OK | os.X_OK):
            yield UnsafeFileError(f"cannot write to the folder {folder}", remedy)
        elif journal.exists() and not os.access(journal, os.W_OK):
            yield UnsafeFileError(f"cannot write {journal}", remedy)
        return
    above = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path("/"))
    if not above.is_dir():
        yield CannotCreateError(
            f"cannot make the folder {folder}: {above} is no folder", "move it away, or set state.directory"
        )
    elif not os.access(above, os.W_OK | os.X_OK):
        yield CannotCreateError(f"cannot make the folder {folder}: cannot write to {above}", f"make it and {remedy}")


def _open_to_others(folder: Path) -> Iterator[str]:
    try:
        check_private_folder(folder)
    except BatvError as error:
        yield str(error)


def _for_root_only(store: RingStore, settings: Settings) -> Iterator[str]:
    """Yield what root can use and the service cannot, where it runs as the owner of the folder of the rings."""
    if os.geteuid() != 0 or not store.directory.is_dir():
        return
    service = store.directory.stat().st_uid
    state = Path(settings.state.directory)
    named = [settings.keys.master_key_file]
    for side in (settings.outbound, settings.inbound):
        if side is not None:
            named += [side.tls_key, side.next_hop_credentials]
    # The owner of a link opens nothing: that of the file does.
    secrets = [Path(path).resolve() for path in dict.fromkeys(named) if path is not None]
    for path in (*store.files(), state, state / "journal.jsonl", *secrets):
        owner = path.lstat().st_uid if os.path.lexists(path) else service
        if owner != service:
            yield (
                f"{path} belongs to user {owner}, but {store.directory} to user {service}: if the service runs as"
                f" {service}, run chown {service} {path}"
            )
