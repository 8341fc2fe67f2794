"""Replies: whole ones come out of octets in pieces of any size, and nothing else does."""

from __future__ import annotations

import pytest

from batv.errors import ReplyError
from batv.smtp.reply import Reply, ReplyParser

STREAM = (
    b"220 mx.example ESMTP\r\n"
    b"250-mx.example\r\n250-SIZE 1000\r\n250-\r\n250 DSN\r\n"
    b"354\r\n"
    b"550-5.1.1 no such user\r\n550 5.1.1 \xc3\xb6\t(x)\r\n"
    b"421 4.3.2 \r\n"
)
REPLIES = [
    Reply(220, (b"mx.example ESMTP",)),
    Reply(250, (b"mx.example", b"SIZE 1000", b"", b"DSN")),
    Reply(354, (b"",)),
    Reply(550, (b"5.1.1 no such user", b"5.1.1 \xc3\xb6\t(x)")),
    Reply(421, (b"4.3.2 ",)),
]


def read(*pieces: bytes) -> list[Reply]:
    """Return the replies that come out of the pieces."""
    parser = ReplyParser()
    return [reply for piece in pieces for reply in parser.feed(piece)]


def endless(piece: bytes) -> tuple[int, str]:
    """Feed the same piece again and again; return how many octets went in until an error came, and its text."""
    parser = ReplyParser()
    for count in range(1, 1000):
        try:
            replies = list(parser.feed(piece))
        except ReplyError as error:
            return count * len(piece), str(error)
        assert replies == []
    pytest.fail("there is no bound")


def test_replies_come_out_of_pieces_of_any_size() -> None:
    """A network cuts where it likes; several replies may come at once."""
    assert read(STREAM) == REPLIES
    assert read(*(STREAM[at : at + 1] for at in range(len(STREAM)))) == REPLIES
    for at in range(len(STREAM)):
        assert read(STREAM[:at], STREAM[at:]) == REPLIES


def test_a_reply_goes_back_as_it_came() -> None:
    """The next hop's words reach the client unchanged, all lines; only a missing space is put in."""
    for reply in REPLIES:
        assert read(reply.octets) == [reply]
    assert b"".join(reply.octets for reply in REPLIES) == STREAM.replace(b"354\r\n", b"354 \r\n")


def test_a_reply_of_ours_is_written_line_by_line() -> None:
    """All lines but the last have a hyphen after the code."""
    assert Reply.of(250, "2.1.0 ok").octets == b"250 2.1.0 ok\r\n"
    assert Reply.of(250, "mx", "SIZE 1", "DSN").octets == b"250-mx\r\n250-SIZE 1\r\n250 DSN\r\n"
    with pytest.raises(UnicodeEncodeError):
        Reply.of(250, "ö")


def test_the_first_digit_tells_what_a_reply_means() -> None:
    """Done, go on, try again, do not: each code is one of them."""
    for code in range(200, 600):
        reply = Reply.of(code, "")
        kinds = (reply.positive, reply.intermediate, reply.transient, reply.permanent)
        assert [index for index, kind in enumerate(kinds, 2) if kind] == [code // 100]


def test_a_reply_is_one_line_in_the_log() -> None:
    """Octets that are no UTF-8 are shown as such."""
    assert str(Reply(550, (b"5.1.1 no", b"such \xff user"))) == "550 5.1.1 no such \\xff user"


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n",
        b"25\r\n",
        b"2500 ok\r\n",
        b"ok\r\n",
        b"000 ok\r\n",
        b"100 ok\r\n",
        b"600 ok\r\n",
        b"999 ok\r\n",
        b"25a ok\r\n",
        b" 250 ok\r\n",
        b"250_ok\r\n",
        b"250\tok\r\n",
        b"+250 ok\r\n",
        b"-50 ok\r\n",
        b"\xd9\xa2\xd9\xa5\xd9\xa0 ok\r\n",
        b"250 o\0k\r\n",
        b"250 o\x1bk\r\n",
        b"250 o\x7fk\r\n",
        b"250 ok\n",
        b"250 ok\n\r\n",
        b"250 ok\n250 ok\r\n",
        b"250 ok\r250 ok\r\n",
        b"250 ok\r\r\n",
        b"250-a\r\n251 b\r\n",
        b"250-a\r\n550 b\r\n",
        b"250-a\r\nb\r\n",
        b"250-a\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
    ],
)
def test_what_is_no_reply_is_an_error(octets: bytes) -> None:
    """A guess could take a refusal for an acceptance, or one reply for two; whole or octet by octet."""
    with pytest.raises(ReplyError):
        read(octets)
    with pytest.raises(ReplyError):
        read(*(octets[at : at + 1] for at in range(len(octets))))


def test_replies_before_the_broken_one_are_given() -> None:
    """A refusal that came is still a refusal; nothing is given after the break."""
    parser = ReplyParser()
    replies = iter(parser.feed(b"250 a\r\n550 b\r\nnonsense\r\n250 c\r\n"))
    assert [next(replies), next(replies)] == [Reply(250, (b"a",)), Reply(550, (b"b",))]
    with pytest.raises(ReplyError, match="does not follow RFC 5321"):
        next(replies)


def test_a_line_that_never_ends_is_an_error() -> None:
    """A next hop that is broken or taken over must not fill our memory."""
    assert read(b"250 " + b"a" * 2044 + b"\r\n")[0].code == 250
    with pytest.raises(ReplyError):
        read(b"250 " + b"a" * 2045 + b"\r\n")
    assert endless(b"2" * 100) == (2100, "a reply line is longer than 2048 octets")


def test_the_longest_line_may_come_with_its_end_cut_in_two() -> None:
    """A network cuts where it likes."""
    assert read(b"250 " + b"a" * 2044 + b"\r", b"\n")[0].code == 250
    with pytest.raises(ReplyError, match="longer than 2048"):
        read(b"250 " + b"a" * 2045 + b"\r")


def test_lines_that_never_end_are_an_error() -> None:
    """Nor may lines without number."""
    assert endless(b"250-" + b"a" * 994 + b"\r\n") == (66_000, "a reply is longer than 65536 octets")
    assert len(read(b"250-\r\n" * 10_000 + b"250 ok\r\n")[0].texts) == 10_001
    assert len(read((b"250-" + b"a" * 994 + b"\r\n") * 60 + b"250 ok\r\n", (b"250 " + b"a" * 994 + b"\r\n") * 60)) == 61


def test_it_is_known_whether_a_reply_is_under_way() -> None:
    """A connection with half a reply on it cannot be used again."""
    parser = ReplyParser()
    assert parser.idle
    for piece in (b"2", b"50-a\r\n", b"250 b", b"\r"):
        assert list(parser.feed(piece)) == []
        assert not parser.idle
    assert len(list(parser.feed(b"\n"))) == 1
    assert parser.idle
