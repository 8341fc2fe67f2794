"""Rings sealed under a master key, so that a copied folder or a stolen backup gives no secret away.

A sealed ring is AES-256-GCM under a 32-octet master key, with a fresh random nonce for every writing. The name of
the ring is bound in, so that one domain's ring cannot be put in the place of another's. An older copy of the same
ring opens, as it must when a backup is restored.

The master key is a file (32 raw octets, or 64 hex digits) with the permissions of a ring, or a credential of
systemd.

Source: NIST SP 800-38D; systemd.exec(5), "Credentials".
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from batv.errors import ConfigError, KeyRingDataError
from batv.keyring import Secret
from batv.store.files import read_private

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batv.config import KeysSettings

__all__ = ["MASTER_KEY_OCTETS", "SEALED_FORMAT", "opened", "read_master_key", "sealed"]

SEALED_FORMAT: Final = "batv-keyring-1-sealed"
"""Value of `format` in a sealed ring."""

MASTER_KEY_OCTETS: Final = 32
"""AES-256."""

_NONCE_OCTETS: Final = 12
_MASTER_KEY_FILE_LIMIT: Final = 128
_HEX_KEY = re.compile(rb"[0-9A-Fa-f]{64}(?:\r?\n)?")
_CREDENTIAL_NAME = re.compile(r"[0-9A-Za-z_.@:-]+")
_RESTORE: Final = "restore it from a copy, or move it away and begin a new ring"


def sealed(octets: bytes, ring: str, master_key: Secret) -> bytes:
    """Return the sealed form of a ring's octets.

    Args:
        octets: the ring as it would stand in a plain file.
        ring: name of the ring's file.
        master_key: 32 octets.
    """
    nonce = secrets.token_bytes(_NONCE_OCTETS)
    box = AESGCM(master_key.octets).encrypt(nonce, octets, _bound(ring))
    fields = {
        "format": SEALED_FORMAT,
        "nonce": base64.b64encode(nonce).decode(),
        "sealed": base64.b64encode(box).decode(),
    }
    return json.dumps(fields, indent=1).encode() + b"\n"


def opened(fields: Mapping[str, object], ring: str, path: Path, master_key: Secret) -> bytes:
    """Return the octets that were sealed.

    Args:
        fields: the JSON object that the file holds.
        ring: name of the ring's file, as when it was sealed.
        path: where it was read, for messages.
        master_key: 32 octets.

    Raises:
        KeyRingDataError: the file is damaged, is another ring's, or was sealed under another master key.
    """
    if set(fields) != {"format", "nonce", "sealed"}:
        raise KeyRingDataError(f"{path} does not have the fields of a sealed ring", _RESTORE)
    nonce = _base64(fields["nonce"], path)
    box = _base64(fields["sealed"], path)
    try:
        return AESGCM(master_key.octets).decrypt(nonce, box, _bound(ring))
    except (InvalidTag, ValueError) as error:
        raise KeyRingDataError(
            f"{path} does not open: it is damaged, was sealed under another master key, or is another ring's",
            "check the master key; restore the ring from a copy",
        ) from error


def read_master_key(settings: KeysSettings, environ: Mapping[str, str]) -> Secret | None:
    """Return the master key that the settings name, or None where they name none.

    Args:
        settings: the settings of the keys.
        environ: the environment, of which CREDENTIALS_DIRECTORY is used.

    Raises:
        ConfigError: there is no such file or credential, or it holds no key.
        UnsafeFileError: others can read or change it.
        IoError: reading failed.
    """
    if settings.master_key_file is not None:
        return _master_key(Path(settings.master_key_file), "keys.master_key_file", credential=False)
    name = settings.master_key_credential
    if name is None:
        return None
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigError(
            f"keys.master_key_credential is '{name}', but the service manager handed over no credentials",
            f"add LoadCredential={name}:/PATH to the unit, or run the command with systemd-run",
        )
    if not _CREDENTIAL_NAME.fullmatch(name) or name in {".", ".."}:
        raise ConfigError(f"keys.master_key_credential is '{name}', no name of a credential", "mend the setting")
    return _master_key(Path(folder, name), "keys.master_key_credential", credential=True)


def _master_key(path: Path, setting: str, *, credential: bool) -> Secret:
    try:
        octets = read_private(path, _MASTER_KEY_FILE_LIMIT, credential=credential)
    except FileNotFoundError as error:
        remedy = f"restore it, sealed rings cannot be opened without it; or make one: head -c 32 /dev/urandom > {path}"
        raise ConfigError(f"{setting}: there is no file {path}", remedy) from error
    if len(octets) == MASTER_KEY_OCTETS:
        return Secret(octets)
    if _HEX_KEY.fullmatch(octets):
        return Secret(bytes.fromhex(octets.decode()))
    raise ConfigError(
        f"{setting}: {path} holds {len(octets)} octets, which are no master key",
        f"put {MASTER_KEY_OCTETS} raw octets or {2 * MASTER_KEY_OCTETS} hex digits there",
    )


def _bound(ring: str) -> bytes:
    return f"{SEALED_FORMAT}\0{ring}".encode()


def _base64(value: object, path: Path) -> bytes:
    try:
        if isinstance(value, str):
            octets = base64.b64decode(value, validate=True)
            # Base64 leaves bits over at its end; a file in which one of them is flipped is damaged all the same.
            if base64.b64encode(octets).decode() == value:
                return octets
    except (binascii.Error, ValueError):
        pass
    raise KeyRingDataError(f"{path} is damaged", _RESTORE)
