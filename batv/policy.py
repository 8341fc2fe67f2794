"""What the site wants: which domains are ours, what is left alone, what each verdict gets.

A Policy is a value made from the settings. It knows no SMTP and no keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batv.tag import ForeignForm, foreign_form
from batv.verdict import Disposition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batv.address import Mailbox

__all__ = ["DomainPolicy", "Policy"]


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """What is wanted for one domain of ours.

    Attributes:
        on_forged: what a forged bounce gets: discard, quarantine, reject, mark or pass.
        leave_forms: forms of address that other systems make and check: not signed, not judged.
    """

    on_forged: Disposition = Disposition.DISCARD
    leave_forms: frozenset[ForeignForm] = frozenset()

    def left_alone(self, mailbox: Mailbox) -> ForeignForm | None:
        """Return the form for which this address is neither signed nor judged, or None."""
        return foreign_form(mailbox, self.leave_forms) if self.leave_forms else None

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
