"""Authentication towards a next hop: what goes over the wire, what a file may hold, what is never shown."""

from __future__ import annotations

import traceback
from base64 import b64decode

import pytest

from batv.errors import ConfigError
from batv.smtp.auth import (
    Credentials,
    auth_lines,
    choose,
    login_responses,
    mechanisms,
    parse_credentials,
    plain_response,
)

TIM = Credentials("tim", "tanstaaftanstaaf")


def test_plain_sends_what_the_standard_shows() -> None:
    """The first example of RFC 4616 section 4; no identity to act as is named."""
    assert b64decode(plain_response(TIM)) == b"\0tim\0tanstaaftanstaaf"
    assert plain_response(Credentials("jörg", "pä ß")) == b"AGrDtnJnAHDDpCDDnw=="


def test_login_sends_user_and_password() -> None:
    """One response for each question, whatever the question's wording."""
    assert login_responses(TIM) == (b"dGlt", b"dGFuc3RhYWZ0YW5zdGFhZg==")


def test_plain_is_one_line_unless_that_is_too_long() -> None:
    """A round trip less; RFC 4954 leaves AUTH the 512 octets of every command."""
    assert auth_lines("PLAIN", TIM) == (b"AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm",)
    assert auth_lines("LOGIN", TIM) == (b"AUTH LOGIN", b"dGlt", b"dGFuc3RhYWZ0YW5zdGFhZg==")
    for octets in (371, 372):
        (line,) = auth_lines("PLAIN", Credentials("u" * 255, "p" * (octets - 257)))
        assert len(line) <= 510
    command, response = auth_lines("PLAIN", Credentials("u" * 255, "p" * 117))
    assert (command, len(response)) == (b"AUTH PLAIN", 500)


def test_mechanisms_are_read_in_the_servers_order() -> None:
    """Case means nothing in names of mechanisms; what is no name is passed over."""
    assert mechanisms(b"login PLAIN  SCRAM-SHA-256\t\xff =X " + b"A" * 21) == ("LOGIN", "PLAIN", "SCRAM-SHA-256")
    assert mechanisms(b"") == ()


def test_plain_goes_before_login() -> None:
    """The one has a standard; neither is safer than the other."""
    assert choose(mechanisms(b"LOGIN PLAIN")) == "PLAIN"
    assert choose(["CRAM-MD5", "LOGIN"]) == "LOGIN"
    assert choose(["CRAM-MD5", "PLAIN-CLIENTTOKEN"]) is None
    assert choose([]) is None


def test_a_password_is_never_shown() -> None:
    """Settings and locals end up in logs and tracebacks."""
    assert repr(TIM) == str(TIM) == "Credentials(user='tim')"
    for password in ("secret\0", "secret\udc80", "secret" * 43):
        with pytest.raises(ConfigError) as caught:
            parse_credentials(f"tim\n{password}")
        assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "text", ["tim\npass word ", "tim\npass word \n", "tim\r\npass word \r\n", "\ufefftim\npass word \n"]
)
def test_a_file_holds_a_user_and_a_password(text: str) -> None:
    """Whatever editor wrote it; spaces belong to the password."""
    assert parse_credentials(text) == Credentials("tim", "pass word ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f: not two lines"),
        ("tim", "f: not two lines"),
        ("tim\n", "f: not two lines"),
        ("tim\npassword\n\n", "f: not two lines"),
        ("# both\ntim\npassword\n", "f: not two lines"),
        ("\npassword\n", "f: the user for the next hop is empty: give the user"),
        ("tim\n\n", "f: the password for the next hop is empty: give the password"),
        ("t\0m\npassword", "f: the user for the next hop holds a NUL or is not UTF-8: choose another one"),
        ("tim\np\udc80", "f: the password for the next hop holds a NUL or is not UTF-8: choose another one"),
        ("tim\n" + "ö" * 128, "f: the password for the next hop has more than 255 octets: choose a shorter one"),
    ],
)
def test_what_cannot_be_sent_is_refused_where_it_is_read(text: str, said: str) -> None:
    """The operator hears it at the start, not by mail that a next hop refuses."""
    said = said.replace(
        "not two lines",
        "does not hold two lines: write the user on the first line and the password on the second",
    ).replace("f: does", "f does")
    with pytest.raises(ConfigError) as caught:
        parse_credentials(text, "f")
    assert str(caught.value) == said
