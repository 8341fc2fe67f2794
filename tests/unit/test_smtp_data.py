"""The DATA scanner against a slow and obvious reference: every short word of hostile octets, in pieces of any size."""

from __future__ import annotations

import random
from itertools import islice, product
from typing import TYPE_CHECKING, Final

import pytest

from batv.smtp.data import DataScanner, Unstuffer
from tests.support.reference import Scanned, scanned, unstuffed
from tests.support.smuggling import BARE, CLEAN, END, SMUGGLED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.conftest import Sample

LETTERS: Final = (b"\r", b"\n", b".", b"\0", b" ", b"a")


def scan(pieces: Iterable[bytes]) -> Scanned:
    """Return what the scanner makes of the pieces, as the reference does."""
    scanner = DataScanner()
    out = []
    left = b""
    for piece in pieces:
        if scanner.done:
            left += piece
        else:
            out.append(scanner.feed(piece))
    if not scanner.done:
        return Scanned(None, b"", 0, bare=False)
    return Scanned(b"".join(out), scanner.rest + left, scanner.octets, scanner.bare)


def ends_for_anybody(message: bytes) -> list[bytes]:
    """Return the ends that a lenient server finds in what was sent on: any CR or LF before a dot and after it."""
    text = (b"\r\n" + message).replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\0", b"")
    return [text[at : at + 3] for at in range(len(text)) if text[at : at + 3] == b"\n.\n"]


def splits(octets: bytes) -> Iterator[tuple[bytes, ...]]:
    """Yield the octets whole, octet by octet, and in two pieces in every way."""
    yield (octets,)
    yield tuple(octets[at : at + 1] for at in range(len(octets)))
    for at in range(1, len(octets)):
        yield octets[:at], octets[at:]


def check(octets: bytes, ways: Iterable[tuple[bytes, ...]]) -> None:
    """Assert that the scanner does what the reference does, and that nothing can be taken for an end.

    Args:
        octets: what the client sends after the 354.
        ways: ways in which the octets come in pieces.
    """
    wanted = scanned(octets)
    for pieces in ways:
        assert scan(pieces) == wanted, pieces
    message = wanted.message
    if message is not None:
        assert message.count(b"\r") == message.count(b"\n") == message.count(b"\r\n")
        assert b"\0" not in message
        assert not ends_for_anybody(message)


def test_every_short_word_is_read_as_the_reference_reads_it() -> None:
    """No combination of line ends, dots and NULs may end a message early, or look like an end to the next hop."""
    for length in range(6):
        for letters in product(LETTERS, repeat=length):
            octets = b"x" + b"".join(letters) + b"y\r\n.\r\n"
            check(octets, splits(octets))


@pytest.mark.timeout(600)
def test_every_word_of_six_is_read_as_the_reference_reads_it(sample: Sample) -> None:
    """Longer words, whole and octet by octet, and a sample of them split at every offset."""
    words = [b"".join(letters) for letters in product(LETTERS, repeat=6)]
    split = frozenset(sample(words, 35))
    for word in words:
        octets = b"x" + word + b"y\r\n.\r\n"
        ways = splits(octets)
        check(octets, ways if word in split else islice(ways, 2))


@pytest.mark.timeout(600)
def test_every_word_at_the_very_start_is_read_as_the_reference_reads_it(sample: Sample) -> None:
    """The line end of the DATA command counts, so that a dot may come first."""
    for length in range(7):
        words = list(product(LETTERS, repeat=length))
        for letters in words if length < 5 else sample(words, 35):
            octets = b"".join(letters) + b"\r\n.\r\nQUIT\r\n"
            check(octets, splits(octets))


@pytest.mark.parametrize("sequence", BARE + CLEAN, ids=ascii)
def test_what_only_looks_like_an_end_ends_nothing(sequence: bytes) -> None:
    """A second message smuggled behind it would go out under our name."""
    octets = b"Subject: a\r\n\r\nbody" + sequence + SMUGGLED + END + b"QUIT\r\n"
    check(octets, splits(octets))
    message, rest, _, _ = scan((octets,))
    assert message is not None
    assert message.endswith(b"x\r\n")
    assert rest == b"QUIT\r\n"


def test_a_bare_line_end_before_a_crlf_does_not_hide_the_end() -> None:
    """CR CRLF . CRLF holds the client's own CRLF.CRLF."""
    for sequence in (b"\r\r\n.\r\n", b"\n\r\n.\r\n", b"\0\r\n.\r\n"):
        message, rest, _, bare = scan((b"body" + sequence + b"QUIT\r\n",))
        assert message is not None
        assert rest == b"QUIT\r\n"
        assert bare


def test_words_by_chance_are_read_as_the_reference_reads_them_in_pieces_of_any_size() -> None:
    """Long messages, many pieces; the memory that is held back does not depend on them."""
    chance = random.Random(5321)
    words = [*LETTERS, b"\r\n", b"\r\n", b"\r\n.", b"..", b"\n.\n", b"text", b"\r\n..", b"\xff"]
    for _ in range(3000):
        octets = b"".join(chance.choice(words) for _ in range(chance.randrange(40))) + b"\r\n.\r\nNOOP\r\n"
        cuts = sorted(chance.randrange(len(octets) + 1) for _ in range(chance.randrange(8)))
        pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
        check(octets, (tuple(pieces),))


def test_a_clean_message_goes_on_octet_for_octet() -> None:
    """Signatures over the body must hold: dots that the client stuffed stay as they are."""
    message = b"Subject: a\r\n\r\n..dot\r\n. x\r\n..\r\n\r\n\t \xff\x80\x01\r\nlast\r\n"
    for pieces in splits(message + b".\r\nQUIT\r\n"):
        scanner = DataScanner()
        out = b"".join(scanner.feed(piece) for piece in pieces if not scanner.done)
        assert (out, scanner.octets, scanner.bare, scanner.done) == (message, len(message), False, True)


def test_an_empty_message_is_a_message() -> None:
    """A dot right after the 354."""
    assert scan((b".\r\n",)) == (b"", b"", 0, False)
    assert scan((b".", b"\r", b"\n", b"QUIT\r\n")) == (b"", b"QUIT\r\n", 0, False)
    assert scan((b"", b".\r\nRSET\r\nQUIT\r\n")) == (b"", b"RSET\r\nQUIT\r\n", 0, False)
    assert scan((b"\r\n.\r\n",)) == (b"\r\n", b"", 2, False)


def test_nothing_but_the_start_of_an_end_is_held_back() -> None:
    """Memory must not grow with the message, nor may a client keep a line waiting."""
    scanner = DataScanner()
    seen = 0
    for piece in (b"a", b"a" * 100_000, b"b\r", b"\n", b".", b"\r", b"c", b"\r\n.x", b"\r\n"):
        out = scanner.feed(piece)
        seen += len(piece)
        held = seen - scanner.octets
        assert 0 <= held <= 4
        assert out or held
    assert not scanner.done
    assert scanner.rest == b""


def test_a_kept_message_has_its_dots_as_the_author_wrote_them() -> None:
    """The quarantine's files are mail, not what goes over the wire; in pieces of any size."""
    words = (b"\r\n", b".", b"a")
    for length in range(6):
        for letters in product(words, repeat=length):
            message = b"".join(letters) + b"\r\n"
            for pieces in splits(message):
                stuffer = Unstuffer()
                out = b"".join(stuffer.feed(piece) for piece in pieces) + stuffer.finish()
                assert out == unstuffed(message), pieces
                assert stuffer.finish() == b""
