"""DMARC aggregate reports as receivers write them, made from rows."""

from __future__ import annotations

import gzip
import io
import zipfile
from dataclasses import dataclass
from email.message import EmailMessage
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Sent", "mailed", "report_xml", "zipped"]


@dataclass(frozen=True, slots=True)
class Sent:
    """What one server sent, by default as a route of example.com that SPF and DKIM know.

    Attributes:
        source: the server.
        count: messages.
        envelope: domain of the reverse path; None where the reporter does not give one.
        header: domain of the From field.
        dkim: what the evaluated result is.
        spf: as for dkim.
        spf_scope: scope of the SPF result; empty for none, as old reporters have it.
        spf_domain: domain of the SPF result.
    """

    source: str
    count: int = 1
    envelope: str | None = "example.com"
    header: str = "example.com"
    dkim: str = "pass"
    spf: str = "pass"
    spf_scope: str = "mfrom"
    spf_domain: str = "example.com"

    @property
    def xml(self) -> str:
        """The record."""
        envelope = "" if self.envelope is None else f"<envelope_from>{self.envelope}</envelope_from>"
        scope = f"<scope>{self.spf_scope}</scope>" if self.spf_scope else ""
        return (
            f"<record><row><source_ip>{self.source}</source_ip><count>{self.count}</count><policy_evaluated>"
            f"<disposition>none</disposition><dkim>{self.dkim}</dkim><spf>{self.spf}</spf></policy_evaluated></row>"
            f"<identifiers>{envelope}<header_from>{self.header}</header_from></identifiers><auth_results>"
            f"<dkim><domain>{self.header}</domain><selector>s1</selector><result>{self.dkim}</result></dkim>"
            f"<spf><domain>{self.spf_domain}</domain>{scope}<result>{self.spf}</result></spf>"
            "</auth_results></record>"
        )


def report_xml(rows: Iterable[Sent], identifier: str = "1", root: str = "feedback", doctype: str = "") -> bytes:
    """Return a report about 2026-11-20."""
    records = "".join(row.xml for row in rows)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{doctype}\n<{root}><version>1.0</version><report_metadata>'
        f"<org_name>receiver.example</org_name><report_id>{identifier}</report_id><date_range>"
        "<begin>1795132800</begin><end>1795219199</end></date_range></report_metadata><policy_published>"
        f"<domain>example.com</domain><p>none</p></policy_published>{records}</feedback>\n"
    ).encode()


def zipped(text: bytes, name: str = "receiver.example!example.com!1!2.xml") -> bytes:
    """Return a ZIP archive with one file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, text)
    return archive.getvalue()


def mailed(text: bytes) -> bytes:
    """Return a mail with the report packed by gzip, a text beside it."""
    message = EmailMessage()
    message["From"] = "dmarc@receiver.example"
    message["To"] = "reports@example.com"
    message["Subject"] = "Report domain: example.com"
    message.set_content("<p>The report is attached.</p>", subtype="html")
    message.add_attachment(gzip.compress(text), maintype="application", subtype="gzip", filename="report.xml.gz")
    return message.as_bytes()
