"""Sealed rings open under their master key and their own name only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from batv.config import KeysSettings
from batv.day import Day
from batv.errors import ConfigError, KeyRingDataError, UnsafeFileError
from batv.keyring import Key, KeyRing, Secret
from batv.store.rings import RingStore, open_store
from batv.store.sealing import read_master_key

if TYPE_CHECKING:
    from pathlib import Path

TODAY: Final = Day.from_iso("2026-11-23")
CANARY: Final = b"canary of the unit tests"
RING: Final = KeyRing(TODAY, (Key(0, Secret(CANARY), TODAY, 7, TODAY),))
MASTER: Final = Secret(bytes(range(32)))


@pytest.fixture
def store(tmp_path: Path) -> RingStore:
    """Return a store with a sealed default ring."""
    store = RingStore(tmp_path, MASTER)
    store.change(None, lambda _: RING)
    return store


def test_a_sealed_ring_shows_no_secret_and_opens(store: RingStore) -> None:
    """That is what sealing is for."""
    octets = store.path(None).read_bytes()
    assert CANARY.hex().encode() not in octets
    assert b"keys" not in octets
    assert json.loads(octets).keys() == {"format", "nonce", "sealed"}
    assert store.read(None) == RING


def test_each_writing_has_a_nonce_of_its_own(store: RingStore) -> None:
    """Under one nonce twice, AES-GCM gives away what it hides."""
    before = json.loads(store.path(None).read_bytes())
    store.change(None, lambda _: RING)
    after = json.loads(store.path(None).read_bytes())
    assert before["nonce"] != after["nonce"]
    assert before["sealed"] != after["sealed"]


def test_a_sealed_ring_with_one_flipped_bit_or_cut_short_is_refused(store: RingStore) -> None:
    """Damage is found before anything is done with the secrets."""
    path = store.path(None)
    octets = path.read_bytes()
    for place in range(len(octets)):
        path.write_bytes(octets[:place] + bytes([octets[place] ^ 1 << place % 8]) + octets[place + 1 :])
        with pytest.raises(KeyRingDataError):
            store.read(None)
        path.write_bytes(octets[:place])
        with pytest.raises(KeyRingDataError):
            store.read(None)


def test_a_sealed_ring_does_not_open_in_the_place_of_another(store: RingStore) -> None:
    """Whoever can write in the folder must not be able to give one domain the keys of another."""
    store.path(b"example.com").write_bytes(store.path(None).read_bytes())
    store.path(b"example.com").chmod(0o600)
    with pytest.raises(KeyRingDataError, match="is another ring's"):
        store.read(b"example.com")


def test_another_master_key_opens_nothing(store: RingStore) -> None:
    """The message names the likely causes."""
    with pytest.raises(KeyRingDataError, match="another master key"):
        RingStore(store.directory, Secret(bytes(32))).read(None)


def test_a_plain_ring_is_refused_where_a_master_key_is_set(tmp_path: Path) -> None:
    """Else a ring could be slipped in without the master key."""
    RingStore(tmp_path).change(None, lambda _: RING)
    with pytest.raises(KeyRingDataError, match="run 'batv key seal'"):
        RingStore(tmp_path, MASTER).read(None)


def test_a_sealed_ring_without_a_master_key_names_the_setting(store: RingStore) -> None:
    """The administrator moved the ring and forgot the setting."""
    with pytest.raises(KeyRingDataError, match=r"set keys\.master_key_file"):
        RingStore(store.directory).read(None)


def test_sealing_and_unsealing_take_all_rings_and_may_be_repeated(tmp_path: Path) -> None:
    """A run that was cut short is finished by the next."""
    plain, sealed = RingStore(tmp_path), RingStore(tmp_path, MASTER)
    plain.change(None, lambda _: RING)
    plain.change(b"example.com", lambda _: RING)
    paths = (plain.path(None), plain.path(b"example.com"))
    assert sealed.seal(dry_run=True) == paths
    assert plain.read(None) == RING
    assert sealed.seal() == paths
    assert sealed.seal() == ()
    assert sealed.read(b"example.com") == RING
    assert sealed.unseal() == paths
    assert sealed.unseal() == ()
    assert plain.read(b"example.com") == RING
    with pytest.raises(ConfigError, match="name no master key"):
        plain.seal()


def test_a_damaged_plain_ring_is_not_sealed(tmp_path: Path) -> None:
    """Sealing damage would hide it."""
    RingStore(tmp_path).change(None, lambda _: RING)
    path = tmp_path / "default.ring"
    path.write_bytes(path.read_bytes().replace(b'"lifetime": 7', b'"lifetime": 8'))
    with pytest.raises(KeyRingDataError, match="checksum"):
        RingStore(tmp_path, MASTER).seal()


@pytest.mark.parametrize(
    "octets",
    [MASTER.octets, MASTER.octets.hex().encode(), MASTER.octets.hex().upper().encode() + b"\n"],
    ids=["raw", "hex", "hex-line"],
)
def test_a_master_key_is_raw_or_hex(tmp_path: Path, octets: bytes) -> None:
    """Both ways of making one are in use."""
    path = tmp_path / "master.key"
    path.write_bytes(octets)
    path.chmod(0o600)
    assert read_master_key(KeysSettings(master_key_file=str(path)), {}) == MASTER


@pytest.mark.parametrize("octets", [b"", b"x" * 31, b"x" * 33, b"x" * 64, b"0" * 63, b"0" * 66])
def test_what_is_no_master_key_is_refused(tmp_path: Path, octets: bytes) -> None:
    """A passphrase, or a key with a newline too many, would seal rings that nobody can open later."""
    path = tmp_path / "master.key"
    path.write_bytes(octets)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"holds {len(octets)} octets"):
        read_master_key(KeysSettings(master_key_file=str(path)), {})


def test_a_master_key_that_others_can_read_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    """The same rules hold as for the rings that it protects."""
    path = tmp_path / "master.key"
    with pytest.raises(ConfigError, match=r"keys\.master_key_file: there is no file"):
        read_master_key(KeysSettings(master_key_file=str(path)), {})
    path.write_bytes(MASTER.octets)
    path.chmod(0o644)
    with pytest.raises(UnsafeFileError, match="chmod 600"):
        read_master_key(KeysSettings(master_key_file=str(path)), {})


def test_a_credential_of_the_service_manager_is_the_master_key(tmp_path: Path) -> None:
    """It comes by the environment, and with an access list that shows as the group's right to read."""
    path = tmp_path / "batv-master"
    path.write_bytes(MASTER.octets)
    path.chmod(0o440)
    keys = KeysSettings(directory=str(tmp_path), master_key_credential="batv-master")
    assert read_master_key(keys, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == MASTER
    with pytest.raises(ConfigError, match="LoadCredential=batv-master"):
        read_master_key(keys, {})
    for name in ("..", "../batv-master", "a/b", ""):
        with pytest.raises(ConfigError, match="no name of a credential"):
            read_master_key(KeysSettings(master_key_credential=name), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert repr(open_store(keys, {"CREDENTIALS_DIRECTORY": str(tmp_path)})) == f"RingStore('{tmp_path}', sealed)"
