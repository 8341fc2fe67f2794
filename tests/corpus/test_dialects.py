"""Each dialect against what the real system sent: structure, header fields, report fields, wording.

The captures beside this file were made by `scripts/mta/capture-bounces`; their names tell program, version and kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import pytest

from batv.corpus.dialects import DIALECTS, Action, Report
from batv.corpus.letters import letter

if TYPE_CHECKING:
    from email.message import EmailMessage, MIMEPart

CAPTURES: Final = Path(__file__).parent / "captures"
BY_NAME: Final = {dialect.name: dialect for dialect in DIALECTS}

ON_THE_WAY: Final = re.compile(
    r"(?i)received|return-path|delivered-to|x-|dkim|status|lines|content-length|envelope-to|list-|precedence|errors-to"
    r"|sender|authentication|spamdiag|date-warning|importance|priority"
)
"""Fields that other systems put on, on the way or in the archive."""

RUN: Final = ("postfix", "exim", "haraka", "sendmail", "opensmtpd", "courier")
"""The dialects whose systems were run for the captures."""

REPLIES: Final = {
    Action.FAILED: ("5.1.1", "550 5.1.1 <nobody@away.example>: Recipient address rejected: User unknown"),
    Action.DELAYED: ("4.4.1", "451 4.4.1 Connection timed out"),
}


@dataclass(frozen=True, slots=True)
class Features:
    """What tells one system's reports from another's.

    Attributes:
        fields: names of the header fields, in lower case and in their order, without those of the way.
        tree: types of the parts, down to the message that came back, with what the head of each part says.
        about: names of the fields of the machine's part, for the message and for each recipient.
        wording: lines of the first text, without those that hold names or numbers.
    """

    fields: tuple[str, ...]
    tree: tuple[str, ...]
    about: tuple[tuple[str, ...], ...]
    wording: frozenset[str]


def features(octets: bytes) -> Features:
    """Return the features of a report."""
    if octets.startswith(b"From "):
        octets = octets.partition(b"\n")[2]
    message = message_from_bytes(octets, policy=policy.default)
    fields = tuple(name.lower() for name in message.keys() if not ON_THE_WAY.match(name))  # noqa: SIM118 -- one of each is not all
    return Features(fields, tuple(tree(message)), tuple(about(message)), frozenset(wording(message)))


def tree(message: MIMEPart) -> list[str]:
    """Return the types of the parts; of a message that came back, nothing but that it did."""
    kind = message.get_content_type()
    if kind in {"message/rfc822", "text/rfc822-headers"}:
        return ["what came back"]
    found = [kind]
    if message.is_multipart() and kind.startswith("multipart/"):
        for part in message.iter_parts():
            assert not isinstance(part, str)
            found += tree(part)
    return found


def about(message: EmailMessage) -> list[tuple[str, ...]]:
    """Return the names of the fields of the delivery report."""
    for part in message.walk():
        if part.get_content_type() == "message/delivery-status":
            blocks = part.get_payload()
            assert isinstance(blocks, list)
            return [tuple(name.lower() for name in block.keys()) for block in blocks if block.keys()]  # type: ignore[union-attr]  # noqa: SIM118 -- as above
    return []


def wording(message: EmailMessage) -> list[str]:
    """Return the lines of the first text that are the same in every report, each with single spaces."""
    for part in message.walk():
        if part.get_content_maintype() == "text":
            text = part.get_payload(decode=True)
            assert isinstance(text, bytes)
            body = text.decode("utf-8", "replace").split("- Original message", 1)[0].split("--- Below", 1)[0]
            lines = (" ".join(line.split()) for line in re.sub(r"<[^>@]*>", "\n", body).splitlines())
            return [
                line
                for line in lines
                if re.search(r"[a-zA-Z]{3}", line) and not re.search(r"[@0-9<>\[]|\w\.\w|timed out", line)
            ]
    return []


def written(name: str, action: Action, seed: int = 1) -> Features:
    """Return the features of a report in a dialect."""
    rng = Random(seed)
    status, reply = REPLIES.get(action, ("2.0.0", "250 2.0.0 Ok: queued as 4F1A22"))
    sent = 1_795_000_000
    report = Report(
        rng,
        action,
        "joe@example.com",
        "nobody@away.example",
        letter(rng, "joe@example.com", "nobody@away.example", sent),
        "mail.peer.example",
        "mx.away.example",
        "192.0.2.1",
        status,
        reply,
        sent + 3600,
        "0000001.ABCDEF12",
    )
    return features(BY_NAME[name].write(report))


def shared(mine: Features, theirs: Features) -> float:
    """Return which part of my wording is theirs."""
    return len(mine.wording & theirs.wording) / max(1, len(mine.wording))


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*.eml")), ids=lambda path: path.stem)
def test_a_dialect_is_that_of_the_system_as_it_runs_today(path: Path) -> None:
    """Field by field and part by part; the wording but for what depends on the case."""
    name, _, action = path.stem.split("-")
    mine, theirs = written(name, Action(action)), features(path.read_bytes())
    assert mine.fields == theirs.fields
    assert mine.tree == theirs.tree
    assert mine.about == theirs.about
    assert shared(mine, theirs) >= 0.75, mine.wording - theirs.wording


def test_there_are_captures_of_every_kind_of_report() -> None:
    """Those of the servers that are free to be run anywhere."""
    found = {tuple(path.stem.split("-")[::2]) for path in CAPTURES.glob("*.eml")}
    wanted = {(name, action.value) for name in RUN for action in BY_NAME[name].actions}
    assert found >= wanted


def test_a_bounce_of_groupwise_is_one_text_that_holds_nothing_of_the_message() -> None:
    """Facts of two bounces of GroupWise 6.5.7 and 7.0.1, which nobody can run here.

    They are t/corpus/novell-no-rhs.msg and t/corpus/novell-with-rhs.msg in the repository
    rjbs/Mail-DeliveryStatus-BounceParser, copyright IC Group, under the terms of Perl itself.
    """
    mine = written("groupwise", Action.FAILED)
    assert mine.fields == ("message-id", "date", "from", "to", "subject", "mime-version", "content-type")
    assert mine.tree == ("multipart/mixed", "text/plain")
    assert not mine.about
    assert len(mine.wording) == 1


_BOUNCES: Final = "flanker/tests_fixtures_messages_bounce_"
_DETECTOR: Final = "mailbouncedetector/MailBounceDetector.Tests_Fixtures_bounce_"

SAMPLES: Final = (
    ("postfix", f"{_BOUNCES}zed.eml", 0.8, True),
    ("sendmail", "flufl/dsn_11.eml", 0.5, True),
    ("qmail", f"{_DETECTOR}qmail_no_host_found.eml", 0.0, True),
    ("qmail", "flufl/qmail_01.eml", 0.5, True),
    ("opensmtpd", "flufl/dsn_18.eml", 0.9, True),
    ("exchange", f"{_DETECTOR}exchange_non_existing_mailbox.eml", 0.6, True),
    ("exchange-online", f"{_BOUNCES}office365.eml", 0.6, True),
    ("gmail", f"{_BOUNCES}gmail-invalid-address.eml", 0.5, True),
    ("yahoo", "flufl/yahoo_13.eml", 0.6, True),
    ("domino", "flufl/simple_11.eml", 0.6, False),
    ("plain", "flufl/simple_05.eml", 0.5, False),
    ("plain", "flufl/simple_07.eml", 0.5, False),
    ("plain", "flufl/simple_20.eml", 0.5, False),
)
"""Dialect, sample, the part of the wording that is shared at least, and whether the dialect has one form only."""


NOT_ALWAYS: Final = {"diagnostic-code", "original-recipient", "remote-mta", "received-from-mta", "x-actual-recipient"}
"""Fields of the machine's part that depend on the case or on the release."""


@pytest.mark.realcorpus
@pytest.mark.parametrize(
    ("name", "sample", "least", "single"), SAMPLES, ids=[f"{row[0]}-{row[1][-24:]}" for row in SAMPLES]
)
def test_a_dialect_is_that_of_real_bounces(
    real_corpora: Path, name: str, sample: str, least: float, *, single: bool
) -> None:
    """Structure and report fields as the real one has them, no header field that it has not, and its words."""
    theirs = features((real_corpora / sample).read_bytes())
    forms = [written(name, Action.FAILED, seed) for seed in range(1 if single else 24)]
    mine = max(forms, key=lambda form: (form.tree == theirs.tree, shared(form, theirs)))
    assert shared(mine, theirs) >= least, mine.wording - theirs.wording
    assert mine.tree == theirs.tree
    unknown = set(mine.fields) - set(theirs.fields) - {"message-id", "auto-submitted", "content-transfer-encoding"}
    assert not unknown
    for block, real in zip(mine.about, theirs.about, strict=False):
        assert set(block) <= {*real, *NOT_ALWAYS}
