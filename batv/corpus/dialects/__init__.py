"""How real systems word their bounces."""

from __future__ import annotations

from typing import Final

from batv.corpus.dialects.courier import COURIER
from batv.corpus.dialects.exchange import EXCHANGE, EXCHANGE_ONLINE
from batv.corpus.dialects.exim import EXIM
from batv.corpus.dialects.groupware import DOMINO, GROUPWISE
from batv.corpus.dialects.opensmtpd import OPENSMTPD
from batv.corpus.dialects.plain import PLAIN
from batv.corpus.dialects.postfix import POSTFIX
from batv.corpus.dialects.providers import GMAIL, YAHOO
from batv.corpus.dialects.qmail import HARAKA, QMAIL
from batv.corpus.dialects.report import Action, Dialect, Report
from batv.corpus.dialects.sendmail import SENDMAIL

__all__ = ["DIALECTS", "Action", "Dialect", "Report"]

DIALECTS: Final = (
    POSTFIX, EXIM, SENDMAIL, QMAIL, OPENSMTPD, COURIER, EXCHANGE, EXCHANGE_ONLINE, GMAIL, YAHOO, DOMINO, GROUPWISE,
    HARAKA, PLAIN,
)  # fmt: skip
"""All dialects; a corpus uses each of them."""
