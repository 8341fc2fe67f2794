"""`batv key`: what an administrator does with keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from batv.keyring import Role
from tests.support.command import TODAY, Answer, Command

if TYPE_CHECKING:
    from pathlib import Path

COPY: Final = (
    "batv: if other hosts share the default ring, copy it to them {}: without it they take the new tags for forged\n"
)

CANARY: Final = b"canary-of-the-unit-tests"


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `batv` on a new site with one key."""
    command = Command(tmp_path, capsys)
    assert command("key", "new").status == 0
    return command


def roles(command: Command, domain: bytes | None = None) -> dict[int, str]:
    """Return what each key may do today."""
    return {key.number: str(key.role(command.today)) for key in command.ring(domain).keys}


def test_the_first_key_signs_at_once_and_the_next_waits(batv: Command) -> None:
    """A site with a ring must sign; a second key must reach every node before it does."""
    answer = batv("key", "new")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == "key 1 made: it verifies, and signs after 'batv key activate 1'\n"
    assert roles(batv) == {0: "signing", 1: "pending"}
    key = batv.ring().keys[0]
    assert (len(key.secret.octets), key.lifetime, key.created) == (32, 7, TODAY)


def test_an_activated_key_signs_and_the_old_one_verifies_on(batv: Command) -> None:
    """No tag that is under way may die."""
    batv("key", "new")
    answer = batv("key", "activate", "1")
    assert answer.status == 0
    assert answer.out.splitlines() == [
        "key 1 signs from 2026-11-23",
        "key 0 stops signing on 2026-11-23; its tags stay good until 2026-12-02",
    ]
    assert answer.err == COPY.format("now")
    assert roles(batv) == {0: "retiring", 1: "signing"}


def test_a_rotation_gives_every_node_a_day(batv: Command) -> None:
    """Until tomorrow the old key signs, so that the ring can be copied."""
    answer = batv("key", "rotate")
    assert answer.out.splitlines() == [
        "key 1 made: it verifies now, and signs from 2026-11-24",
        "key 0 stops signing on 2026-11-24; its tags stay good until 2026-12-03",
    ]
    assert answer.err == COPY.format("before 2026-11-24")
    assert roles(batv) == {0: "signing", 1: "pending"}
    batv.today = TODAY + 1
    assert roles(batv) == {0: "retiring", 1: "signing"}
    batv.today = TODAY + 11
    assert roles(batv) == {0: "retired", 1: "signing"}


def test_a_rotation_at_once_tells_to_copy_the_ring(batv: Command) -> None:
    """Other nodes would take the new tags for forged."""
    answer = batv("key", "rotate", "--activate-in", "0", "--lifetime", "30")
    assert answer.status == 0
    assert answer.err == COPY.format("now")
    assert batv.ring().signing_key(TODAY).number == 1
    assert batv.ring().signing_key(TODAY).lifetime == 30


def test_a_new_key_has_the_lifetime_of_the_one_that_signs(batv: Command) -> None:
    """A site that chose thirty days must not fall back to seven when it rotates."""
    batv("key", "rotate", "--activate-in", "0", "--lifetime", "30")
    batv("key", "rotate")
    assert [key.lifetime for key in batv.ring().keys] == [7, 30, 30]


@pytest.mark.parametrize(
    "arguments",
    [
        ("new",),
        ("rotate",),
        ("activate", "1"),
        ("retire", "1"),
        ("revoke", "0", "--force"),
        ("prune",),
        ("import", "--number", "7", "--secret-file", "secret"),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_a_dry_run_changes_nothing_and_says_what_would_be(
    batv: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """What it says must be what the real run does."""
    monkeypatch.chdir(batv.folder)
    (batv.folder / "secret").write_bytes(CANARY)
    batv("key", "new")
    before = (batv.keys / "default.ring").read_bytes()
    dry = batv("key", *arguments, "--dry-run")
    assert (batv.keys / "default.ring").read_bytes() == before
    wet = batv("key", *arguments)
    assert wet.status == dry.status == 0
    assert dry.out.splitlines() == [f"would: {line}" for line in wet.out.splitlines()]
    # Only what was done asks for more to be done.
    assert "copy it to them" not in dry.err


def test_the_only_key_that_signs_is_retired_by_force_only(batv: Command) -> None:
    """Mail would be deferred from then on."""
    answer = batv("key", "retire", "0")
    assert answer.status == 1
    assert "mail is then answered 451" in answer.err
    assert "--force" in answer.err
    assert roles(batv) == {0: "signing"}
    answer = batv("key", "retire", "0", "--force")
    assert answer.status == 0
    assert answer.out == "key 0 signs no more; its tags stay good until 2026-12-02\n"
    assert "no key of the default ring signs today" in answer.err
    assert roles(batv) == {0: "retiring"}


def test_retiring_a_key_that_never_signed_promises_nothing_about_its_tags(batv: Command) -> None:
    """It has none; what counts is when its number can be used again."""
    batv("key", "new")
    assert batv("key", "retire", "1").out == "key 1 will not sign; its number is free after 2026-12-02\n"


def test_retiring_a_key_whose_successor_begins_later_is_refused(batv: Command) -> None:
    """Between the two days no key would sign."""
    batv("key", "rotate", "--activate-in", "3")
    assert batv("key", "retire", "0").status == 1
    answer = batv("key", "retire", "1")
    assert (answer.status, answer.out.splitlines()[1]) == (0, "key 0 goes on signing")
    assert batv.ring().signing_key(TODAY + 5).number == 0


def test_revoking_says_what_it_costs_and_warns(batv: Command) -> None:
    """It must work in an emergency without a question, and hide nothing."""
    answer = batv("key", "revoke", "0", "--force")
    assert answer.status == 0
    assert "bounces of mail that it signed count as forged from now on" in answer.out
    assert "no key of the default ring signs today, and mail is then answered 451" in answer.err
    assert "other hosts share the default ring, they go on accepting key 0 until they have the ring" in answer.err
    assert roles(batv) == {0: "revoked"}
    assert batv("key", "revoke", "0").status == 1
    assert batv("key", "new").out == "key 1 made: it signs from today\n"


@pytest.mark.parametrize("domain", [None, "example.com"])
@pytest.mark.parametrize("pending", [False, True])
def test_the_only_key_that_signs_is_revoked_with_another_in_its_place_or_by_force(
    batv: Command, domain: str | None, *, pending: bool
) -> None:
    """All mail would be deferred; the line has the two commands to type, whichever ring it is."""
    options = [] if domain is None else ["--domain", domain]
    if domain is not None:
        batv("key", "new", *options)
    if pending:
        batv("key", "new", *options)
    option = "".join(f" {word}" for word in options)
    first = f"batv key activate 1{option}" if pending else f"batv key rotate --activate-in 0{option}"
    ring = "the default ring" if domain is None else f"the ring of {domain}"
    answer = batv("key", "revoke", "0", *options)
    assert (answer.status, answer.out) == (1, "")
    assert answer.err == (
        f"batv: without key 0 no key of {ring} signs today, and mail is then answered 451:"
        f" first run '{first}', then 'batv key revoke 0{option}'; or say --force\n"
    )
    assert batv(*first.split()[1:]).status == 0
    assert batv("key", "revoke", "0", *options).status == 0
    assert roles(batv, domain.encode() if domain is not None else None) == {0: "revoked", 1: "signing"}


def test_messages_about_the_ring_of_a_domain_name_it(batv: Command) -> None:
    """The same command without --domain would change another ring."""
    batv("key", "new", "--domain", "example.com")
    batv("key", "revoke", "0", "--domain", "example.com", "--force")
    remedy = "make one with 'batv key new --domain example.com' or let one sign with 'batv key activate N --domain"
    for command in (("sign", "joe@example.com"), ("key", "list"), ("key", "prune", "--domain", "example.com")):
        said = batv(*command).err
        assert "no key of the ring of example.com signs" in said, command
        assert remedy in said, command
    for words in (("activate", "7"), ("export", "7", "--exim"), ("retire", "7")):
        said = batv("key", *words, "--domain", "example.com").err
        assert said == (
            "batv: there is no key 7 in the ring of example.com: see 'batv key list --domain example.com'\n"
        ), words


def test_pruning_removes_what_is_spent_and_says_what_is_kept(batv: Command) -> None:
    """A key leaves only when no tag of it is alive."""
    batv("key", "rotate")
    answer = batv("key", "prune")
    assert answer.out.splitlines() == [
        "key 0 kept until 2026-12-03 (signing)",
        "key 1 kept for as long as it may sign (pending)",
    ]
    batv.today = TODAY + 10
    answer = batv("key", "prune", "--number", "0")
    assert answer.status == 1
    assert "prune it on 2026-12-04 or later" in answer.err
    batv.today = TODAY + 11
    assert batv("key", "prune").out.splitlines() == [
        "key 0 removed",
        "key 1 kept for as long as it may sign (signing)",
    ]
    assert roles(batv) == {1: "signing"}


def test_the_list_names_every_key_of_every_ring(batv: Command) -> None:
    """One look must tell what signs, and until when the others are needed."""
    batv("key", "rotate")
    batv("key", "new", "--domain", "example.com")
    answer = batv("key", "list")
    assert answer.status == 0
    rows = [line.split() for line in answer.out.splitlines()[2:]]
    assert rows == [
        ["(default)", "0", "signing", "2026-11-23", "2026-11-24", "2026-12-03", "7", "0"],
        ["(default)", "1", "pending", "2026-11-24", "-", "-", "7", "-"],
        ["example.com", "0", "signing", "2026-11-23", "-", "-", "7", "0"],
    ]
    only = batv("key", "list", "--domain", "example.com", "--json").fields
    assert [ring["domain"] for ring in only["rings"]] == ["example.com"]
    assert only["rings"][0]["keys"][0]["role"] == "signing"
    assert [ring["domain"] for ring in batv("key", "list", "--json").fields["rings"]] == [None, "example.com"]


def test_the_list_warns_of_a_key_that_has_signed_for_long(batv: Command) -> None:
    """Nobody counts the days."""
    batv.today = TODAY + 300
    assert batv("key", "list").err == ""
    batv.today = TODAY + 301
    said = "key 0 of the default ring has signed for 301 days: change it with 'batv key rotate'"
    assert said in batv("key", "list").err


def test_the_list_warns_where_no_key_signs(batv: Command) -> None:
    """Mail is being deferred."""
    batv("key", "revoke", "0", "--force")
    assert "no key of the default ring signs today" in batv("key", "list").err


def test_a_domain_gets_a_ring_of_its_own(batv: Command) -> None:
    """Its keys must not touch those of the default ring."""
    answer = batv("key", "new", "--domain", "EXAMPLE.com")
    assert answer.out == "key 0 made: it signs from today\n"
    assert "copy it to them now" in answer.err
    batv("key", "rotate", "--domain", "example.com")
    assert roles(batv, b"example.com") == {0: "signing", 1: "pending"}
    assert roles(batv) == {0: "signing"}


def test_a_ring_for_a_domain_that_is_not_configured_is_refused(batv: Command) -> None:
    """A typing error would make a ring that nothing uses."""
    answer = batv("key", "new", "--domain", "exmaple.com")
    assert answer.status == 78
    assert answer.err == (
        f'batv: exmaple.com is not a domain of the configuration: add [domains."exmaple.com"] to {batv.config}\n'
    )


def test_changing_a_ring_that_is_not_there_says_to_make_it(batv: Command) -> None:
    """`key rotate --domain` must not begin a ring by accident."""
    answer = batv("key", "rotate", "--domain", "example.com")
    assert answer.status == 74
    assert "make one with 'batv key new --domain example.com'" in answer.err


def _imported(command: Command, octets: bytes, *arguments: str) -> Answer:
    path = command.folder / "secret"
    path.write_bytes(octets)
    return command("key", "import", "--secret-file", str(path), *arguments)


def test_a_secret_is_taken_in_octet_for_octet_but_for_one_newline(batv: Command) -> None:
    """Exim and batv-tools must come to the same tags."""
    answer = _imported(batv, CANARY + b"\n\n", "--number", "7")
    assert answer.status == 0
    assert answer.out == "key 7 taken in: it verifies, and signs after 'batv key activate 7'\n"
    assert 'set [tags] case = "exact"' in answer.err
    key = batv.ring().key(7)
    assert key is not None
    assert key.secret.octets == CANARY + b"\n"


def test_an_imported_key_signs_at_once_where_none_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A site that changes over from Exim goes on with the key it has."""
    command = Command(tmp_path, capsys)
    assert _imported(command, CANARY, "--number", "3").out == "key 3 taken in: it signs from today\n"
    assert command.ring().signing_key(TODAY).number == 3


def test_an_imported_key_fills_the_days_until_a_planned_one_signs(batv: Command) -> None:
    """Neither may two keys sign on one day, nor may the plan be lost."""
    batv("key", "rotate", "--activate-in", "3")
    batv("key", "revoke", "0", "--force")
    answer = _imported(batv, CANARY, "--number", "5")
    assert answer.out == "key 5 taken in: it signs from today until 2026-11-26, when another key begins\n"
    assert [batv.ring().signing_key(TODAY + days).number for days in (0, 2, 3)] == [5, 5, 1]


def test_a_carriage_return_at_the_end_of_a_secret_is_pointed_out(batv: Command) -> None:
    """It counts, nobody sees it, and the other side may not have it."""
    assert "ends with a carriage return" in _imported(batv, CANARY + b"\r\n", "--number", "7").err


def test_a_planned_key_that_another_takes_the_place_of_is_named(batv: Command) -> None:
    """Whoever planned it must learn that it will not sign."""
    batv("key", "rotate", "--activate-in", "3")
    assert batv("key", "rotate").out.splitlines()[2:] == [
        "key 1 is no longer set to sign from 2026-11-26; it goes on verifying"
    ]
    assert roles(batv) == {0: "signing", 1: "pending", 2: "pending"}


def test_a_ring_from_which_all_keys_are_gone_is_listed_as_empty(batv: Command) -> None:
    """It must not look as if there were no such ring."""
    batv("key", "retire", "0", "--force")
    batv.today = TODAY + 10
    batv("key", "prune")
    answer = batv("key", "list")
    assert "no key" in answer.out
    assert "no key of the default ring signs today" in answer.err


def test_a_weak_secret_is_taken_only_if_that_is_said(batv: Command) -> None:
    """One harvested tag lets a short secret be guessed offline."""
    answer = _imported(batv, b"x" * 15, "--number", "3")
    assert answer.status == 1
    assert "15 octets" in answer.err
    assert "--allow-weak" in answer.err
    assert _imported(batv, b"x" * 15, "--number", "3", "--allow-weak").status == 0
    assert "weak" in batv("key", "list").out
    assert _imported(batv, b"x" * 16, "--number", "4").status == 0


@pytest.mark.parametrize("octets", [b"", b"\n", b"x" * 1025, b"x" * 2000])
def test_a_file_that_holds_no_secret_is_refused(batv: Command, octets: bytes) -> None:
    """The wrong file must not become a key."""
    assert _imported(batv, octets, "--number", "3").status in {65, 77}
    assert roles(batv) == {0: "signing"}


def test_a_number_in_use_is_not_taken_again(batv: Command) -> None:
    """Tags made with the old key would die."""
    answer = _imported(batv, CANARY, "--number", "0")
    assert answer.status == 1
    assert "key number 0 is in use" in answer.err
    assert batv.ring().keys[0].secret.octets != CANARY


def test_an_exported_secret_is_the_one_that_was_taken_in(batv: Command) -> None:
    """It must come out octet for octet, into a file that only its owner reads and that was not there."""
    _imported(batv, CANARY, "--number", "7")
    out = batv.folder / "out"
    answer = batv("key", "export", "7", "--out", str(out))
    assert (answer.status, answer.out) == (0, f"secret of key 7 written to {out}\n")
    assert out.read_bytes() == CANARY
    assert out.stat().st_mode & 0o777 == 0o600
    assert batv("key", "export", "7", "--out", str(out)).status == 73
    assert batv("key", "export", "7", "--out", "-").out == CANARY.decode()
    assert batv("key", "export", "6", "--out", "-").status == 1


def test_export_checks_what_exim_can_share(batv: Command) -> None:
    """Exim would cut a secret at its first NUL, and no bounce would fit."""
    answer = batv("key", "export", "0", "--exim")
    octets = batv.ring().keys[0].secret.octets
    if any(octet < 32 or octet == 127 for octet in octets):
        assert answer.status == 1
        assert "batv key new --printable" in answer.err
    _imported(batv, b"x" * 65, "--number", "6")
    assert batv("key", "export", "6", "--exim").status == 1
    _imported(batv, b"tab\tin the middle of it", "--number", "5")
    assert batv("key", "export", "5", "--exim").status == 1
    batv("key", "new", "--printable", "--lifetime", "30")
    new = max(batv.ring().keys, key=lambda key: key.lifetime)
    batv("key", "rotate", "--printable", "--lifetime", "31")
    assert max(batv.ring().keys, key=lambda key: key.lifetime).secret.octets.isascii()
    answer = batv("key", "export", str(new.number), "--exim", "--out", str(batv.folder / "exim"))
    assert answer.status == 0
    assert f"${{prvs{{ADDRESS}}{{${{readfile{{{batv.folder}/exim}}}}}}{{{new.number}}}}}" in answer.out
    assert "Exim's tags are good for 7 days" in answer.err
    assert 16 <= len(new.secret.octets) <= 64
    assert new.secret.octets.isascii()


def test_sealing_and_unsealing_by_command(batv: Command) -> None:
    """The setting and the rings must fit each other, and the messages lead from one to the other."""
    master = batv.folder / "master.key"
    master.write_bytes(bytes(range(32)))
    master.chmod(0o600)
    assert batv("key", "seal").status == 78
    plain = batv.config.read_text()
    batv.config.write_text(f'[keys]\nmaster_key_file = "master.key"\n{plain}')
    refused = batv("key", "list")
    assert (refused.status, refused.err.count("run 'batv key seal'")) == (65, 1)
    assert batv("key", "seal").out == f"{batv.keys}/default.ring sealed\n"
    assert batv("key", "seal").out == "every ring is sealed already\n"
    assert batv("key", "rotate").status == 0
    assert b"secret" not in (batv.keys / "default.ring").read_bytes()
    assert batv("key", "unseal", "--json").fields == {"dry_run": False, "unsealed": [f"{batv.keys}/default.ring"]}
    batv.config.write_text(plain)
    assert roles(batv) == {0: "signing", 1: "pending"}


def test_no_command_shows_a_secret_unasked(batv: Command) -> None:
    """Output goes to terminals, logs and tickets."""
    _imported(batv, CANARY, "--number", "7")
    commands = [
        ("list",),
        ("list", "--json"),
        ("activate", "7"),
        ("rotate", "--json"),
        ("export", "7", "--exim"),
        ("export", "7", "--exim", "--json"),
        ("retire", "7", "--dry-run", "--force"),
        ("revoke", "7", "--json"),
        ("prune",),
        ("import", "--number", "7", "--secret-file", str(batv.folder / "secret")),
        ("import", "--number", "6", "--secret-file", str(batv.folder / "secret"), "--json"),
    ]
    for command in commands:
        answer = batv("key", *command)
        said = answer.out + answer.err
        for form in (CANARY.decode(), CANARY.hex()):
            assert form not in said, command
    assert CANARY.decode() not in repr(batv.ring())


@pytest.mark.parametrize(
    "arguments",
    [("new",), ("rotate",), ("activate", "1"), ("retire", "1"), ("revoke", "1"), ("prune",), ("list",)],
    ids=lambda arguments: str(arguments[0]),
)
def test_every_command_speaks_json(batv: Command, arguments: tuple[str, ...]) -> None:
    """Scripts read the result, and nothing else is on standard output."""
    batv("key", "new")
    answer = batv("key", *arguments, "--json")
    assert answer.status == 0
    fields = json.loads(answer.out)
    if arguments != ("list",):
        assert fields["dry_run"] is False
        assert fields["done"]
        assert {key["number"] for key in fields["keys"]} >= {0, 1}
        assert {key["role"] for key in fields["keys"]} <= {str(role) for role in Role}
