"""Microsoft Exchange: on premises (2007 and later), and Exchange Online.

Their reports carry a page for people in quoted-printable, on premises as HTML alone. Checked against real ones.
"""

from __future__ import annotations

from html import escape
from typing import Final

from batv.corpus.dialects.report import Action, Dialect, Report, encoded, message_part, mixed, rendered, status_part
from batv.corpus.letters import date_text, token

__all__ = ["EXCHANGE", "EXCHANGE_ONLINE"]

_HEX: Final = "0123456789abcdef"
_HTML: Final = 'text/html; charset="us-ascii"'
_PLAIN: Final = 'text/plain; charset="us-ascii"'
_PAGE: Final = """\
<html>
<Head></head><body>
<p><b><font color="#000066" size="3" face="Arial">{title}</font></b></p>
<font color="#000000" size="2" face="Tahoma"><p><a href="mailto:{recipient}">{recipient}</a><br>
{advice}</p>
<p>The following organization rejected your message: {remote}.</p>
</font>
<HR/><font color="#808080" size="1" face="Arial">Sent by Microsoft Exchange Server 2007</font>
<br><br><br><br><br><br>
<font color="#808080" size="2" face="Tahoma"><p><b>Diagnostic information for administrators:</b></p>
<p>Generating server: {host}</p>
<p>{recipient}<br>
{remote} #{reply} ##</p>
</font>
</body>
</html>
"""
_ADVICE: Final = (
    "The recipient's e-mail address was not found in the recipient's e-mail system. Microsoft Exchange will not try"
    " to redeliver this message for you. Please check the e-mail address and try resending this message, or provide"
    " the following diagnostic text to your system administrator."
)
_ONLINE_TEXT: Final = """\
Your message to {recipient} couldn't be delivered.

{local} wasn't found at {domain}.

{sender}      Office 365      {local}
Action Required                 Recipient


Unknown To address


How to Fix It
The address may be misspelled or may not exist. Try one or more of the following:

  *   Send the message again: In Outlook, open this non-delivery report (NDR) and choose Send Again.
  *   Contact the recipient (by phone, for example) to check that the address exists and is correct.

If the problem continues, forward this message to your email admin.

Was this helpful? Send feedback to Microsoft.
________________________________

More Info for Email Admins
Status code: {reply}
"""


def _on_premises(report: Report) -> bytes:
    subject = f"Undeliverable: {_ascii(report.letter.subject)}"
    identity = _guid(report)
    title = "Delivery has failed to these recipients or distribution lists:"
    page = _PAGE.format(
        title=title,
        recipient=escape(report.recipient),
        advice=_ADVICE,
        remote=report.remote,
        host=report.host,
        reply=escape(report.reply),
    )
    domain = report.to.rpartition("@")[2]
    message = mixed(
        (
            ("Received", (f"from {report.host} (10.1.2.3) by\n edge.{report.host} (10.1.2.4)\n"
             f" with Microsoft SMTP Server (TLS) id 14.3.123.3; {date_text(report.now)}")),
            ("From", f"Microsoft Outlook\n\t<MicrosoftExchange329e71ec88ae4615bbc36ab6ce41109e@{report.host}>"),
            ("To", f"<{report.to}>"),
            ("Date", date_text(report.now)),
            ("Subject", subject),
            ("Thread-Topic", _ascii(report.letter.subject)),
            ("Message-ID", f"<{report.message_id}-{identity}@{domain}>"),
            ("References", report.letter.message_id),
            ("In-Reply-To", report.letter.message_id),
            ("Accept-Language", "en-US"),
            ("Content-Language", "en-US"),
            ("X-MS-Has-Attach", "yes"),
            ("X-Auto-Response-Suppress", "All"),
            ("X-MS-TNEF-Correlator", ""),
            ("Content-Type", (f'multipart/report;\n\tboundary="_000_{identity.replace("-", "")}_";\n'
             "\treport-type=delivery-status")),
            ("MIME-Version", "1.0"),
        ),
        (
            encoded(page, _HTML),
            status_part(
                (
                    (("Reporting-MTA", f"dns; {report.host}"),),
                    (("Final-recipient", f"RFC822;\n {report.recipient}"), ("Action", report.action.value),
                     ("Status", report.status), ("Remote-MTA", f"dns; {report.remote}"),
                     ("X-Supplementary-Info", f"<{report.remote} #{report.status} smtp;{report.reply}>")),
                )
            ),
            message_part(report.letter.octets),
        ),
    )  # fmt: skip
    return rendered(message)


def _online(report: Report) -> bytes:
    local, _, domain = report.recipient.rpartition("@")
    text = _ONLINE_TEXT.format(
        recipient=report.recipient,
        local=local,
        domain=domain,
        sender=report.to.partition("@")[0],
        reply=report.reply,
    )
    server = f"DB{token(report.rng, 4)}01MB{token(report.rng, 4)}.eurprd01.prod.outlook.com"
    outer, inner = _guid(report), _guid(report)
    page = (
        "<html>\n  <head>\n    <title>NDR</title>\n  </head>\n  <body>\n    <pre>"
        + escape(text)
        + "</pre>\n  </body>\n"
    )
    both = mixed(
        (("Content-Type", f'multipart/alternative; differences=Content-Type;\n\tboundary="{inner}"'),),
        (encoded(text, _PLAIN), encoded(page + "</html>\n", _HTML)),
    )
    message = mixed(
        (
            ("MIME-Version", "1.0"),
            ("From", f"<postmaster@{domain}>"),
            ("To", f"<{report.to}>"),
            ("Date", date_text(report.now)),
            ("Content-Type", f'multipart/report; report-type=delivery-status;\n\tboundary="{outer}"'),
            ("X-MS-Exchange-Message-Is-Ndr", ""),
            ("Content-Language", "en-US"),
            ("Message-ID", f"<{report.message_id}-{_guid(report)}@{server}>"),
            ("In-Reply-To", report.letter.message_id),
            ("References", report.letter.message_id),
            ("Subject", f"Undeliverable: {_ascii(report.letter.subject)}"),
            ("Auto-Submitted", "auto-replied"),
            ("X-MS-PublicTrafficType", "Email"),
            ("X-MS-Exchange-CrossTenant-FromEntityHeader", "Hosted"),
        ),
        (
            both,
            status_part(
                (
                    (("Reporting-MTA", f"dns;{server}"), ("Received-From-MTA", f"dns;{report.host}"),
                     ("Arrival-Date", date_text(report.letter.sent))),
                    (("Final-Recipient", f"rfc822;{report.recipient}"), ("Action", report.action.value),
                     ("Status", report.status), ("Diagnostic-Code", f"smtp;{report.reply}")),
                )
            ),
            message_part(report.letter.octets),
        ),
    )  # fmt: skip
    return rendered(message)


def _guid(report: Report) -> str:
    return "-".join(token(report.rng, length, _HEX) for length in (8, 4, 4, 4, 12))


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


EXCHANGE: Final = Dialect("exchange", frozenset((Action.FAILED,)), _on_premises)
"""Exchange on premises."""

EXCHANGE_ONLINE: Final = Dialect("exchange-online", frozenset((Action.FAILED,)), _online)
"""Exchange Online."""
