"""Key rings on disk: `default.ring`, and `<domain>.ring` for each domain that has a ring of its own.

A ring is JSON text::

    {"format": "batv-keyring-1", "created": "YYYY-MM-DD",
     "keys": [{"number": 0, "secret": "<hex>", "lifetime": 7, "created": "YYYY-MM-DD",
               "signs_from": "YYYY-MM-DD" or null, "retired": ... or null, "revoked": ... or null,
               "step": 3}],
     "checksum": "sha256:<hex>"}

`step` is left out where it is 1.

The checksum covers everything else, as JSON without spaces and with its keys in order. Without it one flipped bit
in a secret would make every genuine bounce look forged. It guards against damage, not against malice: that is what
the permissions and sealing are for. The last octet is a newline, so that a file cut short anywhere is seen to be. A
ring whose line ends were turned into CRLF on its way is read: its content is proven whole.

Rules that the store keeps:

1. A ring is read whole and right, or not at all.
2. Secrets are read from files that only their owner could read or change.
3. A change is read, made and written under the folder's lock, so that none is lost.
4. What root writes belongs to the owner of the folder, so that the service can go on reading it.

Source: none; the format is our own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.address import DOMAIN
from batv.day import Day
from batv.errors import (
    ConfigError,
    DayError,
    IoError,
    KeyRingDataError,
    KeyRingRuleError,
)
from batv.keyring import Key, KeyRing, KeyRings, Secret
from batv.store.files import (
    check_private_folder,
    locked,
    make_folder,
    read_private,
    sweep,
    write_atomically,
)
from batv.store.sealing import SEALED_FORMAT, opened, read_master_key, sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from batv.config import KeysSettings
    from batv.store.files import Owner

__all__ = [
    "DEFAULT_RING",
    "FORMAT",
    "MAX_RING_OCTETS",
    "MAX_SECRET_OCTETS",
    "RingStore",
    "open_store",
    "parse_ring",
    "ring_octets",
]

FORMAT: Final = "batv-keyring-1"
"""Value of `format` in a ring."""

MAX_RING_OCTETS: Final = 64 * 1024
"""Largest ring that is read: ten keys of the longest secret take half of it, sealed too."""

MAX_SECRET_OCTETS: Final = 1024
"""Longest secret that is taken: an HMAC gains nothing beyond its block of 64; more is some other file."""

DEFAULT_RING: Final = "default.ring"
"""Name of the file of the default ring."""

_SUFFIX: Final = ".ring"
_DOMAIN = re.compile(DOMAIN)
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_MAX_FILE_NAME_OCTETS: Final = 255
_RING_FIELDS: Final = {"format", "created", "keys", "checksum"}
_KEY_FIELDS: Final = {"number", "secret", "lifetime", "created", "signs_from", "retired", "revoked"}
_STEP: Final = "step"


class RingStore:
    """The rings of one folder.

    Args:
        directory: the folder; it need not exist before the first ring is made.
        master_key: 32 octets under which every ring is sealed; None where they are plain.
    """

    def __init__(self, directory: Path | str, master_key: Secret | None = None) -> None:
        self.directory: Final = Path(directory)
        self._master_key: Final = master_key

    def __repr__(self) -> str:
        """Return the folder and whether its rings are sealed."""
        return f"RingStore({str(self.directory)!r}, {'sealed' if self._master_key is not None else 'plain'})"

    def path(self, domain: bytes | None) -> Path:
        """Return the path of a ring's file: the default ring's for None.

        Raises:
            KeyRingRuleError: no file can have the name of that domain.
        """
        return self.directory / _file_name(domain)

    def find(self, domain: bytes | None) -> KeyRing | None:
        """Return the ring of a domain, or the default ring for None; None where there is no such file.

        Raises:
            KeyRingDataError: the file is damaged, is plain where it should be sealed, or the other way round.
            UnsafeFileError: others can read or change it, or it is no regular file.
            IoError: reading failed.
        """
        octets = self._octets(_file_name(domain))
        return None if octets is None else replace(parse_ring(octets, self.path(domain)), domain=domain)

    def read(self, domain: bytes | None) -> KeyRing:
        """Return the ring of a domain, or the default ring for None.

        Raises:
            IoError: there is none, or reading failed. Other errors as for `find`.
        """
        ring = self.find(domain)
        if ring is None:
            option = "" if domain is None else f" --domain {domain.decode()}"
            raise IoError(f"there is no key ring {self.path(domain)}", f"make one with 'batv key new{option}'")
        return ring

    def read_all(self, domains: Iterable[bytes]) -> KeyRings:
        """Return the default ring, and the own rings of the domains that have one. Errors as for `find`."""
        own: dict[bytes, KeyRing] = {}
        for domain in domains:
            own |= self.read_own(domain)
        return KeyRings(self.find(None), own)

    def read_own(self, domain: bytes) -> dict[bytes, KeyRing]:
        """Return the own ring of a domain by its name in lower case, or nothing. Errors as for `find`."""
        try:
            ring = self.find(domain)
        except KeyRingRuleError:
            return {}  # A domain whose name no file can have has no ring of its own.
        return {} if ring is None else {domain.lower(): ring}

    def domains(self) -> tuple[bytes, ...]:
        """Return the domains that have a ring of their own, in order."""
        found = (_domain_of(name) for name in self._names() if name != DEFAULT_RING)
        return tuple(sorted(domain for domain in found if domain is not None))

    def files(self) -> tuple[Path, ...]:
        """Return the paths of all rings, in order."""
        return tuple(self.directory / name for name in self._names())

    def change(
        self, domain: bytes | None, change: Callable[[KeyRing | None], KeyRing], *, dry_run: bool = False
    ) -> KeyRing:
        """Read a ring, change it and write it, with nobody else in between.

        Args:
            domain: whose ring; None for the default ring.
            change: gets the ring, None where there is none yet, and returns the new one.
            dry_run: the new ring is returned, but not written.

        Raises:
            TryAgainError: another process held the lock all the time.
            CannotCreateError, UnsafeFileError, IoError: the ring is as it was.
            Errors of `find` and of `change` too.
        """
        name = _file_name(domain)
        if dry_run:
            return change(self.find(domain))
        make_folder(self.directory)
        owner = self._owner()
        with locked(self.directory, owner=owner):
            sweep(self.directory, _SUFFIX)
            ring = change(self.find(domain))
            octets = ring_octets(ring)
            # What was read back once cannot be refused at the next start.
            parse_ring(octets, self.path(domain))
            if self._master_key is not None:
                octets = sealed(octets, name, self._master_key)
            write_atomically(self.path(domain), octets, owner=owner)
        return ring

    def seal(self, *, dry_run: bool = False) -> tuple[Path, ...]:
        """Seal every plain ring and return the paths of those that were plain. Errors as for `change`.

        Raises:
            ConfigError: the settings name no master key.
        """
        return self._convert(to_sealed=True, dry_run=dry_run)

    def unseal(self, *, dry_run: bool = False) -> tuple[Path, ...]:
        """Open every sealed ring and return the paths of those that were sealed. Errors as for `change`.

        Raises:
            ConfigError: the settings name no master key.
        """
        return self._convert(to_sealed=False, dry_run=dry_run)

    def ledger_secret(self) -> Secret:
        """Return the secret of the sent ledger, which lies with the rings, and is made where there is none.

        Raises:
            FileNotFoundError: there is no such folder.
            KeyRingDataError: its file is damaged, or was sealed under another master key.
            CannotCreateError, IoError, TryAgainError, UnsafeFileError: it cannot be read or made.
        """
        from batv.store.ledger import open_secret  # noqa: PLC0415 -- SQLite is memory that few sites need

        return open_secret(self.directory, self._master_key)

    def fingerprint(self) -> Hashable:
        """Return a value that differs once any ring was written, added or removed, or was opened to others.

        It costs a look at the folder.
        """
        try:
            folder = self.directory.stat()
        except OSError:
            return ()
        # Of the folder not the times: they change with every file that a writer puts there for a moment.
        found: list[tuple[object, ...]] = [(folder.st_mode, folder.st_uid)]
        for name in self._names():
            try:
                state = (self.directory / name).lstat()
            except OSError:
                continue
            # The time of change too: a new mode or owner counts, and nobody can set it back as the other can be.
            found.append((name, state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino))
        return tuple(found)

    def _convert(self, *, to_sealed: bool, dry_run: bool) -> tuple[Path, ...]:
        if self._master_key is None:
            raise ConfigError(
                "the settings name no master key",
                "set keys.master_key_file or keys.master_key_credential first",
            )
        if not self._names():
            return ()
        owner = self._owner()
        changed: list[Path] = []
        with locked(self.directory, owner=owner):
            sweep(self.directory, _SUFFIX)
            for name in self._names():
                path = self.directory / name
                octets = self._file(name)
                if octets is None:
                    continue
                fields = _fields(octets, path)
                was_sealed = fields.get("format") == SEALED_FORMAT
                plain = opened(fields, name, path, self._master_key) if was_sealed else octets
                parse_ring(plain, path)
                if was_sealed is to_sealed:
                    continue
                changed.append(path)
                if not dry_run:
                    write_atomically(path, sealed(plain, name, self._master_key) if to_sealed else plain, owner=owner)
        return tuple(changed)

    def _owner(self) -> Owner | None:
        found = check_private_folder(self.directory)
        return found if os.geteuid() == 0 else None

    def _file(self, name: str) -> bytes | None:
        try:
            return read_private(self.directory / name, MAX_RING_OCTETS)
        except FileNotFoundError:
            return None

    def _octets(self, name: str) -> bytes | None:
        """Return the plain octets of a ring, opened where rings are sealed."""
        octets = self._file(name)
        if octets is None:
            return None
        path = self.directory / name
        fields = _fields(octets, path)
        is_sealed = fields.get("format") == SEALED_FORMAT
        if self._master_key is None:
            if is_sealed:
                raise KeyRingDataError(
                    f"{path} is sealed, and the settings name no master key",
                    "set keys.master_key_file or keys.master_key_credential",
                )
            return octets
        if not is_sealed:
            # Else whoever can write a file here could put in another ring without the master key.
            what = f"{path} is not sealed, though the settings name a master key"
            raise KeyRingDataError(what, "run 'batv key seal'")
        return opened(fields, name, path, self._master_key)

    def _names(self) -> tuple[str, ...]:
        try:
            names = [path.name for path in self.directory.iterdir()]
        except OSError:
            return ()
        return tuple(sorted(name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")))


def open_store(settings: KeysSettings, environ: Mapping[str, str]) -> RingStore:
    """Return the store that the settings describe. Errors as for `read_master_key`."""
    return RingStore(settings.directory, read_master_key(settings, environ))


def ring_octets(ring: KeyRing) -> bytes:
    """Return a ring as it stands in a plain file."""
    fields: dict[str, object] = {
        "format": FORMAT,
        "created": ring.created.iso(),
        "keys": [
            {
                "number": key.number,
                "secret": key.secret.octets.hex(),
                "lifetime": key.lifetime,
                "created": key.created.iso(),
                "signs_from": _iso(key.signs_from),
                "retired": _iso(key.retired),
                "revoked": _iso(key.revoked),
                # Versions that know no step can read the rings that have none.
                **({_STEP: key.step} if key.step != 1 else {}),
            }
            for key in ring.keys
        ],
    }
    fields["checksum"] = _checksum(fields)
    return json.dumps(fields, indent=1).encode("ascii") + b"\n"


def parse_ring(octets: bytes, path: Path) -> KeyRing:
    """Return the ring that the octets of a plain file hold.

    Args:
        octets: the whole file.
        path: its path, for messages.

    Raises:
        KeyRingDataError: the octets are not exactly a ring, or it breaks a rule of rings.
    """
    fields = _fields(octets, path)
    version = fields.get("format")
    if version != FORMAT:
        shown = f"'{version[:64]}'" if isinstance(version, str) else "unknown"
        what = f"{path} has format {shown}, this version reads '{FORMAT}'"
        raise KeyRingDataError(what, "install the version that wrote it, or " + _restored(path))
    _same_fields(fields, _RING_FIELDS, path)
    if fields["checksum"] != _checksum({name: value for name, value in fields.items() if name != "checksum"}):
        raise KeyRingDataError(f"{path} is damaged: its checksum does not fit", _restored(path))
    entries = fields["keys"]
    if not isinstance(entries, list):
        raise _wrong("keys", path)
    try:
        return KeyRing(_day(fields, "created", path), tuple(_key(entry, path) for entry in entries))
    except KeyRingDataError as error:
        if str(path) in error.what:
            raise
        raise KeyRingDataError(f"{path}: {error.what}", error.remedy or _restored(path)) from error


def _file_name(domain: bytes | None) -> str:
    if domain is None:
        return DEFAULT_RING
    name = _ascii_form(domain.lower())
    text = name.decode("utf-8", "replace")
    # The grammar lets no label be empty, so that `.` and `..` are no names; an address literal may hold a slash.
    if not _DOMAIN.fullmatch(name) or b"/" in name:
        what = f"'{text}' cannot have a key ring of its own"
        raise KeyRingRuleError(what, "give a domain name, as in example.com")
    # A domain called `default` gets the dot that its absolute name ends with: no other domain's name here has it.
    file_name = (f"{text}." if text + _SUFFIX == DEFAULT_RING else text) + _SUFFIX
    if len(file_name.encode()) > _MAX_FILE_NAME_OCTETS:
        what = "a domain of more than 250 octets cannot have a key ring of its own"
        raise KeyRingRuleError(what, "use the default ring")
    return file_name


def _domain_of(file_name: str) -> bytes | None:
    """Return whose ring a file is; None for one that stands here under a name that no domain's ring has."""
    domain = os.fsencode(file_name.removesuffix(_SUFFIX).removesuffix("."))
    try:
        return domain if _file_name(domain) == file_name else None
    except KeyRingRuleError:
        return None


def _restored(path: Path) -> str:
    """Return what to do about a ring that is damaged."""
    owner = None if path.name == DEFAULT_RING else _domain_of(path.name)
    option = "" if owner is None else f" --domain {owner.decode('utf-8', 'replace')}"
    return f"restore it from a copy, or move it away and make a new ring with 'batv key new{option}'"


def _ascii_form(domain: bytes) -> bytes:
    """Return the one spelling of an internationalised domain under which its ring is kept."""
    if domain.isascii():
        return domain
    import idna  # noqa: PLC0415 -- its tables cost memory that few sites need

    try:
        return idna.encode(domain.decode(), uts46=True)
    except (idna.IDNAError, UnicodeDecodeError):
        return domain


def _fields(octets: bytes, path: Path) -> dict[str, object]:
    """Return the JSON object that a ring's file holds, plain or sealed."""
    if not octets:
        raise KeyRingDataError(f"{path} is empty", _restored(path))
    if octets.startswith(b"\xef\xbb\xbf"):
        what = f"{path} begins with a byte order mark: an editor has changed it"
        raise KeyRingDataError(what, _restored(path))
    body = octets.removesuffix(b"\n").removesuffix(b"\r")
    whole = len(body) < len(octets) and body.endswith(b"}")
    try:
        # What was cut short is not even looked at: an empty text is no JSON.
        text = body.decode("ascii") if whole else ""
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_never, parse_float=_never)
    except (ValueError, RecursionError):
        # The cause is not chained: its message could quote a secret.
        raise KeyRingDataError(f"{path} is damaged or cut short", _restored(path)) from None
    if not isinstance(found, dict):
        raise KeyRingDataError(f"{path} is no key ring", _restored(path))
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _never(_: str) -> object:
    raise ValueError


def _checksum(fields: Mapping[str, object]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"


def _same_fields(fields: Mapping[str, object], expected: set[str], path: Path) -> None:
    for name in sorted(expected - set(fields)):
        raise KeyRingDataError(f"{path} lacks the field '{name}'", _restored(path))
    for name in sorted(set(fields) - expected):
        raise KeyRingDataError(f"{path} has the unknown field '{name[:64]}'", _restored(path))


def _key(entry: object, path: Path) -> Key:
    if not isinstance(entry, dict):
        raise _wrong("keys", path)
    _same_fields(entry, _KEY_FIELDS | ({_STEP} & entry.keys()), path)
    secret = entry["secret"]
    if not isinstance(secret, str) or not _HEX.fullmatch(secret) or len(secret) > 2 * MAX_SECRET_OCTETS:
        raise _wrong("secret", path)
    return Key(
        number=_int(entry, "number", path),
        secret=Secret(bytes.fromhex(secret)),
        created=_day(entry, "created", path),
        lifetime=_int(entry, "lifetime", path),
        signs_from=_day_or_none(entry, "signs_from", path),
        retired=_day_or_none(entry, "retired", path),
        revoked=_day_or_none(entry, "revoked", path),
        step=_int(entry, _STEP, path) if _STEP in entry else 1,
    )


def _int(fields: Mapping[str, object], name: str, path: Path) -> int:
    value = fields[name]
    # JSON's true is an int to Python.
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, path)
    return value


def _day(fields: Mapping[str, object], name: str, path: Path) -> Day:
    value = fields[name]
    try:
        if isinstance(value, str):
            return Day.from_iso(value)
    except DayError:
        pass
    raise _wrong(name, path)


def _day_or_none(fields: Mapping[str, object], name: str, path: Path) -> Day | None:
    return None if fields[name] is None else _day(fields, name, path)


def _wrong(name: str, path: Path) -> KeyRingDataError:
    return KeyRingDataError(f"{path} has a wrong value in the field '{name}'", _restored(path))


def _iso(day: Day | None) -> str | None:
    return None if day is None else day.iso()
