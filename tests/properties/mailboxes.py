"""Mailboxes by chance: what RFC 5321 and RFC 6531 allow, with a liking for what looks like a tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypothesis import strategies as st

from batv.address import Mailbox

if TYPE_CHECKING:
    import random

ATOM: Final = "abcXYZ0189!#$%&'*+-/=?^_`{|}~."
QUOTED: Final = [*" !#$%&'()*+,-./:;<=>?@[]^_`{|}~abcXYZ0189", '\\"', "\\\\", "\\ ", "\\+", "\\p", "\\@"]
BEYOND: Final = "öÖßſ\u0080\u07ff\u0800\u212a\ud7ff\ue000\uffff\U00010000\U0010ffff"
PIECES: Final = [
    "prvs=",
    "PRVS=",
    "prvs=0787abcdef=",
    "Prvs=9001ABCDEF=",
    "prvs=0787abcdef",
    "+prvs=0787abcdef",
    "+prvs=",
    "+PrVs=0787ABCDEF",
    "=",
    "==",
    "SRS0=HHH=TT=peer.example=",
    "btv1==0787abcdef==",
    "0787abcdef",
]
LABEL: Final = "abcXYZ019_"


def random_mailbox(chance: random.Random) -> Mailbox:
    """Return a mailbox made of pieces; not one in three would come to an end if octets were drawn freely."""
    quoted = chance.random() < 0.4
    letters = [*(QUOTED if quoted else ATOM), *BEYOND] if chance.random() < 0.3 else [*(QUOTED if quoted else ATOM)]
    pieces = [*letters, *PIECES] if chance.random() < 0.5 else letters
    count = chance.randrange(0 if quoted else 1, 12)
    inner = "".join(chance.choice(pieces) for _ in range(count))
    local = f'"{inner}"' if quoted else inner
    if chance.random() < 0.1:
        domain = chance.choice(["[127.0.0.1]", "[IPv6:::1]", "[x:!~<>]"])
    else:
        labels = (
            "".join(chance.choice(LABEL) for _ in range(chance.randrange(1, 6))) for _ in range(chance.randrange(1, 4))
        )
        domain = ".".join(labels) + chance.choice(["", "", ".exämple", "-x.example", ".COM"])
    return Mailbox.parse(f"{local}@{domain}".encode())


_atoms = st.lists(st.one_of(st.sampled_from([*ATOM, *PIECES]), st.sampled_from(BEYOND)), min_size=1, max_size=20)
_quoted = st.lists(st.one_of(st.sampled_from([*QUOTED, *PIECES]), st.sampled_from(BEYOND)), max_size=20)
_locals = st.one_of(_atoms.map("".join), _quoted.map(lambda inner: f'"{"".join(inner)}"'))
_label = st.text(LABEL + "öÖ", min_size=1, max_size=8)
_domains = st.one_of(
    st.lists(_label, min_size=1, max_size=4).map(".".join), st.sampled_from(["[127.0.0.1]", "[IPv6:2001:db8::1]"])
)

mailboxes: Final = st.builds(lambda local, domain: Mailbox.parse(f"{local}@{domain}".encode()), _locals, _domains)
"""Mailboxes of every form, found and shrunk by hypothesis."""
