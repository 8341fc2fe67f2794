r"""Tags: put on, taken off, told from what only looks like one."""

from __future__ import annotations

import pytest

from batv.address import Mailbox
from batv.tag import (
    TAG_OCTETS,
    ForeignForm,
    Placement,
    Tag,
    foreign_form,
    has_room,
    looks_tagged,
    put_on,
    shorten,
    take_off,
)

TAG = Tag(0, b"787", b"788259")
HUNDRED_KIB = 102_400


def box(local: str | bytes) -> Mailbox:
    """Return a mailbox of a fixed domain; not parsed, since a tag is sought in any octets."""
    return Mailbox(local.encode() if isinstance(local, str) else local, b"example.com")


@pytest.mark.parametrize(
    ("local", "prefix", "subaddress"),
    [
        ("user", "prvs=0787788259=user", "user+prvs=0787788259"),
        ("=u", "prvs=0787788259==u", "=u+prvs=0787788259"),
        ('"a b"', '"prvs=0787788259=a b"', '"a b+prvs=0787788259"'),
        ('""', '"prvs=0787788259="', '"+prvs=0787788259"'),
        ('"a\\\\"', '"prvs=0787788259=a\\\\"', '"a\\\\+prvs=0787788259"'),
        ('"\\""', '"prvs=0787788259=\\""', '"\\"+prvs=0787788259"'),
        ("u+tag", "prvs=0787788259=u+tag", "u+tag+prvs=0787788259"),
        ("u+prvs=", "prvs=0787788259=u+prvs=", "u+prvs=+prvs=0787788259"),
        ("jörg", "prvs=0787788259=jörg", "jörg+prvs=0787788259"),
        ('"jörg b"', '"prvs=0787788259=jörg b"', '"jörg b+prvs=0787788259"'),
    ],
)
def test_a_tag_is_put_on_and_taken_off_inside_the_quotes(local: str, prefix: str, subaddress: str) -> None:
    """A quoted local part stays one: with the tag outside, it would be no address."""
    for placement, signed in ((Placement.PREFIX, prefix), (Placement.SUBADDRESS, subaddress)):
        tagged = put_on(box(local), TAG, placement)
        assert tagged == box(signed)
        assert Mailbox.parse(tagged.octets) == tagged
        assert len(tagged.local) == len(box(local).local) + TAG_OCTETS
        found = take_off(tagged)
        assert found is not None
        assert (found.tag, found.mailbox, found.placement) == (TAG, box(local), placement)


@pytest.mark.parametrize("local", ["PRVS=0787ABCDEF=u", "Prvs=0787AbCdEf=u", "u+PRVS=0787ABCDEF", "u+pRVs=0787aBCDEF"])
def test_a_tag_is_read_in_either_case(local: str) -> None:
    """Peers change the case of addresses in transit."""
    found = take_off(box(local))
    assert found is not None
    assert found.tag == Tag(0, b"787", b"abcdef")
    assert found.mailbox == box("u")


def test_only_one_tag_is_taken_off() -> None:
    """Whoever wraps tags must not make us look for the last of them; what is left is any local part."""
    layers = 10_000
    found = take_off(box("prvs=0787788259=" * layers + "u"))
    assert found is not None
    assert found.mailbox == box("prvs=0787788259=" * (layers - 1) + "u")
    found = take_off(box("u" + "+prvs=0787788259" * layers))
    assert found is not None
    assert found.mailbox == box("u" + "+prvs=0787788259" * (layers - 1))


def test_a_prefix_comes_before_a_subaddress() -> None:
    """Both are understood, so that one address has to have one reading."""
    found = take_off(box("prvs=1111aaaaaa=u+prvs=2222bbbbbb"))
    assert found is not None
    assert (found.tag.octets, found.mailbox, found.placement) == (
        b"1111aaaaaa",
        box("u+prvs=2222bbbbbb"),
        Placement.PREFIX,
    )


@pytest.mark.parametrize("zeros", ["0000000000", "0001000000", "9999ffffff"])
def test_leading_zeros_of_a_tag_count(zeros: str) -> None:
    """A number would lose them."""
    found = take_off(box(f"prvs={zeros}=u"))
    assert found is not None
    assert found.tag.octets.decode() == zeros


# int() and str.isdigit() take each of these for a digit or a number; a tag has only ASCII digits.
NO_DIGITS = [
    " 787",
    "+787",
    "-787",
    "0x78",
    "0_78",
    "078_",
    "0o78",
    "\u0660787",
    "078\uff17",
    "\u00b2787",
    "07 8",
    "1e10",
]
NO_HEX = [
    "+00001",
    "-00001",
    "0x0001",
    " 00001",
    "0_0001",
    "00000g",
    "00000G",
    "\uff1000000"[:6],
    "00000\uff41",
    "00000\u0661",
]


@pytest.mark.parametrize("start", NO_DIGITS)
def test_what_is_no_ascii_digit_makes_no_tag(start: str) -> None:
    """A number parser would take signs, spaces, prefixes, underscores and the digits of other scripts."""
    for local in (
        f"prvs={start}788259=u",
        f"u+prvs={start}788259",
        f'"prvs={start}788259=u"',
        f'"u+prvs={start}788259"',
    ):
        assert take_off(box(local)) is None


@pytest.mark.parametrize("digits", NO_HEX)
def test_what_is_no_ascii_hex_digit_makes_no_tag(digits: str) -> None:
    """As with the decimal digits."""
    for local in (f"prvs=0787{digits}=u", f"u+prvs=0787{digits}", f'"prvs=0787{digits}=u"', f'"u+prvs=0787{digits}"'):
        assert take_off(box(local)) is None


def test_a_tag_has_exactly_ten_digits() -> None:
    """Digits too few or too many are another system's form, or nobody's."""
    for length in (*range(10), 11, 12, 20):
        digits = "0787abcdef0123456789"[:length]
        assert take_off(box(f"prvs={digits}=u")) is None
        assert take_off(box(f"u+prvs={digits}")) is None
        assert take_off(box(f'"prvs={digits}=u"')) is None
        assert take_off(box(f'"u+prvs={digits}"')) is None


@pytest.mark.parametrize(
    "local",
    [
        "user",
        "prvs=0787788259=",
        "prvs=0787788259",
        "prvs=0787788259u",
        "prvs=user=0787788259",
        "prvs==0787788259=u",
        "xprvs=0787788259=u",
        '"\\prvs=0787788259=u"',
        '"prvs\\=0787788259=u"',
        '"prvs=0787788259\\=u"',
        '" prvs=0787788259=u"',
        "+prvs=0787788259",
        "u+prvs=0787788259=",
        "u+prvs=0787788259+x",
        "u+prvs=0787788259\n",
        "u-prvs=0787788259",
        '"u\\+prvs=0787788259"',
        '"\\+prvs=0787788259"',
        '"\\\\\\+prvs=0787788259"',
        '"u+prvs=0787788259\\""',
        "prvs\u017f=0787788259=u",
        "prv\u017f=0787788259=u",
    ],
)
def test_what_is_no_tag_is_left_as_it_is(local: str) -> None:
    """To take off what is no tag would deliver mail to another mailbox."""
    assert take_off(box(local)) is None


@pytest.mark.parametrize(
    ("local", "rest"), [('"u\\\\+prvs=0787788259"', '"u\\\\"'), ('"\\\\\\\\+prvs=0787788259"', '"\\\\\\\\"')]
)
def test_a_plus_sign_after_a_quoted_backslash_starts_a_tag(local: str, rest: str) -> None:
    """Backslashes come in pairs: only an odd one takes the plus sign into a quoted pair."""
    found = take_off(box(local))
    assert found is not None
    assert found.mailbox == box(rest)
    assert Mailbox.parse(found.mailbox.octets) == found.mailbox


@pytest.mark.parametrize("local", ["prvs=", "PRVS=x", "prvs=0787788259", '"prvs="', '"Prvs=a b"', "prvs=0787788259=u"])
def test_what_starts_with_the_tag_type_looks_tagged(local: str) -> None:
    """Such an address is called malformed rather than untagged."""
    assert looks_tagged(box(local))


@pytest.mark.parametrize("local", ["prvs", "prv", "xprvs=", "u+prvs=0787", "u+prvs=", '" prvs="', '"\\prvs="', "", '"'])
def test_what_starts_otherwise_does_not_look_tagged(local: str) -> None:
    """A subaddress that begins with `prvs=` is a user's own."""
    assert not looks_tagged(box(local))


@pytest.mark.parametrize(
    ("local", "domain", "room"),
    [
        (48, 12, True),
        (49, 12, False),
        (64, 12, False),
        (48, 189, True),
        (48, 190, False),
        (1, 236, True),
        (1, 237, False),
    ],
)
def test_a_tag_has_room_within_the_lengths_of_rfc_5321(local: int, domain: int, room: bool) -> None:  # noqa: FBT001 -- a parameter of the test
    """64 octets of local part, 254 of mailbox: more may be refused by the next system."""
    mailbox = Mailbox(b"u" * local, b"d" * domain)
    assert has_room(mailbox) is room
    for placement in Placement:
        tagged = put_on(mailbox, TAG, placement)
        assert (len(tagged.local) <= 64 and len(tagged.octets) <= 254) is room


def test_a_tag_does_not_show_its_signature() -> None:
    """Whoever reads a traceback or log must not be able to have a bounce delivered."""
    assert repr(TAG) == "Tag(0787******)"
    assert "788259" not in repr(take_off(put_on(box("u"), TAG, Placement.PREFIX)))


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("to=<prvs=0787788259=u@d>", "to=<prvs=0787******=u@d>"),
        ("PRVS=0787ABCDEF=u@d u+prvs=0787abcdef@d", "PRVS=0787******=u@d u+prvs=0787******@d"),
        ("prvs=0787788259", "prvs=0787******"),
        ("prvs=0787788259=prvs=1234abcdef=u", "prvs=0787******=prvs=1234******=u"),
        ("prvs=07877882590=u", "prvs=0787******0=u"),
        ("prvs=078778825=u", "prvs=078778825=u"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_every_tag_in_a_text_is_shortened(text: str, short: str) -> None:
    """Tags are bearer credentials; what is no tag stays readable."""
    assert shorten(text) == short


@pytest.mark.parametrize(
    ("local", "form"),
    [
        ("SRS0=HHH=TT=peer.example=joe", ForeignForm.SRS),
        ("srs1=HHH=fwd.example==HHH=TT=peer.example=joe", ForeignForm.SRS),
        ("SRS0+HHH=TT=peer.example=joe", ForeignForm.SRS),
        ("SRS0-HHH=TT=peer.example=joe", ForeignForm.SRS),
        ('"SRS0=HHH=TT=peer.example=j d"', ForeignForm.SRS),
        ("user+SRS=HHHH=TT=peer.example=joe", ForeignForm.EXCHANGE_SRS),
        ("user+srs=HHHH=TT=peer.example=joe", ForeignForm.EXCHANGE_SRS),
        ("prvs=user=0787788259", ForeignForm.CISCO),
        ("PRVS=User=0787ABCDEF", ForeignForm.CISCO),
        ('"prvs=a b=0787788259"', ForeignForm.CISCO),
        ("btv1==0787788259==user", ForeignForm.BARRACUDA),
        ("msprvs1=18000abc=user", ForeignForm.SPARKPOST),
        ("user", None),
        ("prvs=0787788259=user", None),
        ("prvs=0787788259=0787788259", None),
        ("user+prvs=0787788259", None),
        ("SRS0=HHH=TT=peer.example", None),
        ("SRS2=HHH=TT=peer.example=joe", None),
        ("xSRS0=HHH=TT=peer.example=joe", None),
        ("+SRS=HHHH=TT=peer.example=joe", None),
        ("prvs==0787788259", None),
        ("prvs=user=078778825g", None),
        ("btv1=0787788259==user", None),
        ("btv1==0787788259=user", None),
        ("btv1====user", None),
        ("msprvs1==user", None),
        ("xmsprvs1=1=user", None),
    ],
)
def test_forms_of_other_systems_are_told_apart(local: str, form: ForeignForm | None) -> None:
    """A site can leave them to whoever makes them; a tag of ours is never taken for another's."""
    assert foreign_form(box(local)) is form


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece",
    [b"=", b"SRS0=", b"+SRS=", b"+SRS", b"a=", b"prvs=", b"btv1==", b"msprvs1=", b"+prvs=0787788259+", b"\\", b"0"],
)
def test_long_hostile_local_parts_are_judged_at_once(piece: bytes) -> None:
    """A pattern that backtracks would stop the service for minutes on one address; the timeout would show it."""
    for head in (b"", b'"', b"SRS0=", b"u+SRS=", b"prvs=", b"btv1==", b"msprvs1=", b"SRS0=a=b"):
        for tail in (b"", b"x", b"=", b'"'):
            mailbox = box(head + piece * (HUNDRED_KIB // len(piece)) + tail)
            take_off(mailbox)
            looks_tagged(mailbox)
            foreign_form(mailbox)
            shorten(str(mailbox))
