"""The sent ledger as commands look into it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batv.address import Mailbox
    from batv.cli import Site
    from batv.config import Settings
    from batv.day import Day
    from batv.keyring import KeyRings
    from batv.store.ledger import Ledger

__all__ = ["may_have_left_unsigned", "opened_ledger"]


@contextmanager
def opened_ledger(site: Site, settings: Settings, day: Day) -> Iterator[Ledger | None]:
    """Open the ledger of a site; None where it has none, or none that has been used.

    Raises:
        BatvError: its secret is not right, or cannot be read.
    """
    if not settings.ledger.enabled:
        yield None
        return
    from batv.store.ledger import SECRET_NAME, Ledger, LedgerLimits  # noqa: PLC0415 -- SQLite: few sites have one

    store, options = site.store(settings), settings.ledger
    # Looking must not make a secret, which would be another one than the service's.
    if not (store.directory / SECRET_NAME).exists():
        yield None
        return
    ledger = Ledger(
        Path(settings.state.directory) / "ledger",
        store.ledger_secret(),
        lambda: day,
        LedgerLimits(options.keep_days, options.max_octets, options.max_rescues),
        lambda _: False,
    )
    try:
        yield ledger
    finally:
        ledger.close()


def may_have_left_unsigned(ledger: Ledger | None, mailbox: Mailbox | None, rings: KeyRings) -> bool:
    """Return whether mail of an address may have left unsigned, as the inbound proxy finds it."""
    if ledger is None or mailbox is None:
        return True
    return ledger.may_have_left_unsigned(mailbox.octets, rings.longest(mailbox.domain) + 1)
