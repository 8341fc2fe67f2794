"""`batv report routes`: servers that send the site's mail and never pass the outbound proxy, from DMARC reports."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from batv.errors import ReportError
from batv.report import dmarc
from batv.report.dmarc import parse_report
from tests.support.command import Answer, Command
from tests.support.dmarc import Sent, mailed, report_xml, zipped
from tests.support.dns import dns_server, misbehaving, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

OURS = "11.0.0.1"
FORGOTTEN = "11.0.0.20"
SERVICE = "11.0.0.30"


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `batv` on a site."""
    return Command(tmp_path, capsys)


def routes(batv: Command, rows: Iterable[Sent], *options: str) -> Answer:
    """Run the command on one report, with the server behind the outbound proxy named and without the DNS."""
    (batv.folder / "report.xml").write_bytes(report_xml(rows))
    return batv("report", "routes", str(batv.folder / "report.xml"), "--ours", OURS, "--no-dns", *options)


def sources(answer: Answer, kind: str) -> list[tuple[str, str, int]]:
    """Return domain, server and messages of the sources of a kind."""
    return [(each["domain"], each["source"], each["messages"]) for each in answer.fields["sources"][kind]]


# What is found.


def test_a_forgotten_route_is_named_with_its_volume(batv: Command) -> None:
    """Its mail has no tag: the day bounces are withheld, its bounces are lost."""
    answer = routes(batv, [Sent(OURS, 900), Sent(FORGOTTEN, 40), Sent(FORGOTTEN, 2)], "--json")
    assert answer.status == 1
    assert sources(answer, "route") == [("example.com", FORGOTTEN, 42)]
    assert sources(answer, "ours") == [("example.com", OURS, 900)]
    found = answer.fields["sources"]["route"][0]
    assert (found["spf"], found["dkim"], found["signers"], found["reporters"], found["begin"], found["end"]) == (
        42,
        42,
        ["example.com"],
        ["receiver.example"],
        "2026-11-20",
        "2026-11-20",
    )
    assert found["advice"].startswith("let it send through the outbound proxy")


def test_a_site_whose_mail_all_passes_the_proxy_hears_so(batv: Command) -> None:
    """Exit status 0: nothing stands in the way of enforcing."""
    answer = routes(batv, [Sent(OURS, 900)])
    assert (answer.status, answer.err) == (0, "")
    assert "0 messages by 0 servers that do not pass the outbound proxy" in answer.out


def test_the_table_names_the_server_the_volume_and_what_to_do(batv: Command) -> None:
    """Without JSON too."""
    answer = routes(batv, [Sent(FORGOTTEN, 42)])
    line = next(line for line in answer.out.splitlines() if FORGOTTEN in line)
    assert line.split()[:5] == ["example.com", FORGOTTEN, "42", "42", "42"]
    assert "let it send through the outbound proxy" in line


def test_mail_whose_bounces_go_elsewhere_is_no_concern(batv: Command) -> None:
    """A service for newsletters with a reverse path of its own gets its bounces itself; a bounce gets none at all."""
    rows = [
        Sent(SERVICE, 10_000, envelope="bounce.service.example", spf="fail"),
        Sent("11.0.0.31", 7, envelope=None, spf_scope="helo", spf_domain="mx.example.com"),
        Sent("11.0.0.32", 5, envelope="news.example.com"),
    ]
    answer = routes(batv, rows, "--json")
    assert answer.status == 0
    assert [each[2] for each in sources(answer, "elsewhere")] == [10_000, 7, 5]


def test_mail_in_nobody_s_alignment_is_only_counted(batv: Command) -> None:
    """A forger is no route of ours, however much he sends."""
    answer = routes(batv, [Sent("11.0.0.66", 5000, dkim="fail", spf="fail")], "--json")
    assert (answer.status, answer.fields["unauthenticated"]) == (0, 5000)
    assert all(not found for found in answer.fields["sources"].values())


def test_a_forwarder_is_told_apart_from_a_route(batv: Command) -> None:
    """It keeps our signature, and is not in our SPF record: its bounces come to the tag that the mail left with."""
    answer = routes(batv, [Sent("11.0.0.40", 12, spf="fail")], "--json")
    assert (answer.status, sources(answer, "unknown")) == (0, [("example.com", "11.0.0.40", 12)])


def test_an_old_report_tells_the_reverse_path_in_its_spf_result(batv: Command) -> None:
    """Many reporters give no envelope_from, and no scope."""
    rows = [
        Sent(FORGOTTEN, 3, envelope=None, spf_scope=""),
        Sent(SERVICE, 4, envelope=None, spf_scope="", spf_domain="bounce.service.example"),
    ]
    answer = routes(batv, rows, "--json")
    assert sources(answer, "route") == [("example.com", FORGOTTEN, 3)]
    assert sources(answer, "elsewhere") == [("example.com", SERVICE, 4)]


def test_mail_of_other_domains_is_only_counted(batv: Command) -> None:
    """A mailbox gets reports about domains that this site does not sign for."""
    answer = routes(batv, [Sent(FORGOTTEN, 8, envelope="other.example", header="other.example")], "--json")
    assert (answer.status, answer.fields["foreign"]) == (0, 8)


def test_a_server_that_submits_too_is_known_by_the_journal(batv: Command) -> None:
    """An application's host sends some of its mail through the proxy and some around it."""
    state = batv.folder / "var"
    state.mkdir()
    (state / "journal.jsonl").write_text(json.dumps({"direction": "outbound", "client": FORGOTTEN}) + "\nhalf a rec")
    found = routes(batv, [Sent(FORGOTTEN, 1)], "--json").fields["sources"]["route"][0]
    assert found["submits"]
    assert found["advice"].startswith("it sends through the outbound proxy too")


def test_a_next_hop_with_an_address_of_the_internet_is_ours(batv: Command) -> None:
    """What the settings say need not be said again."""
    batv.config.write_text(batv.config.read_text().replace("127.0.0.1:10026", f"{OURS}:25"))
    (batv.folder / "report.xml").write_bytes(report_xml([Sent(OURS, 3)]))
    answer = batv("report", "routes", str(batv.folder / "report.xml"), "--no-dns", "--json")
    assert (answer.status, answer.err, sources(answer, "ours")) == (0, "", [("example.com", OURS, 3)])


def test_who_names_no_server_of_his_own_is_told(batv: Command) -> None:
    """Everything would look like a route around the proxy."""
    (batv.folder / "report.xml").write_bytes(report_xml([Sent(OURS, 3)]))
    answer = batv("report", "routes", str(batv.folder / "report.xml"), "--no-dns")
    assert (answer.status, "--ours NETWORK" in answer.err) == (1, True)


# Where reports are read.


def test_reports_are_found_in_every_form_and_count_once(batv: Command) -> None:
    """As they lie in a Maildir, or saved from it: XML, gzip, ZIP and mails; the same one may come twice."""
    folder = batv.folder / "Maildir"
    for name in ("new", "cur", "tmp"):
        (folder / name).mkdir(parents=True)
    texts = [report_xml([Sent(FORGOTTEN, 10**number)], str(number)) for number in range(4)]
    (folder / "new" / "1.xml").write_bytes(texts[0])
    (folder / "new" / "2.xml.gz").write_bytes(gzip.compress(texts[1]))
    (folder / "new" / "3.zip").write_bytes(zipped(texts[2]))
    (folder / "cur" / "4.host:2,S").write_bytes(mailed(texts[3]))
    (folder / "cur" / "5.host:2,S").write_bytes(mailed(texts[3]))
    (folder / "cur" / "6.host:2,S").write_bytes(b"From: ann@peer.example\r\nSubject: lunch\r\n\r\nAt one?\r\n")
    (folder / "cur" / "7.host:2,S").write_bytes(mailed(b'{"organization-name": "a report about TLS"}'))
    (folder / "tmp" / "8.host").write_bytes(report_xml([Sent(FORGOTTEN, 5)], "unfinished"))
    answer = batv("report", "routes", str(folder), "--ours", OURS, "--no-dns", "--json")
    assert sources(answer, "route") == [("example.com", FORGOTTEN, 1111)]
    fields = answer.fields
    assert (fields["reports"], fields["repeated"], fields["without_report"], fields["passed_over"]) == (4, 1, 2, {})


@pytest.mark.parametrize(
    "root", ['feedback xmlns="http://dmarc.org/dmarc-xml/0.1"', 'feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0"']
)
def test_elements_are_known_in_any_namespace(root: str) -> None:
    """Reporters put them into several."""
    assert parse_report(report_xml([Sent(FORGOTTEN, 6)], root=root)).rows[0].count == 6


def test_a_broken_report_is_told_and_passed_over(batv: Command) -> None:
    """One that was cut short on its way must not hide the others."""
    (batv.folder / "broken.xml").write_bytes(report_xml([Sent(FORGOTTEN)])[:-20])
    answer = routes(batv, [Sent(FORGOTTEN, 2)], str(batv.folder / "broken.xml"), "--json")
    assert answer.fields["reports"] == 1
    assert list(answer.fields["passed_over"]) == [str(batv.folder / "broken.xml")]
    assert "broken.xml is passed over: it is no XML" in answer.err


@pytest.mark.parametrize("packed", [gzip.compress, zipped])
def test_a_packed_report_that_is_damaged_is_told(packed: Callable[[bytes], bytes], batv: Command) -> None:
    """Cut short or changed, it is none, though what is left of it might look like one."""
    octets = packed(report_xml([Sent(f"11.0.1.{number}") for number in range(100)]))
    (batv.folder / "short").write_bytes(octets[:-5])
    (batv.folder / "changed").write_bytes(octets[:60] + bytes([octets[60] ^ 255]) + octets[61:])
    answer = routes(batv, [Sent(FORGOTTEN)], str(batv.folder / "short"), str(batv.folder / "changed"), "--json")
    assert sorted(answer.fields["passed_over"]) == [str(batv.folder / "changed"), str(batv.folder / "short")]
    assert answer.fields["reports"] == 1


def test_without_any_report_the_answer_is_an_error(batv: Command) -> None:
    """Else an empty folder would look like a site that has no forgotten route."""
    (batv.folder / "empty").mkdir()
    answer = batv("report", "routes", str(batv.folder / "empty"), "--ours", OURS, "--no-dns")
    assert (answer.status, answer.out) == (65, "")
    assert batv("report", "routes", str(batv.folder / "gone"), "--ours", OURS, "--no-dns").status == 74


# What anybody can send.


ENTITIES = '<!DOCTYPE feedback [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (report_xml([Sent(FORGOTTEN)], doctype=ENTITIES), "document type"),
        (report_xml([Sent(FORGOTTEN)], doctype='<!DOCTYPE feedback SYSTEM "file:///etc/passwd">'), "document type"),
        (b"<feedback>" + b"<a>" * 100, "nested"),
        (report_xml([Sent("x" * 5000)]), "characters"),
        (report_xml([Sent("not an address")]), "source_ip"),
        (report_xml([Sent(FORGOTTEN, -1)]), "no number"),
        (report_xml([Sent(FORGOTTEN, 10**30)]), "no number"),
        (b"<html><body>no report</body></html>", "no aggregate report"),
        (b"<feedback>", "no XML"),
        (b'<?xml version="1.0" encoding="no-such"?><feedback/>', "cannot be read"),
        (b"", "no XML"),
    ],
)
def test_what_is_no_honest_report_is_refused(octets: bytes, said: str) -> None:
    """The address for reports stands in the DNS: whoever likes can send one."""
    with pytest.raises(ReportError, match=said):
        parse_report(octets)


def test_a_report_is_no_larger_than_its_bound(batv: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte of gzip or ZIP can become a gigabyte."""
    text = report_xml([Sent(FORGOTTEN)] * 100)
    for module in ("batv.report.dmarc", "batv.report.reading"):
        monkeypatch.setattr(f"{module}.MAX_REPORT_OCTETS", len(text) - 1)
    (batv.folder / "a.gz").write_bytes(gzip.compress(text))
    (batv.folder / "b.zip").write_bytes(zipped(text))
    answer = routes(batv, [Sent(FORGOTTEN)], str(batv.folder / "a.gz"), str(batv.folder / "b.zip"), "--json")
    assert len(answer.fields["passed_over"]) == 2
    assert answer.fields["reports"] == 1


def test_a_report_has_no_more_records_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are kept in memory."""
    monkeypatch.setattr(dmarc, "_MAX_ROWS", 10)
    assert len(parse_report(report_xml([Sent(FORGOTTEN)] * 10)).rows) == 10
    with pytest.raises(ReportError, match="records"):
        parse_report(report_xml([Sent(FORGOTTEN)] * 11))


def test_nothing_of_a_report_reaches_the_terminal_as_it_is(batv: Command) -> None:
    """A reporter can call itself what it likes, with control characters that XML allows."""
    rows = [Sent(FORGOTTEN, 2)]
    (batv.folder / "report.xml").write_bytes(
        report_xml(rows)
        .replace(b"receiver.example<", "a\x9b2Jb\u202e<".encode())
        .replace(b"<dkim><domain>example.com", "<dkim><domain>example.com\x9b31m".encode())
    )
    answer = batv("report", "routes", str(batv.folder / "report.xml"), "--ours", OURS, "--no-dns", "--json")
    assert "\x9b" not in answer.out + answer.err
    found = answer.fields["sources"]["route"][0]
    assert (found["reporters"], found["signers"]) == (["a\\x9b2Jb\\u202e"], ["example.com\\x9b31m"])


# The SPF record.


SPF = (
    "local=/example.com/",
    "local=/service.example/",
    f"txt-record=example.com,v=spf1 ip4:{OURS} ip4:11.0.0.16/28 include:_spf.service.example a:app.example.com mx -all",
    "txt-record=_spf.service.example,v=spf1 ip4:11.0.0.48/28 -ip4:11.0.0.64 ?ip4:11.0.0.65 ip6:2600::/32 ~all",
    "host-record=app.example.com,11.0.0.80,2600:80::1",
    "mx-host=example.com,mx.example.com,10",
    "host-record=mx.example.com,11.0.0.90",
)


@pytest.mark.dns
def test_the_spf_record_says_what_a_server_is_and_which_routes_nobody_reported(batv: Command, tmp_path: Path) -> None:
    """What a service's record lets send is named by the term that has it; what is refused or neutral is no route."""
    rows = [
        Sent(FORGOTTEN, 5),
        Sent("11.0.0.50", 4, spf="fail"),
        Sent("2600::1", 3, spf="fail"),
        Sent("2600:80::1", 2, spf="fail"),
        Sent("11.0.0.64", 1, spf="fail"),
        Sent("11.0.0.65", 1, spf="fail"),
    ]
    (batv.folder / "report.xml").write_bytes(report_xml(rows))
    with dns_server(tmp_path, SPF) as server:
        batv.config.write_text(batv.config.read_text() + f'\n[dns]\nservers = ["{server.address}"]\n')
        answer = batv("report", "routes", str(batv.folder / "report.xml"), "--ours", OURS, "--json")
    assert [(each["source"], each["allowed_by"]) for each in answer.fields["sources"]["route"]] == [
        (FORGOTTEN, "ip4:11.0.0.16/28"),
        ("11.0.0.50", "include:_spf.service.example"),
        ("2600::1", "include:_spf.service.example"),
        ("2600:80::1", "a:app.example.com"),
    ]
    assert [each["source"] for each in answer.fields["sources"]["unknown"]] == ["11.0.0.64", "11.0.0.65"]
    assert answer.fields["spf"]["example.com"] == {"published": True, "unseen": ["mx"], "remarks": []}
    assert answer.fields["spf"]["lists.example"]["published"] is False


@pytest.mark.dns
@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("v=spf1 include:example.com -all", "more than 10 terms ask the DNS"),
        ("v=spf1 exists:%{i}.example.com -all", "is not followed"),
        ("v=spf1 include:%{d}.example.com -all", "macro"),
        ("v=spf1 +all", "lets everybody send"),
        ("v=spf1 ip4:nonsense -all", "names no network"),
        ("v=spf1 include:none.example.com -all", "has no SPF record"),
        ("v=spf1 redirect=example.com", "more than 10 terms ask the DNS"),
    ],
)
def test_what_of_an_spf_record_cannot_be_followed_is_said(
    record: str, said: str, batv: Command, tmp_path: Path
) -> None:
    """A record that includes itself ends after ten questions."""
    (batv.folder / "report.xml").write_bytes(report_xml([Sent(FORGOTTEN)]))
    with dns_server(tmp_path, ("local=/example.com/", f"txt-record=example.com,{record}")) as server:
        batv.config.write_text(batv.config.read_text() + f'\n[dns]\nservers = ["{server.address}"]\n')
        answer = batv("report", "routes", str(batv.folder / "report.xml"), "--ours", OURS)
    assert "SPF of example.com: " in answer.err
    assert said in answer.err


@pytest.mark.dns
def test_without_an_answer_from_the_dns_the_reports_are_told_all_the_same(
    batv: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say most of what there is to say."""
    monkeypatch.setattr("batv.cli.report.DNS_SECONDS", 0.2)
    (batv.folder / "report.xml").write_bytes(report_xml([Sent(FORGOTTEN, 2)]))
    with misbehaving(silent) as server:
        batv.config.write_text(batv.config.read_text() + f'\n[dns]\nservers = ["{server.address}"]\n')
        answer = batv("report", "routes", str(batv.folder / "report.xml"), "--ours", OURS, "--json")
    assert sources(answer, "route") == [("example.com", FORGOTTEN, 2)]
    assert "no answer from the DNS" in answer.fields["spf"]["example.com"]["remarks"][0]
