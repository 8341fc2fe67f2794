"""What the site wants: which domains are ours, what is left alone, what each verdict gets.

A Policy is a value made from the settings. It knows no SMTP and no keys.

Nothing here takes longer because there are many domains or many exemptions: names and patterns are looked up.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from batv.pattern import AddressIndex, NetworkIndex
from batv.tag import ForeignForm, foreign_form, tag_and_rest
from batv.verdict import FORGED, SEVERITY, Disposition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from ipaddress import IPv4Network, IPv6Network

    from batv.address import Mailbox
    from batv.day import Day
    from batv.pattern import Pattern
    from batv.signing import Style
    from batv.verdict import Verdict

__all__ = ["DomainPolicy", "Exemption", "Exemptions", "Policy"]

_WILDCARD: Final = b"*."
_NEVER: Final = 1 << 62
"""A day that does not come."""


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """What is wanted for one domain of ours.

    Attributes:
        on_forged: what a forged bounce gets: discard, quarantine, reject, mark or pass.
        leave_forms: forms of address that other systems make and check: not signed, not judged.
        on_listed: what a bounce without a tag gets at least, whose client a list of senders of backscatter has; None
            for no more than usual.
        by_verdict: what forged bounces with these verdicts get, instead of `on_forged`.
        exempt_recipients: patterns for local parts to which bounces without a tag are not judged.
        refuse_too_long: whether mail from an address that is too long for a tag is refused, not left unsigned.
        remember_too_long: whether bounces to such an address are judged, unless it is on record that its mail left
            unsigned.
        style: how tags are written; None: as the stage has it.
        draft_until: last day on which tags of the draft's scheme are accepted; None: always.
        rescue: whether a bounce without a tag passes that answers a message which its recipient sent.
        looks_on: whether it is put on record what bounces without a tag answer, while the domain is switched on.
        on_bounce_with_sender: what a bounce gets that has no good tag and has a sender; None: mail with a sender is not
            judged.
        exempt_senders: patterns for senders whose mail is not judged as a bounce, neither for them nor for its header.
        marks: whether bounces to this domain carry a status field.
        with_sender: what is wanted where the bounce has a sender; None: that it is not judged.
    """

    on_forged: Disposition = Disposition.DISCARD
    leave_forms: frozenset[ForeignForm] = frozenset()
    on_listed: Disposition | None = None
    by_verdict: Mapping[Verdict, Disposition] = field(default_factory=dict)
    exempt_recipients: tuple[Pattern, ...] = ()
    refuse_too_long: bool = False
    remember_too_long: bool = False
    style: Style | None = None
    draft_until: Day | None = None
    rescue: bool = False
    looks_on: bool = False
    on_bounce_with_sender: Disposition | None = None
    exempt_senders: tuple[Pattern, ...] = ()
    marks: bool = field(init=False)
    with_sender: DomainPolicy | None = field(init=False, repr=False, compare=False)
    _exempt: AddressIndex[str] = field(init=False, repr=False, compare=False)
    _exempt_senders: AddressIndex[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Work out what is asked for each bounce."""
        found = {self.on_listed, *map(self.disposition, FORGED)}
        object.__setattr__(self, "marks", Disposition.MARK in found)
        exempt = AddressIndex((each, str(each).removesuffix("@")) for each in self.exempt_recipients)
        object.__setattr__(self, "_exempt", exempt)
        senders = AddressIndex((each, str(each)) for each in self.exempt_senders)
        object.__setattr__(self, "_exempt_senders", senders)
        object.__setattr__(self, "with_sender", self._with_sender())

    def left_alone(self, mailbox: Mailbox) -> ForeignForm | None:
        """Return the form for which this address is neither signed nor judged, or None."""
        return foreign_form(mailbox, self.leave_forms) if self.leave_forms else None

    def if_listed(self, disposition: Disposition) -> Disposition:
        """Return the worse of a disposition and `on_listed`; of equally bad ones the first."""
        if self.on_listed is None or disposition not in SEVERITY:
            return disposition
        return max(disposition, self.on_listed, key=SEVERITY.__getitem__)

    def disposition(self, verdict: Verdict) -> Disposition:
        """Return what a forged bounce with this verdict gets."""
        return self.by_verdict.get(verdict, self.on_forged)

    def exempt_recipient(self, mailbox: Mailbox) -> str | None:
        """Return the pattern for which a bounce without a tag to this address is not judged, or None."""
        return next(self._exempt.find(mailbox), None) if self._exempt else None

    def exempt_sender(self, mailbox: Mailbox | None) -> str | None:
        """Return the pattern for which a bounce with this sender is not judged, or None.

        A tag that the sender's own site has put on is no part of who it is.
        """
        if mailbox is None or not self._exempt_senders:
            return None
        parts = tag_and_rest(mailbox)
        return next(self._exempt_senders.find(mailbox if parts is None else parts[1]), None)

    def limited(self, limit: Callable[[Disposition], Disposition]) -> DomainPolicy:
        """Return the policy with every disposition replaced by what a limit makes of it."""
        listed = limit(self.on_listed) if self.on_listed is not None else None
        sender = limit(self.on_bounce_with_sender) if self.on_bounce_with_sender is not None else None
        by_verdict = {verdict: limit(disposition) for verdict, disposition in self.by_verdict.items()}
        return replace(
            self,
            on_forged=limit(self.on_forged),
            on_listed=listed,
            by_verdict=by_verdict,
            on_bounce_with_sender=sender,
        )

    def _with_sender(self) -> DomainPolicy | None:
        wanted = self.on_bounce_with_sender
        if wanted is None:
            return None
        # It is no evidence of how far the domain may go.
        policy = replace(self, on_forged=wanted, by_verdict={}, on_bounce_with_sender=None, looks_on=False)
        if wanted is not Disposition.PASS:
            # Whatever bounces get, replies and what is shared with others may get this.
            object.__setattr__(policy, "marks", True)
        return policy


@dataclass(frozen=True, slots=True)
class Exemption:
    """Mail that leaves unsigned on purpose.

    It fits a message if of each kind that it names one fits: senders, clients, recipients. A kind that it does not
    name fits always.

    Attributes:
        reason: why; for the journal.
        owner: who asked for it; empty if that is not known.
        until: its last day; None: it has none.
        senders: patterns for reverse paths.
        clients: networks.
        recipients: patterns for forward paths.
    """

    reason: str
    owner: str = ""
    until: Day | None = None
    senders: tuple[Pattern, ...] = ()
    clients: tuple[IPv4Network | IPv6Network, ...] = ()
    recipients: tuple[Pattern, ...] = ()

    def over(self, day: Day) -> bool:
        """Whether its last day is past."""
        return self.until is not None and day > self.until

    @property
    def name(self) -> str:
        """What the journal calls it: its reason, and its owner where that is known."""
        return f"{self.reason} ({self.owner})" if self.owner else self.reason

    def __str__(self) -> str:
        """Return what the journal says of it."""
        return f"exempt: {self.name}"


class Exemptions:
    """All exemptions of a site, found by what is known of a message.

    Args:
        exemptions: in the order of the settings; of several that fit the first one counts.

    Attributes:
        every: all of them.
        beyond_senders: whether any names clients or recipients, of whom the sender's address does not tell.
    """

    __slots__ = (
        "_by_client",
        "_by_recipient",
        "_by_sender",
        "_clients",
        "_last_by_recipient",
        "_recipients",
        "beyond_senders",
        "every",
    )

    def __init__(self, exemptions: Iterable[Exemption] = ()) -> None:
        self.every: Final = tuple(exemptions)
        self.beyond_senders: Final = any(one.clients or one.recipients for one in self.every)
        numbered = tuple(enumerate(self.every))
        # Each stands under the kind that is known first; what else it names is looked at once that has fitted.
        self._by_sender: Final = AddressIndex((each, number) for number, one in numbered for each in one.senders)
        self._by_client: Final = NetworkIndex(
            (each, number) for number, one in numbered if not one.senders for each in one.clients
        )
        alone = [(number, one) for number, one in numbered if not one.senders and not one.clients]
        self._by_recipient: Final = AddressIndex((each, number) for number, one in alone for each in one.recipients)
        self._last_by_recipient: Final = max(
            (one.until.number if one.until else _NEVER for _, one in alone), default=-1
        )
        self._clients: Final = tuple(NetworkIndex((each, None) for each in one.clients) for one in self.every)
        self._recipients: Final = tuple(AddressIndex((each, None) for each in one.recipients) for one in self.every)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.every)

    def of_sender(self, sender: Mailbox, day: Day) -> Exemption | None:
        """Return the exemption of all mail from a sender, whatever client sends it and to whom, or None."""
        fitting = [self.every[number] for number in sorted(self._by_sender.find(sender))]
        return next((one for one in fitting if not (one.clients or one.recipients or one.over(day))), None)

    def of_mail(self, sender: Mailbox, client: str, day: Day) -> Exemption | None:
        """Return the exemption of a sender's mail from a client, whomever it goes to, or None."""
        return next((one for _, one in self._fitting(sender, client, day) if not one.recipients), None)

    def of_recipient(self, sender: Mailbox, client: str, recipient: Mailbox, day: Day) -> Exemption | None:
        """Return the exemption of a sender's mail from a client to a recipient, or None."""
        found = [number for number, _ in self._fitting(sender, client, day) if self._goes_to(number, recipient)]
        found += [number for number in self._by_recipient.find(recipient) if not self.every[number].over(day)]
        return self.every[min(found)] if found else None

    def want_recipient(self, sender: Mailbox, client: str, day: Day) -> bool:
        """Whether it depends on the recipient if mail of a sender from a client is exempt."""
        if self._last_by_recipient >= day.number:
            return True
        return any(one.recipients for _, one in self._fitting(sender, client, day))

    def _fitting(self, sender: Mailbox, client: str, day: Day) -> Iterator[tuple[int, Exemption]]:
        """Yield the exemptions that name a sender or a client, and that both fit, in order."""
        found = {number for number in self._by_sender.find(sender) if self._comes_from(number, client)}
        for number in sorted(found.union(self._by_client.find(client))):
            if not self.every[number].over(day):
                yield number, self.every[number]

    def _comes_from(self, number: int, client: str) -> bool:
        networks = self._clients[number]
        return not networks or any(True for _ in networks.find(client))

    def _goes_to(self, number: int, recipient: Mailbox) -> bool:
        patterns = self._recipients[number]
        return not patterns or any(True for _ in patterns.find(recipient))


@dataclass(frozen=True, slots=True)
class Policy:
    """What is wanted for all domains.

    Attributes:
        domains: by name in lower case: signed outbound, judged inbound. `*.example.com` stands for every domain below
            example.com, however deep, that has no closer entry; a relay domain is one of those.
        relay_domains: names in lower case of hosted domains that pass unsigned and unjudged.
        exemptions: mail that leaves unsigned on purpose.
        exempt_own_domains: whether mail to domains of ours leaves unsigned.
        exempt_clients: networks whose forged bounces are not judged.
        remembers: whether it is on record here which addresses have mail that leaves unsigned.
        marks: whether any domain wants a status field, so that fields from outside must go.
        judges_senders: whether any domain wants bounces judged that have a sender.
    """

    domains: Mapping[bytes, DomainPolicy]
    relay_domains: frozenset[bytes] = field(default=frozenset())
    exemptions: Exemptions = field(default_factory=Exemptions)
    exempt_own_domains: bool = False
    exempt_clients: tuple[IPv4Network | IPv6Network, ...] = ()
    remembers: bool = False
    marks: bool = field(init=False, repr=False, compare=False)
    judges_senders: bool = field(init=False, repr=False, compare=False)
    _wild: bool = field(init=False, repr=False, compare=False)
    _exempt_clients: NetworkIndex[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Work out what is asked for each message."""
        with_sender = [policy.with_sender for policy in self.domains.values() if policy.with_sender is not None]
        marks = any(policy.marks for policy in (*self.domains.values(), *with_sender))
        object.__setattr__(self, "marks", marks)
        object.__setattr__(self, "judges_senders", bool(with_sender))
        object.__setattr__(self, "_wild", any(name.startswith(_WILDCARD) for name in self.domains))
        networks = NetworkIndex((network, str(network)) for network in self.exempt_clients)
        object.__setattr__(self, "_exempt_clients", networks)

    def for_domain(self, domain: bytes) -> DomainPolicy | None:
        """Return what is wanted for a domain, compared without regard to case; None if it is not ours."""
        domain = domain.lower()
        found = self.domains.get(domain)
        if found is not None or not self._wild:
            return found
        name = self.name_for(domain)
        return None if name is None else self.domains[name]

    def name_for(self, domain: bytes) -> bytes | None:
        """Return the name under which `domains` has a domain: its own or a wildcard; None if it is not ours."""
        domain = domain.lower()
        if domain in self.domains:
            return domain
        if domain in self.relay_domains:
            return None
        dot = domain.find(b".")
        while dot >= 0:
            wildcard = b"*" + domain[dot:]
            if wildcard in self.domains:
                return wildcard
            dot = domain.find(b".", dot + 1)
        return None

    def own_rings(self, names: Iterable[bytes]) -> frozenset[bytes]:
        """Return which domains may have a ring of their own: those that are named, and of `names` those below one."""
        return frozenset(self.domains) | {name.lower() for name in names if self.for_domain(name) is not None}

    def exempt_client(self, address: str) -> str | None:
        """Return the network for which forged bounces of this client are not judged, or None."""
        return next(self._exempt_clients.find(address), None)

    def wants_recipient(self, sender: Mailbox, client: str, day: Day) -> bool:
        """Whether it depends on the recipient if mail of a sender from a client leaves unsigned on purpose."""
        return self.exempt_own_domains or (
            bool(self.exemptions) and self.exemptions.want_recipient(sender, client, day)
        )

    @property
    def recalls_exempt(self) -> bool:
        """Whether the record alone tells of some addresses that mail of theirs has left unsigned on purpose."""
        return self.remembers and (self.exempt_own_domains or self.exemptions.beyond_senders)

    def exempt_for(self, sender: Mailbox, client: str, recipient: Mailbox, day: Day) -> str | None:
        """Return why mail to this recipient leaves unsigned on purpose, or None."""
        if self.exempt_own_domains and self.for_domain(recipient.domain) is not None:
            return "exempt: exempt_own_domains"
        exemption = self.exemptions.of_recipient(sender, client, recipient, day)
        return None if exemption is None else str(exemption)

    def relays(self, domain: bytes) -> bool:
        """Whether mail to this domain passes unjudged."""
        return domain.lower() in self.relay_domains
