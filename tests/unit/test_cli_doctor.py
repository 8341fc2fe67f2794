"""`batv doctor`: what is not wired as it must be, and what to do about it."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from batv.probe import Loop, Outcome
from batv.report import health
from batv.store.probe import ProbeStore
from tests.support.command import TODAY, Answer, Command
from tests.support.dns import dns_server, misbehaving, silent
from tests.support.mta import free_ports
from tests.support.next_hop import RecordingNextHop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_CLOSED: Final = "127.0.0.1:1"
"""Where nobody listens: below the ports that tests are given."""


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Return `batv` on a site with a key and next hops that answer."""
    command = Command(tmp_path, capsys)
    with RecordingNextHop() as hop:
        configure(command, [hop.address], hop.address)
        assert command("key", "new").status == 0
        yield command
        assert hop.commands == []


def configure(batv: Command, outbound: Sequence[str], inbound: str) -> None:
    """Write settings for one domain."""
    ports = free_ports(2)
    batv.config.write_text(
        f'[outbound]\nlisten = ["127.0.0.1:{ports[0]}"]\nnext_hop = {json.dumps(outbound)}\n'
        f'[inbound]\nlisten = ["127.0.0.1:{ports[1]}"]\nnext_hop = "{inbound}"\n'
        f'[domains."example.com"]\non_forged = "quarantine"\n'
    )


def findings(answer: Answer, check: str) -> list[tuple[str, str]]:
    """Return result and finding of a check."""
    return [(each["result"], each["found"]) for each in answer.fields["findings"] if each["check"] == check]


def with_dns(batv: Command, address: str, more: str = "") -> None:
    """Let the site ask this DNS server."""
    batv.config.write_text(f'{batv.config.read_text()}\n[dns]\nservers = ["{address}"]\n{more}')


def test_a_site_that_is_right_hears_so(batv: Command) -> None:
    """Exit status 0, and every check that was made is named, as are those that were left out."""
    answer = batv("doctor", "--no-dns", "--json")
    assert (answer.status, answer.err, answer.fields["faults"]) == (0, "", 0)
    results = {each["check"]: each["result"] for each in answer.fields["findings"]}
    assert results == {
        "settings": "ok",
        "keys": "ok",
        "clock": "ok",
        "room": "ok",
        "tags": "left out",
        "probe": "left out",
        "next hop": "ok",
        "MX": "left out",
        "lists": "left out",
    }


def test_the_table_says_what_to_do(batv: Command) -> None:
    """An administrator reads it, and goes on from there."""
    configure(batv, [_CLOSED], _CLOSED)
    answer = batv("doctor", "--no-dns")
    assert answer.status == 1
    line = next(line for line in answer.out.splitlines() if "outbound proxy's next hop" in line)
    assert "fault" in line
    assert "start it, or set outbound.next_hop" in line
    assert "127.0.0.1:1: the next hop cannot be connected to: Connection refused " in line
    assert answer.out.splitlines()[-1] == "2 faults, 0 to look at"


def test_a_next_hop_that_cannot_be_told_of_clients_as_wanted_is_a_fault(batv: Command) -> None:
    """It answers, and yet every client hears 451."""
    settings = batv.config.read_text()
    batv.config.write_text(settings.replace("[inbound]", '[inbound]\nnext_hop_identity = "xclient"'))
    answer = batv("doctor", "--no-dns", "--json")
    (found,) = (each for each in answer.fields["findings"] if each["result"] == "fault")
    assert found["found"].endswith('does not offer XCLIENT, and next_hop_identity = "xclient" wants it')
    assert found["remedy"].startswith("let it offer that to this host (Postfix: smtpd_authorized_xclient_hosts)")
    assert found["remedy"].endswith("or set another in inbound.next_hop_identity")


def test_a_next_hop_that_is_down_is_a_fault_unless_another_one_serves(batv: Command) -> None:
    """Mail waits in the servers before the proxies as long as none answers."""
    with RecordingNextHop() as hop:
        configure(batv, [_CLOSED, hop.address], _CLOSED)
        answer = batv("doctor", "--no-dns", "--json")
    assert [result for result, _ in findings(answer, "next hop")] == ["warning", "ok", "fault"]
    assert answer.status == 1


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ('next_hop_tls = "required"', "set inbound.next_hop_tls, next_hop_tls_ca or next_hop_tls_name"),
        ('next_hop_credentials = "login"', "put right user and password in inbound.next_hop_credentials, then reload"),
    ],
)
def test_a_next_hop_that_has_no_tls_or_no_login_for_us_need_not_be_started(
    option: str, remedy: str, batv: Command
) -> None:
    """It runs: an expired certificate, or a changed password, is mended elsewhere."""
    login = batv.folder / "login"
    login.write_text("batv\nsecret\n")
    login.chmod(0o600)
    batv.config.write_text(batv.config.read_text().replace("[inbound]", f"[inbound]\n{option}"))
    answer = batv("doctor", "--no-dns", "--json")
    assert answer.status == 1
    assert next(each["remedy"] for each in answer.fields["findings"] if each["result"] == "fault").endswith(remedy)


def test_a_site_without_a_signing_key_is_told(batv: Command) -> None:
    """Its mail is answered 451."""
    for file in batv.keys.iterdir():
        file.unlink()
    answer = batv("doctor", "--no-dns", "--json")
    assert (answer.status, [result for result, _ in findings(answer, "keys")]) == (1, ["fault"])


def test_a_key_that_has_signed_for_long_is_told(batv: Command) -> None:
    """After 1000 days the day in a tag comes round, and an old tag is good again."""
    batv.today = TODAY + 366
    answer = batv("doctor", "--no-dns", "--json")
    assert (answer.status, findings(answer, "keys")[0][0]) == (0, "warning")
    batv.today = TODAY + 995
    answer = batv("doctor", "--no-dns", "--json")
    assert (answer.status, findings(answer, "keys")[0][0]) == (1, "fault")


def test_a_clock_that_is_earlier_than_a_key_is_told(batv: Command) -> None:
    """Every genuine bounce would look forged."""
    batv.today = TODAY + -30
    answer = batv("doctor", "--no-dns", "--json")
    assert (answer.status, findings(answer, "clock")[0][0]) == (1, "fault")


def test_a_state_folder_without_room_is_told(batv: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be recorded is not discarded, and gets 451."""
    monkeypatch.setattr(health, "_NONE_OCTETS", 1 << 62)
    assert findings(batv("doctor", "--no-dns", "--json"), "room")[0][0] == "fault"
    monkeypatch.setattr(health, "_NONE_OCTETS", 0)
    monkeypatch.setattr(health, "_LITTLE_OCTETS", 1 << 62)
    assert findings(batv("doctor", "--no-dns", "--json"), "room")[0][0] == "warning"


def test_a_host_that_signs_nothing_is_not_blamed_for_it(batv: Command) -> None:
    """Its outbound proxy may be another host's."""
    settings = batv.config.read_text()
    batv.config.write_text("[inbound]" + settings.partition("[inbound]")[2])
    state = batv.folder / "var"
    state.mkdir()
    (state / "journal.jsonl").touch()
    found = findings(batv("doctor", "--no-dns", "--json"), "tags")
    assert found == [("ok", "no genuine bounce lacked a good tag in 7 days")]


def test_mail_that_leaves_unsigned_is_told(batv: Command) -> None:
    """A domain that nobody configured: its bounces are not let in, and nobody else looks."""
    state = batv.folder / "var"
    state.mkdir()

    def record(**fields: str) -> str:
        return json.dumps({"time": f"{TODAY.iso()}T12:00:00.000Z", "reply": "250 2.0.0 Ok"} | fields) + "\n"

    signed = record(direction="outbound", verdict="signed", disposition="rewrite", reverse_path="<joe@example.com>")
    (state / "journal.jsonl").write_text(signed)
    assert findings(batv("doctor", "--no-dns", "--json"), "tags") == [
        ("ok", "mail to 1 recipient was signed in 7 days")
    ]
    (state / "journal.jsonl").write_text("")
    assert findings(batv("doctor", "--no-dns", "--json"), "tags") == [("warning", "no mail was signed in 7 days")]
    bounce = record(direction="inbound", verdict="untagged", disposition="discard", forward_path="<joe@example.com>")
    (state / "journal.jsonl").write_text(bounce)
    assert findings(batv("doctor", "--no-dns", "--json"), "tags") == [
        ("warning", "no mail was signed in 7 days, though a bounce came")
    ]
    reason = "unsigned: sub.example.com is not a domain of ours"
    leak = record(direction="outbound", verdict="unsigned", disposition="pass", reason=reason)
    late = record(direction="inbound", verdict="expired", forward_path="<joe@example.com>")
    (state / "journal.jsonl").write_text(signed + leak + late)
    answer = batv("doctor", "--no-dns", "--json")
    assert (answer.status, findings(answer, "tags")) == (
        0,
        [
            ("warning", "mail to 1 recipient left unsigned in 7 days: sub.example.com is not a domain of ours"),
            ("warning", "1 bounce to example.com looks genuine and had no good tag, in 7 days"),
        ],
    )


def test_errors_of_the_settings_are_among_the_findings(batv: Command) -> None:
    """What would keep the service from starting, as `batv config check` tells it."""
    batv.config.write_text(
        batv.config.read_text().replace("[inbound]", 'next_hop_tls = "required"\nnext_hop_tls_ca = "gone"\n[inbound]')
    )
    answer = batv("doctor", "--no-dns", "--json")
    assert answer.status == 1
    assert "fault" in [result for result, _ in findings(answer, "settings")]
    assert "fault" in [result for result, _ in findings(answer, "next hop")]


# MX records.


MX: Final = (
    "local=/example.com/",
    "mx-host=example.com,mx1.example.com,10",
    "mx-host=example.com,mx2.example.com,20",
    "host-record=mx1.example.com,11.0.0.1,2600::1",
    "host-record=mx2.example.com,11.0.0.2",
)


@pytest.mark.dns
def test_an_mx_that_leads_around_the_inbound_proxy_is_a_fault(batv: Command, tmp_path: Path) -> None:
    """A backup MX at a provider takes bounces that nobody judges, and signed addresses that nobody knows."""
    with dns_server(tmp_path, MX) as server:
        with_dns(batv, server.address)
        answer = batv("doctor", "--inbound", "11.0.0.1", "--inbound", "2600::/16", "--json")
        every = batv("doctor", "--inbound", "11.0.0.0/24", "--inbound", "2600::/16", "--json")
    assert answer.status == 1
    assert findings(answer, "MX") == [
        (
            "fault",
            (
                "example.com has its mail delivered to mx2.example.com [11.0.0.2], which is not known to lead to an"
                " inbound proxy"
            ),
        ),
        ("ok", "example.com: mx1.example.com [11.0.0.1], mx1.example.com [2600::1]"),
    ]
    assert (every.status, [result for result, _ in findings(every, "MX")]) == (0, ["ok"])


@pytest.mark.dns
def test_an_mx_on_this_host_need_not_be_named(batv: Command, tmp_path: Path) -> None:
    """On a small site the server that faces the Internet is on the same host."""
    here = [
        each.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family.name in {"AF_INET", "AF_INET6"}
    ]
    reachable = [each for each in here if not ip_address(each).is_loopback and not ip_address(each).is_link_local]
    records = [f"host-record=mx{number}.example.com,{each}" for number, each in enumerate(reachable)]
    names = [f"mx-host=example.com,mx{number}.example.com,10" for number, _ in enumerate(reachable)]
    loopback = ("host-record=self.example.com,127.0.0.1", "mx-host=example.com,self.example.com,90")
    with dns_server(tmp_path, ("local=/example.com/", *records, *names, *loopback)) as server:
        with_dns(batv, server.address)
        answer = batv("doctor", "--json")
    faults = [found for result, found in findings(answer, "MX") if result == "fault"]
    # Others who look for this MX find themselves.
    assert len(faults) == 1
    assert "self.example.com [127.0.0.1]" in faults[0]
    right = "".join(found for result, found in findings(answer, "MX") if result == "ok")
    assert all(f"[{each}]" in right for each in reachable)


@pytest.mark.dns
@pytest.mark.parametrize(
    ("records", "said"),
    [
        (("dns-rr=example.com,15,000000",), "takes no mail"),
        ((), "no MX with an address"),
        (("mx-host=example.com,gone.example.com,10",), "no MX with an address"),
    ],
)
def test_a_domain_that_gets_no_mail_is_a_fault(
    records: tuple[str, ...], said: str, batv: Command, tmp_path: Path
) -> None:
    """Whoever signs its mail will never see a bounce of it."""
    with dns_server(tmp_path, ("local=/example.com/", *records)) as server:
        with_dns(batv, server.address)
        answer = batv("doctor", "--json")
    assert answer.status == 1
    assert said in findings(answer, "MX")[0][1]


@pytest.mark.dns
def test_a_domain_without_mx_has_its_mail_delivered_to_its_address(batv: Command, tmp_path: Path) -> None:
    """RFC 5321 section 5.1."""
    with dns_server(tmp_path, ("local=/example.com/", "host-record=example.com,11.0.0.9")) as server:
        with_dns(batv, server.address)
        answer = batv("doctor", "--inbound", "11.0.0.9", "--json")
    assert findings(answer, "MX") == [("ok", "example.com: example.com [11.0.0.9]")]


def test_a_dns_server_that_does_not_answer_is_no_fault_of_the_site(
    batv: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be found out is not called wrong."""
    monkeypatch.setattr("batv.cli.doctor.DNS_SECONDS", 0.2)
    with misbehaving(silent) as server:
        with_dns(batv, server.address, '[dnsbl]\nzones = ["bl.example"]\n')
        answer = batv("doctor", "--outbound", "11.0.0.1", "--json")
    assert answer.status == 0
    assert [result for result, _ in findings(answer, "MX") + findings(answer, "lists")] == ["warning", "warning"]


# Lists.


LISTS: Final = (
    "local=/example.com/",
    "host-record=example.com,11.0.0.9",
    "local=/bl.example/",
    "address=/2.0.0.127.bl.example/127.0.0.2",
    "address=/1.0.0.11.bl.example/127.0.0.2",
    "local=/dead.example/",
    "address=/everybody.example/127.0.0.2",
)


@pytest.mark.dns
@pytest.mark.parametrize(
    ("asked", "result", "said"),
    [
        (("bl.example", "11.0.0.1"), "fault", "bl.example has 11.0.0.1"),
        (("bl.example", "11.0.0.2"), "ok", "bl.example has none of 11.0.0.2"),
        (("dead.example", "11.0.0.1"), "warning", "does not list 127.0.0.2"),
        (("everybody.example", "11.0.0.1"), "warning", "lists everybody"),
    ],
)
def test_an_address_of_ours_that_is_listed_is_a_fault(
    asked: tuple[str, str], result: str, said: str, batv: Command, tmp_path: Path
) -> None:
    """Our genuine bounces are refused; a list that is dead says nothing of us."""
    with dns_server(tmp_path, LISTS) as server:
        with_dns(batv, server.address)
        answer = batv("doctor", "--inbound", "11.0.0.9", "--zone", asked[0], "--outbound", asked[1], "--json")
    assert answer.status == (1 if result == "fault" else 0)
    found = findings(answer, "lists")
    assert found[0][0] == result
    assert said in found[0][1]


@pytest.mark.dns
def test_no_list_is_asked_that_nobody_named(batv: Command, tmp_path: Path) -> None:
    """Who runs a list learns of whoever asks."""
    with dns_server(tmp_path, LISTS) as server:
        with_dns(batv, server.address)
        answer = batv("doctor", "--inbound", "11.0.0.9", "--outbound", "11.0.0.1", "--json")
        assert findings(answer, "lists")[0][0] == "left out"
        assert server.questions("2.0.0.127.bl.example") == 0


_NOON: Final = TODAY.number * 86_400 + 43_200.0


@pytest.mark.parametrize(
    ("outcome", "grade", "said"),
    [
        (None, "warning", "the loop was never probed"),
        ((Loop.WORKS, 0), "ok", f"the probe of {TODAY}: works: because"),
        ((Loop.WORKS, 3), "warning", f"the last probe was on {TODAY + -3}"),
        ((Loop.INCONCLUSIVE, 0), "warning", f"the probe of {TODAY}: inconclusive: because"),
        ((Loop.MISJUDGED, 0), "fault", f"the probe of {TODAY}: misjudged: because"),
        ((Loop.BROKEN, 9), "fault", f"the probe of {TODAY + -9}: broken: because"),
    ],
)
def test_how_the_last_probe_ended_is_told(
    batv: Command, outcome: tuple[Loop, int] | None, grade: str, said: str
) -> None:
    """A loop that is broken, and a timer that does not run, are found by whoever looks over the site."""
    probe = '[probe]\nsender = "probe+*@example.com"\nrecipient = "nobody@remote.example"\n'
    batv.config.write_text(f"{batv.config.read_text()}\n{probe}")
    (batv.folder / "var").mkdir(mode=0o700)
    if outcome is not None:
        loop, days_ago = outcome
        ended = Outcome(loop, "because", "probe+00@example.com", _NOON - days_ago * 86_400)
        ProbeStore(batv.folder / "var").end(ended)
    answer = batv("doctor", "--no-dns", "--json")
    assert findings(answer, "probe") == [(grade, said)]
    assert answer.status == (1 if grade == "fault" else 0)


def test_a_file_of_probes_that_is_damaged_is_told(batv: Command) -> None:
    """Nothing would be known of the loop, and no domain would move."""
    probe = '[probe]\nsender = "probe+*@example.com"\nrecipient = "nobody@remote.example"\n'
    batv.config.write_text(f"{batv.config.read_text()}\n{probe}")
    (batv.folder / "var").mkdir(mode=0o700)
    (batv.folder / "var/probe.json").write_text("{")
    assert [grade for grade, _ in findings(batv("doctor", "--no-dns", "--json"), "probe")] == ["fault"]
