"""Replies that are genuine all pass with the ledger; of those that are not, none does."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

import pytest

from batv.corpus.classes import CLASSES
from batv.corpus.manifest import Outcome
from batv.corpus.replies import AUTOMATIC
from batv.keyring import Secret
from batv.rescue import claims_of
from batv.store.ledger import Ledger, LedgerLimits
from batv.verdict import Verdict
from tests.corpus.ground import TODAY, Ground

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PLAIN: Final = tuple(f"automatic-{what}-plain" for what in AUTOMATIC)
_HARVESTED: Final = "forged-harvested-id"
_SENT: Final = 1000


@pytest.mark.parametrize("on_forged", ["discard", "quarantine", "reject", "mark", "pass"])
def test_all_replies_to_plain_addresses_are_rescued_and_no_forged_bounce_is(ground: Ground, on_forged: str) -> None:
    """Vacation notices, challenges, receipts, answers to invitations, notices of lists; beside all other classes."""
    name = f"{on_forged}.toml"
    config = ground.configure(name, on_forged, "[ledger]\nenabled = true\n", "rescue = true\n")
    weights = [option for kind in _PLAIN for option in ("--weight", f"{kind}=6")]
    said = ground(
        "generate", "--out", str(ground.folder / "c"), "--count", "600", "--seed", on_forged, *weights, config=config
    )
    assert said.status == 0, said.err
    score = ground.score(ground.read("c"), config)
    assert [fate for fate in score.fates if fate.outcome is not fate.recipient.outcome or fate.faults] == []
    rescued = [fate for fate in score.fates if fate.recipient.verdict is Verdict.RESCUED]
    assert {fate.kind for fate in rescued} == (set(_PLAIN) if on_forged != "pass" else set())
    assert {fate.outcome for fate in rescued} <= {Outcome.DELIVERED}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A ledger of messages of a hundred users to fifty parties."""
    folder: Path = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(folder, Secret(b"l" * 32), lambda: TODAY, LedgerLimits(), b"example.com".__eq__)
    for number in range(_SENT):
        ledger.note(_id(number), (_user(number),), (_party(number),))
    assert ledger.flush()
    yield ledger
    ledger.close()


def _id(number: int) -> bytes:
    return b"%d.%08x@mail.example.com" % (number, number * 2_654_435_761 % (1 << 32))


def _user(number: int) -> bytes:
    return b"user%d@example.com" % (number % 100)


def _party(number: int) -> bytes:
    return b"party%d@peer%d.example" % (number % 50, number % 50)


def _reply(message_id: bytes, party: bytes) -> bytes:
    return b"From: <%b>\r\nAuto-Submitted: auto-replied\r\nIn-Reply-To: <%b>\r\n\r\nAway.\r\n" % (party, message_id)


def _report(message_id: bytes, party: bytes) -> bytes:
    return (
        b"From: mailer-daemon@mx.example\r\nContent-Type: multipart/report; boundary=b\r\n\r\n--b\r\n"
        b"Content-Type: message/delivery-status\r\n\r\nFinal-Recipient: rfc822;%b\r\n\r\n--b\r\n"
        b"Content-Type: text/rfc822-headers\r\n\r\nMessage-ID: <%b>\r\n--b--\r\n" % (party, message_id)
    )


def _known(ledger: Ledger, content: bytes, user: bytes) -> bool:
    claims = claims_of(content)
    return ledger.knows(claims.message_ids, user, claims.parties)


def test_every_genuine_one_is_known(ledger: Ledger) -> None:
    """Else the tests below would prove nothing."""
    for number in range(_SENT):
        for write in (_reply, _report):
            assert _known(ledger, write(_id(number), _party(number)), _user(number))


def test_of_a_hundred_thousand_with_made_up_ids_none_is_known(ledger: Ledger) -> None:
    """Users and parties are guessed right."""
    chance = Random(1)
    for _ in range(100_000):
        number = chance.randrange(_SENT)
        made_up = b"%d.%08x@mail.example.com" % (chance.randrange(_SENT), chance.randrange(1 << 32))
        write = chance.choice((_reply, _report))
        assert not _known(ledger, write(made_up, _party(number)), _user(number))


def test_of_a_thousand_with_harvested_ids_none_is_known_that_goes_elsewhere_or_speaks_of_another(
    ledger: Ledger,
) -> None:
    """Ids are public in archives: user and party must be those of the message."""
    for number in range(_SENT):
        for write in (_reply, _report):
            assert not _known(ledger, write(_id(number), _party(number)), _user(number + 1))
            assert not _known(ledger, write(_id(number), _party(number + 1)), _user(number))
            assert not _known(ledger, write(_id(number), b"spam@evil.example"), _user(number))


def test_of_a_thousand_with_harvested_ids_none_passes_the_proxy(ground: Ground) -> None:
    """Over SMTP, as real servers word them, to a proxy whose ledger has every one of these ids."""
    config = ground.configure("rescue.toml", "discard", "[ledger]\nenabled = true\n", "rescue = true\n")
    ground.generate("c", config, count=_SENT, seed="1", weights=dict.fromkeys(CLASSES, 0.0) | {_HARVESTED: 1.0})
    score = ground.score(ground.read("c"), config)
    assert [fate.kind for fate in score.fates] == [_HARVESTED] * _SENT
    assert {fate.outcome for fate in score.fates} == {Outcome.DISCARDED}
    assert score.mistakes() == []
    reasons = {fate.finding.reason if fate.finding is not None else "" for fate in score.fates}
    assert reasons == {"no tag; answers nothing that this recipient has sent"}, "each names a message that is known"
