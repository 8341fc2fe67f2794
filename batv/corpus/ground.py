"""What a corpus is made for: the policy, the rings and the day; and the addresses that these can make.

The words of a corpus are made here without asking the verifier: what an address is worth follows from how it was
made. A corpus labelled by the code that it tests would find no fault in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from batv.address import Mailbox
from batv.errors import ConfigError
from batv.keyring import KEY_NUMBERS, Key, Role, Secret
from batv.signing import sign_with
from batv.smtp.path import parse_mail
from batv.tag import Placement, Scheme, Tag, put_on
from batv.verdict import FORGED, Verdict

if TYPE_CHECKING:
    from random import Random

    from batv.config import Settings
    from batv.day import Day
    from batv.keyring import KeyRing, KeyRings
    from batv.policy import DomainPolicy, Policy
    from batv.signing import Style

__all__ = ["Ground"]

_WORDS: Final = (
    "ann", "bela", "carl", "dora", "emil", "fay", "gus", "hana", "ivo", "joe", "kim", "lena", "max", "nora", "olaf",
    "pia", "quinn", "rosa", "sven", "tara", "udo", "vera", "wim", "xenia", "yan", "zoe",
)  # fmt: skip
_OFFICES: Final = ("sales", "billing", "news", "web-master", "no_reply", "o'brien", "info+shop", "a.b.c", "x")


@dataclass(frozen=True, slots=True)
class Ground:
    """What a corpus is made for.

    Attributes:
        policy: what the site wants.
        rings: its keys.
        style: how its tags are written where a domain does not say.
        day: the day for which addresses are signed.
        domains: its domains in ASCII, in lower case.
        refuses_bare_newlines: whether messages with bare newlines are refused.
    """

    policy: Policy
    rings: KeyRings
    style: Style
    day: Day
    domains: tuple[bytes, ...]
    refuses_bare_newlines: bool = False

    @classmethod
    def of(cls, settings: Settings, rings: KeyRings, day: Day) -> Ground:
        """Return the ground of a site.

        Raises:
            ConfigError: it has no domain with a key ring.
        """
        policy = settings.policy
        # For a wildcard stands one of the domains below.
        names = {name.replace(b"*", b"below", 1) for name in policy.domains}
        ours = (name for name in names if name.isascii() and policy.for_domain(name) is not None)
        domains = sorted(domain for domain in ours if rings.rings_for(domain, day))
        if not domains:
            raise ConfigError("there is no domain with a key ring", "add a [domains] section and run 'batv key new'")
        refuses = settings.smtp.bare_newlines == "reject"
        return cls(policy, rings, settings.tags.style, day, tuple(domains), refuses)

    def wish(self, domain: bytes) -> DomainPolicy:
        """Return what the site wants for one of its domains."""
        found = self.policy.for_domain(domain)
        if found is None:
            raise LookupError(domain)
        return found

    def exempt(self, verdict: Verdict, mailbox: Mailbox, client: str, reverse_path: str) -> bool:
        """Whether a bounce from a client that would count as forged, with this verdict, is not judged."""
        if verdict in FORGED and self.policy.exempt_client(client):
            return True
        policy = self.policy.for_domain(mailbox.domain)
        if policy is None:
            return False
        if verdict in FORGED and policy.exempt_sender(parse_mail(f"FROM:{reverse_path}".encode()).path.mailbox):
            return True
        if verdict is not Verdict.UNTAGGED:
            return False
        return bool(policy.exempt_recipient(mailbox) or self.policy.exemptions.of_sender(mailbox, self.day))

    def ring(self, domain: bytes) -> KeyRing:
        """Return the ring that judges a domain's tags first."""
        return self.rings.rings_for(domain, self.day)[0]

    def keys(self, domain: bytes, role: Role) -> list[Key]:
        """Return the keys of a domain's ring that have a role on the day."""
        return [key for key in self.ring(domain).keys if key.role(self.day) is role]

    def domains_with(self, role: Role) -> list[bytes]:
        """Return the domains whose ring has a key of that role."""
        return [domain for domain in self.domains if self.keys(domain, role)]

    def verdict_of_number(self, domain: bytes, number: int) -> bool:
        """Whether a tag with that key number is looked at further than its number."""
        key = self.ring(domain).key(number)
        return key is not None and key.revoked is None

    def unused_numbers(self, domain: bytes) -> list[int]:
        """Return the key numbers that no ring of the domain has."""
        rings = self.rings.rings_for(domain, self.day)
        return [number for number in KEY_NUMBERS if all(ring.key(number) is None for ring in rings)]

    # Addresses.

    @staticmethod
    def user(rng: Random, domain: bytes) -> Mailbox:
        """Return a user of a domain: lower case, nothing that keeps it from being signed."""
        kind = rng.random()
        if kind < 0.5:  # noqa: PLR2004 -- half of all users have one word
            local = rng.choice(_WORDS)
        elif kind < 0.85:  # noqa: PLR2004 -- most others two
            local = f"{rng.choice(_WORDS)}{rng.choice('.-_')}{rng.choice(_WORDS)}"
        elif kind < 0.97:  # noqa: PLR2004 -- some are offices
            local = rng.choice(_OFFICES)
        else:
            local = f'"{rng.choice(_WORDS)} {rng.choice(_WORDS)}"'
        return Mailbox(local.encode(), domain)

    def signed(self, mailbox: Mailbox, key: Key, day: Day, placement: Placement | None = None) -> Mailbox:
        """Return the address with the tag that this key made on that day."""
        style = self.style_of(mailbox.domain)
        return sign_with(mailbox, key, day, style if placement is None else replace(style, placement=placement))

    def style_of(self, domain: bytes) -> Style:
        """Return how tags of a domain are written."""
        policy = self.policy.for_domain(domain)
        return (policy.style if policy is not None else None) or self.style

    def other_placement(self, domain: bytes) -> Placement:
        """Return the placement that the site does not write for a domain."""
        written = self.style_of(domain).placement
        return Placement.SUBADDRESS if written is Placement.PREFIX else Placement.PREFIX

    def tag_of(self, mailbox: Mailbox, key: Key, day: Day) -> Tag:
        """Return the tag that the key makes for the address on that day."""
        strong = self.style_of(mailbox.domain).scheme is Scheme.STRONG
        signed = self.signed(mailbox, key, day, Placement.PREFIX)
        start = 1 if mailbox.quoted else 0
        value = signed.local[start + len(b"prvs2=" if strong else b"prvs=") :]
        return Tag(value[0] - ord("0"), value[1:4], value[4 : 14 if strong else 10])

    def put_on(self, mailbox: Mailbox, tag: Tag) -> Mailbox:
        """Return the address with a tag, in the site's placement."""
        return put_on(mailbox, tag, self.style_of(mailbox.domain).placement)

    def guessed(self, rng: Random, mailbox: Mailbox, key: Key, day: Day) -> Mailbox:
        """Return the address with a signature that somebody made up, and that is not the right one."""
        right = self.tag_of(mailbox, key, day)
        digits = len(right.signature)
        others = 1 << (4 * digits)
        wrong = b"%0*x" % (digits, (int(right.signature, 16) + rng.randrange(1, others)) % others)
        return self.put_on(mailbox, replace(right, signature=wrong))

    @staticmethod
    def stranger(rng: Random, number: int, lifetime: int, day: Day) -> Key:
        """Return a key that the site does not have."""
        return Key(number, Secret(rng.randbytes(32)), day, lifetime)
