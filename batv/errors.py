"""Every error that batv raises on purpose, below one root.

An error carries what is wrong, what the reader can do about it, and the exit status that the command line
ends with. Mail peers never see these texts: they get a bland reply, the log gets the error.

Source: exit statuses are those of sysexits(3) where it has one.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AddressError",
    "BatvError",
    "CannotCreateError",
    "ConfigError",
    "CorpusError",
    "DayError",
    "IoError",
    "KeyRingDataError",
    "KeyRingRuleError",
    "NoSigningKeyError",
    "OriginError",
    "PathError",
    "QuarantineFullError",
    "ReplyError",
    "ReportError",
    "TryAgainError",
    "UnavailableError",
    "UnsafeFileError",
]


class BatvError(Exception):
    """Root of all errors of batv.

    Args:
        what: what is wrong, one clause without a full stop.
        remedy: what to do about it, one clause; empty where nothing can be advised.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        """Return `what is wrong: what to do`."""
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


class AddressError(BatvError):
    """Octets that are no mailbox. Source: RFC 5321 section 4.1.2."""

    exit_status = 65


class PathError(AddressError):
    """Octets that are no reverse path or forward path. Source: RFC 5321 section 4.1.2.

    Attributes:
        relay_trick: the path holds a second, unquoted `@`, as attempts to relay through a gateway do.
    """

    def __init__(self, what: str, remedy: str = "", *, relay_trick: bool = False) -> None:
        super().__init__(what, remedy)
        self.relay_trick = relay_trick


class OriginError(BatvError):
    """A front server's octets that tell of no client. Source: XCLIENT_README and XFORWARD_README of Postfix."""

    exit_status = 65


class DayError(BatvError):
    """Text that is no calendar day."""

    exit_status = 65


class ReplyError(BatvError):
    """A peer's octets that are no SMTP reply. Source: RFC 5321 section 4.2."""

    exit_status = 69


class ReportError(BatvError):
    """Octets that are no DMARC aggregate report, or one that goes beyond our bounds."""

    exit_status = 65


class CorpusError(BatvError):
    """A corpus of bounces that is damaged, or that was made for other circumstances."""

    exit_status = 65


class KeyRingDataError(BatvError):
    """A key ring that is damaged, or that breaks a rule a ring must keep."""

    exit_status = 65


class KeyRingRuleError(BatvError):
    """A change that would harm the ring: live tags would die, a number would be used twice."""

    exit_status = 1


class NoSigningKeyError(BatvError):
    """The ring has no key that signs on this day."""

    exit_status = 1


class ConfigError(BatvError):
    """Settings that are missing or wrong; `what` may hold several lines, one for each error."""

    exit_status = 78


class UnavailableError(BatvError):
    """A service that is needed does not answer."""

    exit_status = 69


class CannotCreateError(BatvError):
    """A file that cannot be made, or that stands in the way."""

    exit_status = 73


class IoError(BatvError):
    """Reading or writing failed."""

    exit_status = 74


class QuarantineFullError(BatvError):
    """The quarantine has reached the size that the settings give it: what would be kept there is discarded."""

    exit_status = 73


class TryAgainError(BatvError):
    """Somebody else holds the lock, or the like: the same call may go through later."""

    exit_status = 75


class UnsafeFileError(BatvError):
    """A file whose owner or mode is not safe, or that we may not touch."""

    exit_status = 77
