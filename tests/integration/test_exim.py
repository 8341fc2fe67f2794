"""Exim and batv share a key: what one signs the other takes, and where the two differ it is listed here.

The addresses are those of tests/vectors/exim.json, which scripts/mta/exim-vectors makes with Exim alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import pytest

from batv.address import Mailbox
from batv.day import Day
from batv.errors import AddressError
from batv.keyring import Key, KeyRing, Secret
from batv.mac import Case
from batv.signing import Obstacle, Style, Verification, sign, sign_with, verify
from batv.verdict import Verdict
from tests.support.exim import Exim

VECTORS: Final = json.loads((Path(__file__).parents[1] / "vectors/exim.json").read_text(encoding="utf-8"))
EXACT: Final = Style(case=Case.EXACT)
QUOTED: Final = "Exim puts the tag before the quotes, which is no address"
OBSTACLES: Final = {
    "batv leaves local parts with a routing character unsigned": Obstacle.ROUTING,
    "batv leaves local parts unsigned that a tag would make longer than 64 octets": Obstacle.TOO_LONG,
    "batv leaves addresses alone that carry a tag": Obstacle.TAGGED,
}
ADDRESS: Final = "Joe@example.com"
SECRET: Final = "a secret of 27 printable oct"
DAY: Final = Day.from_iso("2026-11-23")
WRAP: Final = Day(21_000)  # 2027-07-01, stamp 000

needs_exim = pytest.mark.mta("exim")


class Vector(NamedTuple):
    """One line of the file: what Exim made of an address."""

    address: str
    secret: str
    key_number: int
    day: Day
    day_stamp: str
    signed: str

    @classmethod
    def read(cls, row: dict[str, Any]) -> Self:
        """Return the vector of a line."""
        day = Day.from_iso(row["day"])
        return cls(row["address"], row["secret"], row["key_number"], day, row["day_stamp"], row["signed"])

    def ring(self) -> KeyRing:
        """Return a ring that signs with the vector's key."""
        return KeyRing(self.day, (key(self.secret, self.key_number, self.day),))

    def verified(self) -> Verification:
        """Return what batv finds, on the vector's day, in what Exim signed."""
        return verify(Mailbox.parse(self.signed.encode()), self.ring(), self.day)


SAME: Final = [Vector.read(row) for row in VECTORS["vectors"]]
DIFFERENT: Final = [(row["what"], Vector.read(row)) for row in VECTORS["differences"]]


def key(secret: str, number: int, day: Day, lifetime: int = 7) -> Key:
    """Return a key that signs from a day on."""
    return Key(number, Secret(secret.encode()), day, lifetime, signs_from=day)


def tagged(on: Day, lifetime: int = 7) -> str:
    """Return the address as batv signs it on a day."""
    return sign_with(Mailbox.parse(ADDRESS.encode()), key(SECRET, 3, on, lifetime), on, EXACT).octets.decode()


def verdict(address: str, on: Day, lifetime: int = 7) -> Verdict:
    """Return what batv says of an address on a day."""
    ring = KeyRing(Day(0), (key(SECRET, 3, Day(0), lifetime),))
    return verify(Mailbox.parse(address.encode()), ring, on).verdict


@pytest.fixture(scope="module")
def exim() -> Exim:
    """Give the oracle."""
    return Exim()


def good(exim: Exim, address: str, on: Day) -> bool:
    """Return whether Exim takes an address on a day."""
    (found,) = exim.check([(address, SECRET)], on.iso())
    return found.good


class TestKnownAnswers:
    """The file, without Exim at hand."""

    def test_it_covers_all_key_numbers_and_what_is_special_in_addresses(self) -> None:
        """A file that lost its hard cases would prove nothing."""
        assert len({vector.address for vector in SAME}) >= 200
        assert {vector.key_number for vector in SAME} == set(range(10))
        assert {vector.day_stamp for vector in SAME} >= {"999", "000", "006", "007"}
        for special in ("=", "+", "J", "[", "ö", "{"):
            assert sum(special in vector.address for vector in SAME) >= 5

    @pytest.mark.parametrize("vector", SAME, ids=lambda vector: f"{vector.day_stamp}-{vector.key_number}")
    def test_batv_signs_as_exim_did_and_finds_it_valid(self, vector: Vector) -> None:
        """Octet for octet, with the exact case; the fold case verifies too, so that a site may change over."""
        mailbox = Mailbox.parse(vector.address.encode())
        ours = sign(mailbox, vector.ring(), vector.day, EXACT)
        assert isinstance(ours, Mailbox)
        assert ours.octets.decode() == vector.signed
        found = vector.verified()
        assert (found.verdict, found.mailbox, found.days_left) == (Verdict.VALID, mailbox, 7)
        assert found.case is (Case.EXACT if vector.address.encode().lower() != vector.address.encode() else Case.FOLD)

    def test_the_differences_are_those_that_are_known(self) -> None:
        """A new difference has to be explained before it is listed."""
        assert {what for what, _ in DIFFERENT} == {QUOTED, *OBSTACLES}

    @pytest.mark.parametrize(("what", "vector"), [row for row in DIFFERENT if row[0] in OBSTACLES])
    def test_an_address_that_batv_leaves_unsigned_is_valid_when_exim_signed_it(self, what: str, vector: Vector) -> None:
        """A bounce to what Exim signed with our key comes home, whoever would not have signed it."""
        mailbox = Mailbox.parse(vector.address.encode())
        assert sign(mailbox, vector.ring(), vector.day, EXACT) is OBSTACLES[what]
        assert (vector.verified().verdict, vector.verified().mailbox) == (Verdict.VALID, mailbox)

    @pytest.mark.parametrize(("what", "vector"), [row for row in DIFFERENT if row[0] == QUOTED])
    def test_a_quoted_local_part_gets_the_same_signature_inside_its_quotes(self, what: str, vector: Vector) -> None:
        """What Exim makes is no address, so no mail server would take it; the signature in it is the same."""
        assert what == QUOTED
        with pytest.raises(AddressError):
            Mailbox.parse(vector.signed.encode())
        ours = sign_with(
            Mailbox.parse(vector.address.encode()), key(vector.secret, vector.key_number, vector.day), vector.day, EXACT
        )
        tag = re.match(r"prvs=\w{10}=", vector.signed)
        assert tag is not None
        assert ours.octets.decode() == f'"{tag[0]}{vector.address[1:]}'


@needs_exim
class TestBothDirections:
    """The live program."""

    def test_exim_still_prints_what_the_file_says(self, exim: Exim) -> None:
        """The file was made by the program that it names, and this Exim agrees with that one."""
        by_day = defaultdict(list)
        for vector in [*SAME, *(vector for _, vector in DIFFERENT)]:
            by_day[vector.day].append(vector)
        for day, vectors in by_day.items():
            printed = exim.sign(((each.address, each.secret, each.key_number) for each in vectors), day.iso())
            assert printed == [each.signed for each in vectors]

    @pytest.mark.parametrize("ahead", [0, 7])
    def test_what_batv_signs_exim_takes(self, exim: Exim, ahead: int) -> None:
        """On the first and on the last good day, for every address and key number; Exim finds the same address."""
        by_day = defaultdict(list)
        for vector in SAME:
            by_day[vector.day].append(vector)
        for day, vectors in by_day.items():
            signed = [sign(Mailbox.parse(each.address.encode()), each.ring(), day, EXACT) for each in vectors]
            ours = [mailbox.octets.decode() for mailbox in signed if isinstance(mailbox, Mailbox)]
            assert len(ours) == len(vectors)
            secrets = [each.secret for each in vectors]
            found = exim.check(zip(ours, secrets, strict=True), (day + ahead).iso())
            assert found == [(True, str(each.key_number), each.address) for each in vectors]

    def test_what_batv_signs_with_quotes_exim_does_not_see(self, exim: Exim) -> None:
        """The tag-type stands behind a quote, where Exim does not look: a bounce to it is untagged there."""
        vectors = [vector for what, vector in DIFFERENT if what == QUOTED]
        ours = [
            sign_with(Mailbox.parse(each.address.encode()), key(each.secret, each.key_number, DAY), DAY, EXACT)
            for each in vectors
        ]
        asked = ((mailbox.octets.decode(), each.secret) for mailbox, each in zip(ours, vectors, strict=True))
        assert exim.check(asked, DAY.iso()) == [(False, "", "")] * len(vectors)

    def test_exim_takes_no_folded_tag_of_an_address_with_capitals(self, exim: Exim) -> None:
        """Why a site that shares a key says `case = "exact"`."""
        folded = sign_with(Mailbox.parse(ADDRESS.encode()), key(SECRET, 3, DAY), DAY, Style(case=Case.FOLD))
        assert not good(exim, folded.octets.decode(), DAY)
        assert verdict(folded.octets.decode(), DAY) is Verdict.VALID

    def test_neither_takes_a_tag_of_another_address_or_key(self, exim: Exim) -> None:
        """The oracle can say no."""
        genuine = tagged(DAY)
        for forged in (genuine.replace("Joe", "Jon"), genuine.replace(".com", ".org"), f"prvs=4{genuine[6:]}"):
            assert not good(exim, forged, DAY)
            assert verdict(forged, DAY) in {Verdict.BAD_SIGNATURE, Verdict.UNKNOWN_KEY}

    def test_both_read_the_tag_type_in_any_case(self, exim: Exim) -> None:
        """Hosts that turn addresses to upper case do it to the tag as well."""
        shouted = tagged(DAY).replace("prvs=", "PRVS=")
        assert good(exim, shouted, DAY)
        assert verdict(shouted, DAY) is Verdict.VALID

    @pytest.mark.parametrize("first", [DAY, WRAP + -14, WRAP + -7, WRAP + -3, WRAP], ids=str)
    def test_a_tag_lives_as_long_for_both(self, exim: Exim, first: Day) -> None:
        """From the day of signing through seven days later, across the wrap too."""
        address = tagged(first)
        for ahead in range(8):
            assert good(exim, address, first + ahead)
            assert verdict(address, first + ahead) is Verdict.VALID

    def test_a_key_made_for_exim_is_shared_as_the_commands_say(self, exim: Exim, tmp_path: Path) -> None:
        """From `batv key new --printable` to Exim's configuration by the line that `batv key export --exim` prints."""
        batv = Path(sys.executable).with_name("batv")

        def run(*arguments: str | Path) -> str:
            command = [batv, "--config", tmp_path / "batv.toml", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return done.stdout.strip()

        (tmp_path / "batv.toml").write_text(
            '[keys]\ndirectory = "keys"\n[domains."example.com"]\n[tags]\ncase = "exact"\n'
        )
        run("key", "new", "--printable")
        said = run("key", "export", "0", "--exim", "--out", tmp_path / "for-exim")
        expression = re.search(r"\$\{prvs.*\}", said)
        assert expression is not None, said
        (signed,) = exim.expand([expression[0].replace("ADDRESS", ADDRESS)])
        assert run("verify", signed).startswith("valid")
        assert exim.check([(run("sign", ADDRESS), (tmp_path / "for-exim").read_text())]) == [(True, "0", ADDRESS)]


@needs_exim
class TestListedDifferences:
    """Where Exim is wrong, or narrower. Each is asserted, so that we hear when it changes."""

    def test_exim_takes_expired_tags_again_after_the_wrap(self, exim: Exim) -> None:
        """Exim compares stamps as numbers: 997 seems to lie ahead of 000 for as long as the counter stays below it."""
        address = tagged(WRAP + -10)
        assert not good(exim, address, WRAP + -2)
        for on in (WRAP, WRAP + 5, WRAP + 900):
            assert good(exim, address, on)
            assert verdict(address, on) is Verdict.EXPIRED

    def test_exim_takes_a_tag_whose_last_day_is_farther_ahead_than_any_tag_lives(self, exim: Exim) -> None:
        """Exim has no upper bound."""
        address = tagged(DAY + 100)
        assert good(exim, address, DAY)
        assert verdict(address, DAY) is Verdict.EXPIRED

    def test_exim_refuses_good_tags_of_a_longer_lifetime_before_the_wrap(self, exim: Exim) -> None:
        """Exim's mending of the wrap knows stamps below 007 only: a shared key keeps the lifetime of seven days."""
        address = tagged(WRAP + -3, lifetime=10)
        assert not good(exim, address, WRAP + -3)
        assert verdict(address, WRAP + -3, lifetime=10) is Verdict.VALID

    def test_exim_refuses_the_signature_in_upper_case(self, exim: Exim) -> None:
        """Exim matches the hex digits in any case, and then compares them as they are."""
        address = re.sub(r"(?<=^prvs=3787)\w{6}", lambda match: match[0].upper(), tagged(DAY))
        assert address != tagged(DAY)
        assert not good(exim, address, DAY)
        assert verdict(address, DAY) is Verdict.VALID

    def test_exim_takes_no_secret_of_more_than_64_octets(self, exim: Exim) -> None:
        """A secret of ours may be longer, so `batv key export --exim` checks for it."""
        (answer,) = exim.sign([(ADDRESS, "x" * 65, 0)], DAY.iso())
        assert answer.startswith("Failed: ")

    def test_exim_reads_no_tag_behind_a_plus_sign(self, exim: Exim) -> None:
        """The placement `subaddress` is for batv-tools."""
        tag = tagged(DAY)[len("prvs=") :][:10]
        address = f"Joe+prvs={tag}@example.com"
        assert exim.check([(address, SECRET)], DAY.iso()) == [(False, "", "")]
        assert verdict(address, DAY) is Verdict.VALID
