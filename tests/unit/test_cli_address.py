"""`batv sign`, `verify`, `strip` and `explain`: one address at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.command import TODAY, Command

if TYPE_CHECKING:
    from pathlib import Path

LONG = "x" * 49


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `batv` on a site whose key 0 has the secret of the known answer."""
    command = Command(tmp_path, capsys)
    (tmp_path / "secret").write_text("secret")
    answer = command("key", "import", "--number", "0", "--secret-file", str(tmp_path / "secret"), "--allow-weak")
    assert answer.status == 0
    return command


def test_an_address_is_signed_to_the_known_answer(batv: Command) -> None:
    """Exim and batv-tools come to the same: key 0, secret `secret`, user@example.com."""
    # The day 21000 has the stamp 000, so that seven days later is 007.
    batv.config.write_text(batv.config.read_text())
    answer = batv("sign", "user@example.com", "--day", "2027-07-01")
    assert (answer.status, answer.out, answer.err) == (0, "prvs=000721afe1=user@example.com\n", "")
    fields = batv("sign", "user@example.com", "--day", "2027-07-01", "--json").fields
    assert fields == {
        "address": "user@example.com",
        "signed": "prvs=000721afe1=user@example.com",
        "key": 0,
        "day": "2027-07-01",
    }


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("joe@foreign.example", "foreign.example is not a domain of ours"),
        ("joe@hosted.example", "hosted.example is not a domain of ours"),
        (f"{LONG}@example.com", "local part too long for a tag"),
        ("prvs=0787aaaaaa=joe@example.com", "carries a tag already"),
        ("a%b@example.com", "local part with a routing character"),
        ("SRS0=HHH=TT=peer.example=joe@lists.example", "leave_forms has srs"),
    ],
)
def test_an_address_that_stays_unsigned_gives_its_reason_and_no_output(
    batv: Command, address: str, reason: str
) -> None:
    """A script that takes the output for the signed address must find none."""
    for arguments in (("sign", address), ("sign", address, "--json")):
        answer = batv(*arguments)
        assert (answer.status, answer.out, answer.err) == (1, "", f"batv: {address} stays unsigned: {reason}\n")


def test_without_a_key_that_signs_nothing_is_signed(batv: Command) -> None:
    """The reason is the same that mail is deferred for."""
    batv("key", "revoke", "0", "--force")
    answer = batv("sign", "joe@example.com")
    assert (answer.status, answer.out) == (1, "")
    assert answer.err.startswith("batv: no key of the default ring signs on 2026-11-23: ")


def test_a_day_before_the_first_key_is_told_with_the_day_of_the_first(batv: Command) -> None:
    """A new key would not help."""
    answer = batv("sign", "joe@example.com", "--day", "2020-01-01")
    assert (answer.status, answer.out) == (1, "")
    assert answer.err == (
        "batv: no key of the default ring signs on 2020-01-01: one that is made now would not either, name 2026-11-23,"
        " or a later day\n"
    )


@pytest.mark.parametrize("local", ["joe", '"a b"', "JOE", "=x", "prvs=x", "jörg", "a..b"])
@pytest.mark.parametrize("placement", ["prefix", "subaddress"])
def test_what_is_signed_verifies_and_strips_to_what_it_was(batv: Command, local: str, placement: str) -> None:
    """Octet for octet, for every kind of local part."""
    batv.config.write_text(f'[tags]\nplacement = "{placement}"\n{batv.config.read_text()}')
    address = f"{local}@example.com"
    signed = batv("sign", address).out.rstrip("\n")
    assert signed != address
    found = batv("verify", signed)
    assert found.status == 0
    assert found.out.split()[0] == "valid"
    assert batv("strip", signed).out == f"{address}\n"


def test_the_first_word_of_verify_is_the_verdict(batv: Command) -> None:
    """Scripts read that word and the exit status."""
    signed = batv("sign", "joe@example.com").out.strip()
    tag = signed.split("=")[1]
    cases = {
        "valid": signed,
        "untagged": "joe@example.com",
        "malformed": "prvs=xyz=joe@example.com",
        "unknown-key": signed.replace("prvs=0", "prvs=4"),
        "bad-signature": signed.replace("joe", "ann"),
        "foreign": signed.replace("example.com", "foreign.example"),
    }
    for verdict, address in cases.items():
        answer = batv("verify", address)
        assert answer.out.split()[0] == verdict
        assert answer.status == (0 if verdict == "valid" else 1)
        fields = batv("verify", address, "--json").fields
        assert fields["verdict"] == verdict
    assert tag in signed


def test_a_tag_is_good_from_the_day_before_through_its_lifetime(batv: Command) -> None:
    """And on no other day, a cycle of a thousand days later neither."""
    signed = batv("sign", "joe@example.com").out.strip()
    for days, verdict in (
        (-2, "expired"),
        (-1, "valid"),
        (7, "valid"),
        (8, "expired"),
        (1000, "valid"),
        (993, "expired"),
    ):
        answer = batv("verify", signed, "--day", str(TODAY + days))
        assert answer.out.split()[0] == verdict
    assert batv("verify", signed).out == "valid joe@example.com: tag good, key 0, good until 2026-11-30\n"
    fields = batv("verify", signed, "--json").fields
    assert (fields["days_left"], fields["key"], fields["case"]) == (7, 0, "fold")


def test_strip_takes_a_tag_off_whatever_it_is_worth(batv: Command) -> None:
    """It asks for no key and no settings."""
    batv.config.unlink()
    assert batv("strip", "prvs=9999ffffff=joe@foreign.example").out == "joe@foreign.example\n"
    assert batv("strip", "prvs=1234abcdef=prvs=1234abcdef=joe@a.example").out == "prvs=1234abcdef=joe@a.example\n"
    assert batv("strip", "joe@a.example", "--json").fields == {"address": "joe@a.example", "stripped": "joe@a.example"}


def test_explain_names_the_tag_the_key_and_the_rule(batv: Command) -> None:
    """A postmaster wants to know why one bounce was taken for forged."""
    signed = batv("sign", "joe@lists.example").out.strip()
    said = batv("explain", signed).out
    for line in (
        "stamp of today: 780",
        "placement:      prefix",
        "without tag:    joe@lists.example",
        "key:            signing in the default ring, lifetime 7 days",
        "stamp:          787",
        "stamp is day:   2026-11-30",
        "days left:      7",
        "verdict:        valid",
        "goes on to:     <joe@lists.example>",
        "mail from it:   unsigned: carries a tag already",
    ):
        assert line in said.splitlines()
    fields = batv("explain", signed.replace("joe", "ann"), "--json").fields
    assert fields["verdict"] == "bad-signature"
    assert fields["a_bounce_to_it"] == "reject"
    assert fields["goes_on_to"] is None
    assert fields["rule"] == '[domains."lists.example"] on_forged = "reject"'


@pytest.mark.parametrize(
    ("address", "disposition", "rule"),
    [
        ("joe@example.com", "discard", '[domains."example.com"] on_forged = "discard"'),
        ("SRS0=HHH=TT=peer.example=joe@lists.example", "pass", '[domains."lists.example"] leave_forms'),
        ("joe@hosted.example", "pass", "[inbound] relay_domains"),
        ("joe@foreign.example", "reject", 'there is no [domains."foreign.example"]'),
        (f"{LONG}@example.com", "pass", '[tags] on_too_long = "remember": local part too long for a tag; and [ledger]'),
        ("a%b@example.com", "reject", "routing character in the local part"),
    ],
)
def test_explain_names_the_setting_that_decides(batv: Command, address: str, disposition: str, rule: str) -> None:
    """The line names what to change."""
    fields = batv("explain", address, "--json").fields
    assert fields["a_bounce_to_it"] == disposition
    assert fields["rule"].startswith(rule)


def test_explain_says_when_mail_is_deferred(batv: Command) -> None:
    """Nothing else would tell why mail waits."""
    batv("key", "revoke", "0", "--force")
    assert (
        "mail from it:   answered 451: no key of the default ring signs on 2026-11-23"
        in batv("explain", "joe@example.com").out
    )


def test_an_own_ring_and_the_default_ring_are_both_explained(batv: Command) -> None:
    """For some days after an own ring was begun, both count."""
    signed = batv("sign", "joe@example.com").out.strip()
    batv("key", "new", "--domain", "example.com")
    assert batv("verify", signed).out.split()[0] == "valid"
    key = batv("explain", signed, "--json").fields["key"]
    assert "in the own ring" in key
    assert "in the default ring" in key
    batv.today = TODAY + 9
    assert batv("verify", signed, "--day", str(TODAY + 9)).out.split()[0] == "bad-signature"


SCOPE = """
[domains."*.example.com"]
on_expired = "mark"
scheme = "strong"
accept_draft_until = 2026-11-24
[[exemptions]]
reason = "programs"
senders = ["robot-*@"]
[[exemptions]]
reason = "lists"
recipients = ["*.lists.example"]
"""


def test_explain_follows_exemptions_wildcards_and_schemes(batv: Command) -> None:
    """It asks the same stages as mail does, and names the table that decides."""
    batv.config.write_text(batv.config.read_text() + SCOPE)
    below = batv("sign", "joe@a.example.com").out.strip()
    assert below.startswith("prvs2=0787")
    fields = batv("explain", below, "--json").fields
    assert (fields["verdict"], fields["goes_on_to"]) == ("valid", "<joe@a.example.com>")
    late = batv("explain", below, "--day", str(TODAY + 9), "--json").fields
    assert (late["a_bounce_to_it"], late["rule"]) == ("mark", '[domains."*.example.com"] on_expired = "mark"')
    draft = batv("sign", "joe@example.com").out.strip()
    assert batv("verify", draft, "--day", str(TODAY + 3)).status == 0
    robot = batv("explain", "robot-7@example.com", "--json").fields
    assert (robot["verdict"], robot["a_bounce_to_it"], robot["rule"]) == ("not-judged", "pass", "exempt: programs")
    assert robot["mail_from_it"] == "unsigned: exempt: programs"
    answer = batv("sign", "robot-7@example.com")
    assert answer.err == "batv: robot-7@example.com stays unsigned: exempt: programs\n"
    postmaster = batv("explain", "postmaster@example.com", "--json").fields
    assert postmaster["rule"] == '[domains."example.com"] exempt_recipients'
    assert postmaster["mail_from_it"].endswith("; unsigned to recipients that are exempt")


def test_verify_ends_the_tags_of_the_draft_on_their_day(batv: Command) -> None:
    """As the inbound proxy does."""
    text = batv.config.read_text()
    batv.config.write_text(text + '[domains."a.example.com"]\n')
    draft = batv("sign", "joe@a.example.com").out.strip()
    batv.config.write_text(text + SCOPE)
    assert batv("verify", draft, "--day", str(TODAY + 1)).status == 0
    answer = batv("verify", draft, "--day", str(TODAY + 2))
    assert answer.out.startswith("expired joe@a.example.com: tags of the draft's scheme are accepted until 2026-11-24")


def test_explain_says_that_an_address_too_long_for_a_tag_is_refused(batv: Command) -> None:
    """Where the site wants it; a bounce to it is forged then."""
    batv.config.write_text(batv.config.read_text() + '[tags]\non_too_long = "refuse"\n')
    fields = batv("explain", f"{LONG}@example.com", "--json").fields
    assert fields["mail_from_it"] == "answered 550: local part too long for a tag"
    assert (fields["verdict"], fields["a_bounce_to_it"]) == ("untagged", "discard")


def test_explain_says_that_replies_pass_where_the_site_rescues_them(batv: Command) -> None:
    """The address alone does not decide then."""
    text = '[ledger]\nenabled = true\n[domains."rescue.example"]\nrescue = true\n'
    batv.config.write_text(batv.config.read_text() + text)
    fields = batv("explain", "joe@rescue.example", "--json").fields
    rule = '[domains."rescue.example"] on_forged = "discard"; but rescue = true, and what answers mail from it passes'
    assert (fields["a_bounce_to_it"], fields["rule"]) == ("discard", rule)
    tagged = batv("explain", "prvs=0123abcdef=joe@rescue.example", "--json").fields
    assert tagged["rule"] == '[domains."rescue.example"] on_forged = "discard"'


def test_explain_says_how_far_a_domain_has_been_switched_on(batv: Command) -> None:
    """What a bounce gets today, and not what it will get in the end."""
    batv.config.write_text(batv.config.read_text() + '[domains."new.example"]\nrollout = "auto"\n')
    (batv.folder / "var").mkdir(exist_ok=True)
    rule = '[domains."new.example"] on_forged = "discard"'
    fields = batv("explain", "joe@new.example", "--json").fields
    assert (fields["a_bounce_to_it"], fields["goes_on_to"]) == ("pass", "<joe@new.example>")
    assert fields["rule"] == f'{rule}; but rollout = "auto", which is at observe'
    for phase in ("mark", "quarantine"):
        assert batv("rollout", "advance").status == 0
        fields = batv("explain", "joe@new.example", "--json").fields
        assert fields["a_bounce_to_it"] == phase
        assert fields["rule"] == f'{rule}; but rollout = "auto", which is at {phase}'
    assert batv("rollout", "advance").status == 0
    fields = batv("explain", "joe@new.example", "--json").fields
    assert (fields["a_bounce_to_it"], fields["rule"]) == ("discard", rule)


def test_a_domain_below_a_wildcard_may_have_a_ring_of_its_own(batv: Command) -> None:
    """Every command finds it, as the service does."""
    batv.config.write_text(batv.config.read_text() + '[domains."*.example.com"]\n')
    assert batv("key", "new", "--domain", "a.example.com").status == 0
    assert batv("key", "new", "--domain", "elsewhere.example").status == 78
    own = batv("sign", "joe@a.example.com").out.strip()
    assert batv("verify", own).out.split()[0] == "valid"
    assert "in the own ring" in batv("explain", own, "--json").fields["key"]
    assert (
        "in the own ring" not in batv("explain", batv("sign", "joe@b.example.com").out.strip(), "--json").fields["key"]
    )
    assert batv("config", "check", "--json").fields["warnings"] == []
