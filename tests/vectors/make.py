"""Makes sign.json, verify.json, refuse.json, wrap.json, strong.json and step.json.

Nothing of batv is used: README says the formula.

Usage: python tests/vectors/make.py, after which the difference is to be read line by line.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import unicodedata
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC).date()
TODAY: Final = date(2026, 11, 23)  # stamp 780
ADDRESS: Final = "user@example.com"

SECRETS: Final = {
    0: "secret",
    1: "the key that waits to sign, 32 o",
    2: "the key that signs no more, 32 o",
    3: "the key of which no tag is alive",
    4: "the key that was revoked, 32 oct",
    5: "the key whose tags live 30 days.",
    9: "the key that no ring here has, x",
}
LIFETIMES: Final = {0: 7, 1: 7, 2: 7, 3: 7, 4: 7, 5: 30, 9: 7}


def key(
    number: int, *, signs_from: str | None, retired: str | None = None, revoked: str | None = None
) -> dict[str, Any]:
    """Return one key of the ring, as the files write it."""
    return {
        "number": number,
        "secret": SECRETS[number],
        "created": "2023-06-01",
        "lifetime": LIFETIMES[number],
        "signs_from": signs_from,
        "retired": retired,
        "revoked": revoked,
    }


RING: Final = [
    key(0, signs_from="2026-11-01"),
    key(1, signs_from=None),
    key(2, signs_from="2026-06-01", retired="2026-11-01"),
    key(3, signs_from="2024-02-01", retired="2024-03-10"),
    key(4, signs_from="2026-02-01", retired="2026-06-01", revoked="2026-11-20"),
    key(5, signs_from="2025-01-01", retired="2026-02-01"),
]


def stamp(day: date) -> str:
    """Return DDD for a day of expiry."""
    return f"{(day - EPOCH).days % 1000:03d}"


def hmac_hex(secret: bytes, source: bytes) -> str:
    """Return HMAC-SHA1 in hex."""
    return hmac.new(secret, source, hashlib.sha1).hexdigest()  # noqa: TID251 -- the other side of the test


def value(address: str, ddd: str, number: int = 0, *, exact: bool = False) -> str:
    """Return KDDDSSSSSS for an address without brackets."""
    octets = address.encode()
    source = f"{number}{ddd}".encode() + (octets if exact else octets.lower())
    return f"{number}{ddd}{hmac_hex(SECRETS[number].encode(), source)[:6]}"


def prefix(address: str, tag: str) -> str:
    """Return the address with a tag before its local part."""
    local, _, domain = address.rpartition("@")
    return f'"prvs={tag}={local[1:]}@{domain}' if local.startswith('"') else f"prvs={tag}={local}@{domain}"


def subaddress(address: str, tag: str) -> str:
    """Return the address with a tag after its local part."""
    local, _, domain = address.rpartition("@")
    return f'{local[:-1]}+prvs={tag}"@{domain}' if local.startswith('"') else f"{local}+prvs={tag}@{domain}"


def good(address: str = ADDRESS, day: date = TODAY, number: int = 0, *, exact: bool = False) -> str:
    """Return the value of a tag signed on a day."""
    return value(address, stamp(day + timedelta(days=LIFETIMES[number])), number, exact=exact)


def sign_vectors() -> list[dict[str, Any]]:
    """Return addresses with what signing makes of them."""
    addresses = {
        "plain": ADDRESS,
        "letters in both cases": "Joe.Doe@Example.COM",
        "quoted with a space": '"a b"@example.com',
        "quoted without need": '"user"@example.com',
        "quoted pair": r'"a\"b\\"@example.com',
        "empty quoted string": '""@example.com',
        "quoted letters in both cases": '"John Doe"@example.com',
        "dots anywhere": ".a..b.@example.com",
        "every atext": "#$&'*+-/=?^_`{|}~@example.com",
        "subaddress": "user+tag@example.com",
        "starts with an equals sign": "=u@example.com",
        "another form": "SRS0=HHH=TT=peer.example=joe@example.com",
        "subaddress that is no tag": "u+prvs=@example.com",
        "longest that has room": "u" * 48 + "@example.com",
        "address literal": "user@[127.0.0.1]",
        "IPv6 literal": "user@[IPv6:::1]",
        "UTF-8, composed": unicodedata.normalize("NFC", "Jörg@exämple.com"),
        "UTF-8, decomposed": unicodedata.normalize("NFD", "Jörg@exämple.com"),
        "UTF-8 capitals are not folded": "ÖRG@example.com",
        "A-label": "user@xn--exmple-cua.com",
    }
    vectors = [
        {
            "name": "known answer of the draft's formula",
            "day": "2027-07-01",
            "address": ADDRESS,
            "case": "fold",
            "placement": "prefix",
            "signed": "prvs=000721afe1=user@example.com",
        }
    ]
    for name, address in addresses.items():
        for case in ("fold", "exact"):
            for placement, put in (("prefix", prefix), ("subaddress", subaddress)):
                signed = put(address, good(address, exact=case == "exact"))
                vectors.append(
                    {
                        "name": f"{name}, {case}, {placement}",
                        "day": TODAY.isoformat(),
                        "address": address,
                        "case": case,
                        "placement": placement,
                        "signed": signed,
                    }
                )
    return vectors


def verify_vectors() -> list[dict[str, Any]]:
    """Return tagged addresses with the days on which they are good and what is left without the tag."""
    vectors: list[dict[str, Any]] = []

    def add(  # noqa: PLR0913 -- one for each field of a vector
        name: str, tagged: str, bare: str = ADDRESS, *, day: date = TODAY, number: int = 0, case: str = "fold"
    ) -> None:
        vectors.append(
            {
                "name": name,
                "address": tagged,
                "bare": bare,
                "key": number,
                "case": case,
                "good_from": (day - timedelta(days=1)).isoformat(),
                "good_until": (day + timedelta(days=LIFETIMES[number])).isoformat(),
            }
        )

    tag = good()
    add("plain", prefix(ADDRESS, tag))
    add("tag type in capitals", f"PRVS={tag}={ADDRESS}")
    add("tag type in both cases", f"Prvs={tag}={ADDRESS}")
    add("hex digits in capitals", prefix(ADDRESS, tag.upper()))
    add("hex digits in both cases", prefix(ADDRESS, tag[:7] + tag[7:].upper()))
    add("subaddress", subaddress(ADDRESS, tag))
    add("subaddress in capitals", f"user+PRVS={tag.upper()}@example.com")
    add("all in capitals", prefix(ADDRESS, tag).upper(), ADDRESS.upper())
    add("user in capitals", f"prvs={tag}=USER@example.com", "USER@example.com")
    add("domain in capitals", f"prvs={tag}=user@EXAMPLE.COM", "user@EXAMPLE.COM")
    add("domain in both cases", f"prvs={tag}=user@Example.com", "user@Example.com")
    mixed = "Joe.Doe@Example.COM"
    add("folded tag of a mixed address", prefix(mixed, good(mixed)), mixed)
    add("folded tag, address folded in transit", prefix(mixed.lower(), good(mixed)), mixed.lower())
    add("exact tag of a mixed address", prefix(mixed, good(mixed, exact=True)), mixed, case="exact")
    add("exact tag as a subaddress", subaddress(mixed, good(mixed, exact=True)), mixed, case="exact")
    for bare in (
        '"a b"@example.com',
        '"user"@example.com',
        '""@example.com',
        r'"a\"b\\"@example.com',
        r'"a+\\"@example.com',
        "=u@example.com",
        "==@example.com",
        "u+tag@example.com",
        "u+prvs=@example.com",
        "SRS0=HHH=TT=peer.example=joe@example.com",
        "btv1==0787abcdef==u@example.com",
        "a..b@example.com",
        "x" * 64 + "@example.com",
        "Jörg@exämple.com",
        "user@[IPv6:::1]",
    ):
        add(f"{bare}, prefix", prefix(bare, good(bare)), bare)
        add(f"{bare}, subaddress", subaddress(bare, good(bare)), bare)
    layered = prefix(ADDRESS, "0787abcdef")
    add("a tag for an address that has a tag", prefix(layered, good(layered)), layered)
    outer = subaddress(ADDRESS, "0787abcdef")
    add("a prefix comes before a subaddress", prefix(outer, good(outer)), outer)
    add("a subaddress after another", subaddress(outer, good(outer)), outer)
    short = "prvs=0787abcdef@example.com"
    add("what is left starts like a tag", prefix(short, good(short)), short)
    whole = "prvs=0787abcdef=@example.com"
    add("what is left is a tag without a user", prefix(whole, good(whole)), whole)
    add("key that waits to sign", prefix(ADDRESS, good(number=1)), number=1)
    last = date(2026, 10, 31)
    add("key that signs no more, its last tag", prefix(ADDRESS, good(number=2, day=last)), day=last, number=2)
    last = date(2026, 1, 31)
    add("key whose tags live 30 days, its last tag", prefix(ADDRESS, good(number=5, day=last)), day=last, number=5)
    return vectors


def untagged(tag: str) -> tuple[str, ...]:
    """Return local parts that hold no tag and do not start like one. Each look-alike of a digit or letter is meant."""
    return (
        *(
            "user",
            "u+tag",
            "u=x",
            "prvs",
            "prvs-x",
            "prv",
            '"prvs"',
            "=u",
            "a..b",
            '"a b"',
            '""',
            f"xprvs={tag}=user",
            f".prvs={tag}=user",
            f"{tag}=user",
            f"prvs{tag}=user",
            f"prvs/{tag}/user",
            f"prvs-{tag}=user",
            f"SRS0=HHH=TT=peer.example=prvs={tag}=user",
            f"btv1=={tag}==user",
            f"msprvs1={tag}=user",
            f'"\\prvs={tag}=user"',
            f'" prvs={tag}=user"',
            f"=?utf-8?q?prvs=3D{tag}=3Duser?=",
            f"\uff50\uff52\uff56\uff53={tag}=user",
            f"prv\u017f={tag}=user",
        ),
        *(
            f"+prvs={tag}",
            "user+prvs=",
            "user+prvs",
            f"user-prvs={tag}",
            f"userprvs={tag}",
            f"user+prvs{tag}",
            f"user+prvs={tag}=",
            f"user+prvs={tag}+x",
            f"user+prvs={tag}x",
            f"user+prvs={tag}0",
            f"user+prvs={tag[:-1]}",
            f"user+prvs={tag[:-1]}g",
            f"user+prvs=+{tag[1:]}",
            f"user+prvs=-{tag[1:]}",
            f"user+prvs=0x{tag[2:]}",
            f"user+prvs=\u0660{tag[1:]}",
            f"user+prvs={tag[:4]}\uff11{tag[5:]}",
            f"user+prvs==user={tag}",
            f"user+prvs/{tag}",
            f'"user\\+prvs={tag}"',
            f'"user+prvs={tag} "',
            f'"user\\\\\\+prvs={tag}"',
        ),
    )


def malformed(tag: str) -> tuple[str, ...]:
    """Return local parts that start like a tag and are none."""
    sig = tag[4:]
    return (
        "prvs=",
        "prvs==",
        "prvs==user",
        "prvs=user",
        "PRVS=user",
        '"prvs="',
        '"prvs=a b"',
        '"PRVS==a b"',
        f"prvs={tag}",
        f"prvs={tag}=",
        f"prvs={tag}user",
        f"prvs={tag}/user",
        f"prvs={tag}-user",
        f"prvs={tag[:-1]}=user",
        f"prvs={tag}0=user",
        f"prvs=0{tag}=user",
        f"prvs={tag[:3]}=user",
        f"prvs={tag[:-1]}g=user",
        f"prvs={tag[:-1]}Z=user",
        f"prvs=a{tag[1:]}=user",
        f"prvs=0a87{sig}=user",
        f"prvs=+{tag[1:]}=user",
        f"prvs=-{tag[1:]}=user",
        f"prvs=0+87{sig}=user",
        f"prvs=0-87{sig}=user",
        f'"prvs= {tag[1:]}=user"',
        f'"prvs=0 87{sig}=user"',
        f"prvs=0x{tag[2:]}=user",
        f"prvs={tag[:4]}0x{sig[2:]}=user",
        f"prvs=07_87{sig[1:]}=user",
        f"prvs=0787{sig[:2]}_{sig[3:]}=user",
        f"prvs=\u0660\u0667\u0668\u0667{sig}=user",
        f"prvs=\uff10{tag[1:]}=user",
        f"prvs={tag[:4]}\uff11{tag[5:]}=user",
        f"prvs=\u00b2{tag[1:]}=user",
        f"prvs=user={tag}",
        f"prvs=user/{tag}",
        f"prvs=={tag}=user",
        f"prvs=prvs={tag}=user",
        f'"prvs={tag}\\=user"',
        f"prvs=3D{tag}=user",
    )


def wrong_hashes() -> dict[str, str]:
    """Return signatures as wrong formulas give them, by what is wrong."""
    sources = {
        "hash without the domain": b"0787user",
        "hash without the key number": b"787user@example.com",
        "hash without the stamp": b"0user@example.com",
        "hash with brackets": b"0787<user@example.com>",
        "hash with separators": b"0787=user@example.com",
        "hash with a line end": b"0787user@example.com\n",
    }
    digits = {name: hmac_hex(b"secret", source)[:6] for name, source in sources.items()}
    whole = b"0787user@example.com"
    digits["last octets of the hash in place of the first"] = hmac_hex(b"secret", whole)[-6:]
    digits["hash of another secret"] = hmac_hex(b"Secret", whole)[:6]
    digits["hash that is no HMAC"] = hashlib.sha1(b"secret" + whole).hexdigest()[:6]  # noqa: S324 -- wrong on purpose
    return digits


def refuse_vectors() -> list[dict[str, Any]]:
    """Return addresses that must not be taken for valid, with the verdict that each must get."""
    tag = good()
    sig = tag[4:]
    vectors: list[dict[str, Any]] = []

    def add(verdict: str, name: str, address: str, day: date = TODAY) -> None:
        vectors.append({"name": name, "address": address, "day": day.isoformat(), "verdict": verdict})

    for verdict, parts in (("untagged", untagged(tag)), ("malformed", malformed(tag))):
        for part in parts:
            add(verdict, part, f"{part}@example.com")
    add("unknown-key", "no key of that number", prefix(ADDRESS, good(number=9)))
    add("unknown-key", "no key of that number, as a subaddress", subaddress(ADDRESS, good(number=9)))
    add("unknown-key", "no key of that number, signed by another", f"prvs=9{tag[1:]}={ADDRESS}")
    add("unknown-key", "revoked key", prefix(ADDRESS, good(number=4)))
    last = date(2026, 5, 31)
    add("unknown-key", "revoked key, on a day when its tag was good", prefix(ADDRESS, good(number=4, day=last)), last)

    for bit in range(24):
        flipped = f"{int(sig, 16) ^ 1 << bit:06x}"
        add("bad-signature", f"bit {bit} turned", f"prvs={tag[:4]}{flipped}={ADDRESS}")
    add("bad-signature", "bit turned in a subaddress", f"user+prvs={tag[:4]}{int(sig, 16) ^ 1:06x}@example.com")
    for name, address in {
        "another user": "users@example.com",
        "another user, shorter": "use@example.com",
        "another domain": "user@example.org",
        "a domain below": "user@sub.example.com",
        "the domain above": "user@com",
        "the same user, quoted": '"user"@example.com',
        "an equals sign more": "=user@example.com",
        "an own subaddress": "user+x@example.com",
        "a dot more": "user.@example.com",
    }.items():
        add("bad-signature", name, prefix(address, tag))
        add("bad-signature", f"{name}, as a subaddress", subaddress(address, tag))
    add("bad-signature", "only the outer of two tags counts", f"prvs=0787abcdef=prvs={tag}={ADDRESS}")
    add("bad-signature", "the inner address's tag on the outer layer", f"prvs={tag}=prvs={tag}={ADDRESS}")
    add("bad-signature", "a good subaddress behind a wrong prefix", f"prvs=0787abcdef={subaddress(ADDRESS, tag)}")
    add("bad-signature", "ten digits that could be another system's", f"prvs=0787abcdef={tag}@example.com")
    add("bad-signature", "stamp a day later", f"prvs=0788{sig}={ADDRESS}")
    add("bad-signature", "stamp turned into 000", f"prvs=0000{sig}={ADDRESS}")
    add("bad-signature", "key number turned into another key's", f"prvs=1{tag[1:]}={ADDRESS}")
    add("bad-signature", "signature all zero", f"prvs=0787000000={ADDRESS}")
    mixed = "Joe.Doe@Example.COM"
    add("bad-signature", "exact tag, address folded in transit", prefix(mixed.lower(), good(mixed, exact=True)))
    add("bad-signature", "exact tag, domain folded in transit", prefix("Joe.Doe@example.com", good(mixed, exact=True)))
    capital = value("ÖRG@example.com".lower(), "787")
    add("bad-signature", "letters beyond ASCII are not folded", prefix("ÖRG@example.com", capital))
    composed = unicodedata.normalize("NFC", "jörg@example.com")
    add("bad-signature", "decomposed twin", prefix(unicodedata.normalize("NFD", composed), good(composed)))
    add("bad-signature", "A-label twin", prefix("user@xn--exmple-cua.com", good("user@exämple.com")))
    for name, digits in wrong_hashes().items():
        add("bad-signature", name, f"prvs=0787{digits}={ADDRESS}")

    for days in (8, 9, 100, 220, 500, 780, 781, 990, 991):
        # 780 days back is day 20000: a comparison as numbers goes wrong on one side of it or the other.
        add("expired", f"signed {days} days ago", prefix(ADDRESS, good(day=TODAY - timedelta(days=days))))
    for days in (2, 3, 219, 220, 221, 500):
        add("expired", f"signed {days} days from now", prefix(ADDRESS, good(day=TODAY + timedelta(days=days))))
    add("expired", "signed 8 days ago, as a subaddress", subaddress(ADDRESS, good(day=TODAY - timedelta(days=8))))
    retiring = prefix(ADDRESS, good(number=2, day=date(2026, 10, 31)))
    add("expired", "key that signs no more, after its last tag", retiring, date(2026, 11, 8))
    spent = prefix(ADDRESS, good(number=3, day=date(2024, 3, 1)))
    again = date(2024, 3, 1) + timedelta(days=1000)
    add("expired", "spent key, its tag's stamp come round again", spent, again)
    return vectors


def wrap_vectors() -> list[dict[str, Any]]:
    """Return tags signed on each of the days with the stamps 990 to 999 and 000 to 010, with their good days."""
    vectors = []
    for number in range(20_990, 21_011):
        signed_on = EPOCH + timedelta(days=number)
        for lifetime in (1, 7, 30):
            last = signed_on + timedelta(days=lifetime)
            vectors.append(
                {
                    "signed_on": signed_on.isoformat(),
                    "lifetime": lifetime,
                    "signed": prefix(ADDRESS, value(ADDRESS, stamp(last))),
                    "good_from": (signed_on - timedelta(days=1)).isoformat(),
                    "good_until": last.isoformat(),
                }
            )
    return vectors


def strong_value(address: str, ddd: str, number: int = 0, *, exact: bool = False) -> str:
    """Return KDDDSSSSSSSSSS of the strong scheme for an address without brackets."""
    extracted = hmac.new(bytes(32), SECRETS[number].encode(), hashlib.sha256).digest()  # noqa: TID251 -- as above
    derived = hmac.new(extracted, b"batv tags of the strong scheme\x01", hashlib.sha256).digest()  # noqa: TID251 -- as above
    octets = address.encode()
    source = f"{number}{ddd}".encode() + (octets if exact else octets.lower())
    return f"{number}{ddd}{hmac.new(derived, source, hashlib.sha256).hexdigest()[:10]}"  # noqa: TID251 -- as above


def strong_vectors() -> list[dict[str, Any]]:
    """Return addresses with what signing in the strong scheme makes of them."""
    addresses = {
        "plain": ADDRESS,
        "letters in both cases": "Joe.Doe@Example.COM",
        "quoted with a space": '"a b"@example.com',
        "starts with an equals sign": "=u@example.com",
        "starts like a tag": "prvs2=u@example.com",
        "beyond ASCII": "jörg@exämple.com",
        "longest that has room": "u" * 43 + "@example.com",
    }
    return [
        {
            "name": f"{name}, {case}, {placement}",
            "address": address,
            "day": TODAY.isoformat(),
            "case": case,
            "placement": placement,
            "signed": put(address, strong_value(address, "787", exact=case == "exact")).replace("prvs=0", "prvs2=0", 1),
        }
        for name, address in addresses.items()
        for case in ("fold", "exact")
        for placement, put in (("prefix", prefix), ("subaddress", subaddress))
    ]


def step_vectors() -> list[dict[str, Any]]:
    """Return tags of keys with a step, each with its day of signing and its good days."""
    vectors = []
    for step in (2, 7, 30):
        for number in range(20_985, 21_016):
            lifetime = LIFETIMES[0]
            last = -(-(number + lifetime) // step) * step
            first = last - lifetime - step + 1
            vectors.append(
                {
                    "signed_on": (EPOCH + timedelta(days=number)).isoformat(),
                    "step": step,
                    "signed": prefix(ADDRESS, value(ADDRESS, stamp(EPOCH + timedelta(days=last)))),
                    "good_from": (EPOCH + timedelta(days=first - 1)).isoformat(),
                    "good_until": (EPOCH + timedelta(days=last)).isoformat(),
                }
            )
    return vectors


def files() -> dict[str, str]:
    """Return the text of each file by its name."""
    contents: dict[str, Any] = {
        "sign.json": {"keys": RING, "vectors": sign_vectors()},
        "verify.json": {"keys": RING, "vectors": verify_vectors()},
        "refuse.json": {"keys": RING, "vectors": refuse_vectors()},
        "wrap.json": {"secret": SECRETS[0], "address": ADDRESS, "vectors": wrap_vectors()},
        "strong.json": {"keys": RING, "vectors": strong_vectors()},
        "step.json": {"secret": SECRETS[0], "address": ADDRESS, "vectors": step_vectors()},
    }
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in contents.items()}


if __name__ == "__main__":
    for file_name, text in files().items():
        (HERE / file_name).write_text(text, encoding="utf-8")
