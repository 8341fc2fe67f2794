"""What the site wants: which domains are ours, what is left alone, what each verdict gets.

A Policy is a value made from the settings. It knows no SMTP and no keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from batv.tag import ForeignForm, foreign_form
from batv.verdict import SEVERITY, Disposition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batv.address import Mailbox
    from batv.verdict import Verdict

__all__ = ["DomainPolicy", "Policy"]


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """What is wanted for one domain of ours.

    Attributes:
        on_forged: what a forged bounce gets: discard, quarantine, reject, mark or pass.
        leave_forms: forms of address that other systems make and check: not signed, not judged.
        on_listed: what a bounce without a tag gets at least, whose client a list of senders of backscatter has; None
            for no more than usual.
    """

    on_forged: Disposition = Disposition.DISCARD
    leave_forms: frozenset[ForeignForm] = frozenset()
    on_listed: Disposition | None = None

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
        del verdict
        return self.on_forged

    def limited(self, limit: Callable[[Disposition], Disposition]) -> DomainPolicy:
        """Return the policy with every disposition replaced by what a limit makes of it."""
        listed = limit(self.on_listed) if self.on_listed is not None else None
        return replace(self, on_forged=limit(self.on_forged), on_listed=listed)

    @property
    def marks(self) -> bool:
        """Whether bounces to this domain carry a status field."""
        return self.on_forged is Disposition.MARK


@dataclass(frozen=True, slots=True)
class Policy:
    """What is wanted for all domains.

    Attributes:
        domains: by name in lower case: signed outbound, judged inbound.
        relay_domains: names in lower case of hosted domains that pass unsigned and unjudged.
    """

    domains: Mapping[bytes, DomainPolicy]
    relay_domains: frozenset[bytes] = field(default=frozenset())

    def for_domain(self, domain: bytes) -> DomainPolicy | None:
        """Return what is wanted for a domain, compared without regard to case; None if it is not ours."""
        return self.domains.get(domain.lower())

    def relays(self, domain: bytes) -> bool:
        """Whether mail to this domain passes unjudged."""
        return domain.lower() in self.relay_domains

    @property
    def marks(self) -> bool:
        """Whether any domain wants a status field, so that fields from outside must go."""
        return any(policy.marks for policy in self.domains.values())
