"""Parameters of MAIL and RCPT: each is found under its keyword, and none that is hidden gets past."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from functools import partial
from typing import Final

from batv.errors import PathError
from batv.smtp.extension import Capabilities, hidden_parameter
from batv.smtp.path import keywords, parameter, parse_mail
from tests.support import reference

__all__ = ["check", "checking"]

_HIDDEN: Final = {b"AUTH", b"BY", b"HOLDFOR", b"HOLDUNTIL", b"MT-PRIORITY", b"REQUIRETLS", b"RRVS"}
_PATH: Final = b"FROM:<a@example.com> "


def check(octets: bytes) -> None:
    """Read octets as parameters.

    Args:
        octets: what follows the path and its space. Control characters are left out: no command holds one.
    """
    octets = bytes(octet for octet in octets if 32 <= octet != 127)
    wanted = reference.mail(_PATH + octets)
    found = None
    with suppress(PathError):
        found = parse_mail(_PATH + octets)
    assert (found is None) == (wanted is None)
    if found is None or wanted is None:
        return
    pairs = reference.parameters_of(wanted)
    assert keywords(found.parameters) == [keyword for keyword, _ in pairs]
    for keyword in {b"SIZE", b"BODY", *dict(pairs)}:
        first = next((value for each, value in pairs if each == keyword), None)
        assert parameter(found.parameters, keyword) == first
    hidden = any(
        keyword in _HIDDEN or (keyword == b"BODY" and value.upper() == b"BINARYMIME") for keyword, value in pairs
    )
    assert hidden_parameter(found.parameters) == hidden
    everything = Capabilities.everything()
    assert everything.carries(found.parameters, everything)
    nothing = Capabilities({})
    assert nothing.carries(found.parameters, nothing), "what was not offered cannot be gone"


checking = partial(nullcontext, check)
