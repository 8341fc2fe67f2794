"""The known answers of tests/vectors: made without batv, and what batv must give."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Final

import pytest

from batv import signing
from batv.address import Mailbox
from batv.day import Day
from batv.keyring import Key, KeyRing, Secret
from batv.mac import Case
from batv.signing import Style
from batv.tag import Placement, Scheme
from batv.verdict import Verdict

FOLDER: Final = Path(__file__).parents[1] / "vectors"


def load(name: str) -> dict[str, Any]:
    """Return the content of one file of known answers."""
    content: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return content


def day(text: str | None) -> Day | None:
    """Return a day of a file, or None."""
    return None if text is None else Day.from_iso(text)


def ring(content: dict[str, Any]) -> KeyRing:
    """Return the ring of a file."""
    keys = tuple(
        Key(
            each["number"],
            Secret(each["secret"].encode()),
            Day.from_iso(each["created"]),
            each["lifetime"],
            day(each["signs_from"]),
            day(each["retired"]),
            day(each["revoked"]),
        )
        for each in content["keys"]
    )
    return KeyRing(Day.from_iso("2023-06-01"), keys)


def cases(name: str) -> list[Any]:
    """Return the vectors of a file, each with its ring and under its own name."""
    content = load(name)
    keys = ring(content)
    return [
        pytest.param(keys, vector, id=vector["name"].encode("unicode_escape").decode()) for vector in content["vectors"]
    ]


@pytest.mark.parametrize(("keys", "vector"), cases("sign.json"))
def test_an_address_is_signed_as_the_formula_says(keys: KeyRing, vector: dict[str, str]) -> None:
    """Other implementations that share the key must come to the same octets."""
    style = Style(Case(vector["case"]), Placement(vector["placement"]))
    mailbox = Mailbox.parse(vector["address"].encode())
    signed = signing.sign(mailbox, keys, Day.from_iso(vector["day"]), style)
    assert isinstance(signed, Mailbox)
    assert signed.octets.decode() == vector["signed"]
    assert Mailbox.parse(signed.octets) == signed
    assert signing.strip(signed) == mailbox


@pytest.mark.parametrize(("keys", "vector"), cases("verify.json"))
def test_a_good_tag_is_valid_on_its_days_and_on_no_other(keys: KeyRing, vector: dict[str, Any]) -> None:
    """A genuine bounce comes home for as long as the tag lives, and not a day longer."""
    mailbox = Mailbox.parse(vector["address"].encode())
    first, last = Day.from_iso(vector["good_from"]), Day.from_iso(vector["good_until"])
    for ahead in range(last - first + 1):
        found = signing.verify(mailbox, keys, first + ahead)
        assert found.verdict is Verdict.VALID
        assert found.mailbox.octets.decode() == vector["bare"]
        assert found.case is Case(vector["case"])
        assert found.key is keys.key(vector["key"])
        assert found.days_left == last - (first + ahead)
    for other in (first + -1, last + 1):
        assert signing.verify(mailbox, keys, other).verdict is Verdict.EXPIRED


@pytest.mark.parametrize(("keys", "vector"), cases("refuse.json"))
def test_a_wrong_tag_is_refused_for_the_right_reason(keys: KeyRing, vector: dict[str, str]) -> None:
    """The verdict is what the log says and what the status field shows: it has to name the check that failed."""
    mailbox = Mailbox.parse(vector["address"].encode())
    assert signing.verify(mailbox, keys, Day.from_iso(vector["day"])).verdict is Verdict(vector["verdict"])


@pytest.mark.parametrize("vector", [pytest.param(each, id=each["signed"]) for each in load("wrap.json")["vectors"]])
def test_a_tag_signed_near_the_wrap_is_good_on_its_days_of_the_whole_cycle(vector: dict[str, Any]) -> None:
    """Comparing stamps as numbers fails on these days, which come every 1000 days."""
    content = load("wrap.json")
    signed_on = Day.from_iso(vector["signed_on"])
    key = Key(0, Secret(content["secret"].encode()), signed_on, vector["lifetime"], signed_on)
    keys = KeyRing(signed_on, (key,))
    tagged = Mailbox.parse(vector["signed"].encode())
    assert signing.sign(Mailbox.parse(content["address"].encode()), keys, signed_on) == tagged
    first, last = Day.from_iso(vector["good_from"]), Day.from_iso(vector["good_until"])
    good = [n for n in range(-500, 500) if signing.verify(tagged, keys, signed_on + n).verdict is Verdict.VALID]
    assert good == list(range(first - signed_on, last - signed_on + 1))


@pytest.mark.parametrize(("keys", "vector"), cases("strong.json"))
def test_an_address_is_signed_strongly_as_the_formula_says(keys: KeyRing, vector: dict[str, str]) -> None:
    """The scheme is our own: these answers are its definition."""
    style = Style(Case(vector["case"]), Placement(vector["placement"]), Scheme.STRONG)
    mailbox = Mailbox.parse(vector["address"].encode())
    today = Day.from_iso(vector["day"])
    signed = signing.sign(mailbox, keys, today, style)
    assert isinstance(signed, Mailbox)
    assert signed.octets.decode() == vector["signed"]
    assert signing.strip(signed) == mailbox
    assert signing.verify(signed, keys, today).verdict is Verdict.VALID


@pytest.mark.parametrize(
    "vector",
    [pytest.param(each, id=f"{each['signed_on']}-{each['step']}") for each in load("step.json")["vectors"]],
)
def test_a_tag_of_a_key_with_a_step_is_good_on_its_days_of_the_whole_cycle(vector: dict[str, Any]) -> None:
    """Every verifier must know how far ahead a day of expiry may lie."""
    content = load("step.json")
    signed_on = Day.from_iso(vector["signed_on"])
    begun = signed_on + -100
    key = Key(0, Secret(content["secret"].encode()), begun, signs_from=begun, step=vector["step"])
    keys = KeyRing(begun, (key,))
    tagged = Mailbox.parse(vector["signed"].encode())
    assert signing.sign(Mailbox.parse(content["address"].encode()), keys, signed_on) == tagged
    first, last = Day.from_iso(vector["good_from"]), Day.from_iso(vector["good_until"])
    good = [n for n in range(-500, 500) if signing.verify(tagged, keys, signed_on + n).verdict is Verdict.VALID]
    assert good == list(range(first - signed_on, last - signed_on + 1))


def test_the_files_are_what_the_formula_gives() -> None:
    """An answer that was bent by hand to fit the code would prove nothing."""
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    for name, text in make.files().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, name


def test_every_verdict_that_a_tag_can_get_is_among_the_known_answers() -> None:
    """A verdict without a known answer could change its meaning unseen."""
    verdicts = {Verdict(each["verdict"]) for each in load("refuse.json")["vectors"]}
    assert verdicts == {
        Verdict.UNTAGGED,
        Verdict.MALFORMED,
        Verdict.UNKNOWN_KEY,
        Verdict.BAD_SIGNATURE,
        Verdict.EXPIRED,
    }
