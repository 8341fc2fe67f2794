"""Log lines: one a transaction, in Postfix's form, without anything that a peer could smuggle in."""

from __future__ import annotations

import fcntl
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batv.observe.event import Level, Misnamed, Notice, TransactionEnded, printable
from batv.observe.log import LogWriter, log_line, log_observer
from batv.verdict import Disposition, Verdict
from tests.support.event import EVENT, OUTCOME


def test_a_transaction_is_one_line_of_keys_and_values() -> None:
    """Tools for Postfix's log read it."""
    assert log_line(EVENT) == (
        "inbound: 5e55.1: client=<192.0.2.1>, helo=<mx.example>, from=<>,"
        " to=<joe@example.com> verdict=untagged disposition=discard (no tag),"
        " message-id=<1@peer.example>, size=1234, relay=127.0.0.1:10028, reply=<250 2.0.0 Ok>"
    )


def test_a_recipient_with_a_reply_of_its_own_has_it_in_the_line() -> None:
    """One was refused at RCPT, the message went to the others."""
    other = OUTCOME._replace(
        verdict=Verdict.VALID, disposition=Disposition.REWRITE, key_number=3, reply="550 5.1.1 no such user"
    )
    line = log_line(EVENT._replace(recipients=(OUTCOME, other)))
    assert "key=3 disposition=rewrite (no tag) reply=<550 5.1.1 no such user>, message-id=" in line
    assert line.count(" reply=<") == 2


def test_a_line_has_a_hundred_recipients_and_the_number_of_the_others() -> None:
    """A line that grew with the client's RCPTs would fill the log."""
    line = log_line(EVENT._replace(recipients=(OUTCOME,) * 102, unnamed=3))
    assert line.count(", to=<joe@example.com> ") == 100
    assert " disposition=discard (no tag), more-recipients=5, message-id=<1@peer.example>, size=" in line


def test_the_first_that_was_no_recipient_is_told_with_the_reply() -> None:
    """It is in no list of recipients, and whoever looks for it would find a number alone."""
    misnamed = Misnamed("<joe@@example.com>", "501 5.1.3 Bad recipient address syntax")
    line = log_line(EVENT._replace(recipients=(), unnamed=2, misnamed=misnamed))
    assert (
        ", from=<>, more-recipients=2, refused=<joe@@example.com> reply=<501 5.1.3 Bad recipient address syntax>,"
        " message-id=<1@peer.example>, "
    ) in line


def test_a_client_that_left_without_a_reply_has_none_in_the_line() -> None:
    """An empty one would look like one that says nothing."""
    line = log_line(EVENT._replace(recipients=(OUTCOME._replace(reply="250 2.1.5 Ok"),), reply=""))
    assert line.endswith(
        " (no tag) reply=<250 2.1.5 Ok>, message-id=<1@peer.example>, size=1234, relay=127.0.0.1:10028"
    )


def test_a_cause_stands_at_the_end() -> None:
    """What went wrong is for the log alone."""
    assert log_line(EVENT._replace(cause="the next hop closed the connection")).endswith(
        ", cause=<the next hop closed the connection>"
    )


def test_a_message_without_an_identifier_says_so() -> None:
    """The key is always there."""
    assert "message-id=<>, " in log_line(EVENT._replace(message_id=""))


def test_a_notice_names_what_it_happened_to() -> None:
    """In the order in which the fields were given."""
    notice = Notice(Level.ERROR, "key rings not read", {"age_seconds": 5, "cause": "damaged"})
    assert log_line(notice) == "key rings not read: age_seconds=5, cause=damaged"
    assert log_line(Notice(Level.INFO, "stopped")) == "stopped"


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (EVENT, logging.INFO),
        (EVENT._replace(cause="client gone"), logging.WARNING),
        (Notice(Level.INFO, "x"), logging.INFO),
        (Notice(Level.WARNING, "x"), logging.WARNING),
        (Notice(Level.ERROR, "x"), logging.ERROR),
    ],
)
def test_what_went_wrong_stands_out(
    caplog: pytest.LogCaptureFixture, event: TransactionEnded | Notice, level: int
) -> None:
    """An administrator filters by level."""
    with caplog.at_level(logging.INFO, "batv"):
        logging.getLogger("batv").addHandler(caplog.handler)
        try:
            log_observer(event)
        finally:
            logging.getLogger("batv").removeHandler(caplog.handler)
    assert {record.levelno for record in caplog.records} == {level}


@given(st.binary(max_size=200))
def test_nothing_from_a_peer_acts_on_a_log_or_a_terminal(octets: bytes) -> None:
    """No line feed begins a line of the peer's making, no escape sequence colours the screen."""
    text = printable(octets)
    assert text.isprintable()
    event = EVENT._replace(
        reverse_path=text,
        recipients=(OUTCOME._replace(forward_path=text, reply=text),),
        helo=octets.decode("latin-1"),
        message_id=octets.decode("latin-1"),
        reply=octets.decode("latin-1"),
        cause=octets.decode("latin-1"),
    )
    assert log_line(event).isprintable()


@given(
    st.from_regex(r"\A[0-9]{4}[0-9a-fA-F]{6}\Z"),
    st.sampled_from(["prvs=%s=joe@example.com", "joe+prvs=%s@example.com", "PRVS=%s=joe@example.com", '"prvs=%s=j"@d']),
    st.sampled_from(["%s", "x%s", "<%s>", "a %s b %s", "prvs=%s"]),
)
def test_no_tag_is_written_whole(tag: str, form: str, around: str) -> None:
    """A tag is good for a week: whoever reads the log could have bounces delivered."""
    text = around.replace("%s", form % tag)
    event = EVENT._replace(helo=text, message_id=text, reply=text, cause=text, reverse_path=printable(text.encode()))
    for line in (log_line(event), log_line(Notice(Level.INFO, "x", {"cause": text})), printable(text.encode())):
        assert tag not in line


def test_lines_come_in_their_order_and_all_by_the_end() -> None:
    """Closing waits for what was handed over."""
    reader, writer = os.pipe()
    log = LogWriter(writer)
    for number in range(1000):
        log.observe(Notice(Level.INFO, f"line {number}"))
    log.close()
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert lines.read().splitlines() == [f"batv/INFO: line {number}" for number in range(1000)]


def test_a_line_begins_with_the_name_of_the_program_and_the_level() -> None:
    """Tools for Postfix's log tell programs apart by the first; an administrator looks for the second."""
    reader, writer = os.pipe()
    log = LogWriter(writer)
    for event in (EVENT, EVENT._replace(cause="client gone"), Notice(Level.ERROR, "x", {"cause": "y"})):
        log.observe(event)
    log.close()
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert lines.read().splitlines() == [
            f"batv/INFO: {log_line(EVENT)}",
            f"batv/WARNING: {log_line(EVENT)}, cause=<client gone>",
            "batv/ERROR: x: cause=y",
        ]


def test_lines_of_several_writers_to_one_pipe_stay_whole() -> None:
    """Two proxies may have one stderr, and its reader may be slow."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)  # the least: both are kept waiting again and again
    logs = [LogWriter(writer), LogWriter(writer)]
    for number in range(1000):
        for log, name in zip(logs, ("one", "other"), strict=True):
            log.observe(Notice(Level.INFO, name * 100, {"number": number}))
    with os.fdopen(reader) as lines:
        found = [lines.readline() for _ in range(2000)]
    for log in logs:
        log.close()
    os.close(writer)
    for name in ("one", "other"):
        begin = f"batv/INFO: {name * 100}: number="
        assert [line for line in found if line.startswith(begin)] == [f"{begin}{number}\n" for number in range(1000)]


def test_a_reader_of_the_log_that_stalls_stops_nobody() -> None:
    """Lines beyond a bound are lost, and the log says how many once it is read again."""
    reader, writer = os.pipe()
    log = LogWriter(writer, waiting_lines=100)
    for _ in range(2000):
        log.observe(Notice(Level.INFO, "x" * 1000))  # the pipe takes 64 KiB, so this would wait for ever
    seen = b""
    while b"log lines lost" not in seen:
        log.observe(Notice(Level.INFO, "read again"))
        seen += os.read(reader, 65_536)
    log.close()
    os.close(writer)
    os.close(reader)
