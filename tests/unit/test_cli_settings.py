"""`batv init` and `batv config`: the configuration file."""

from __future__ import annotations

import os
import shutil
import tomllib
from typing import TYPE_CHECKING

import pytest

from batv.cli import Site, run
from batv.config import ARRAYS, SECTIONS, parse
from tests.support.certificates import Authority
from tests.support.command import TODAY, Answer, Command, process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `batv` on a site."""
    return Command(tmp_path, capsys)


def _init(batv: Command, *arguments: str) -> Answer:
    """Run `batv init`, which asks for no configuration file."""
    batv.capture.readouterr()
    status = run(["init", *arguments], Site(today=lambda: TODAY))
    said = batv.capture.readouterr()
    return Answer(status, said.out, said.err)


def test_init_makes_a_site_that_signs_at_once(tmp_path: Path) -> None:
    """From a clone, one command must lead to a site that works."""
    folder = tmp_path / "site"
    answer = process("init", "--dir", str(folder), "--domain", "example.com", "--domain", "B.example", folder=tmp_path)
    assert (answer.status, answer.err) == (0, "")
    assert process("config", "check", folder=folder).status == 0
    assert process("sign", "joe@b.example", folder=folder).status == 0
    assert (folder / "keys").stat().st_mode & 0o777 == 0o700
    assert (folder / "keys" / "default.ring").stat().st_mode & 0o777 == 0o600


def test_init_marks_forged_bounces_and_names_the_day_from_which_to_discard(batv: Command) -> None:
    """Mail sent before today carries no tag: discarding at once would lose its bounces."""
    folder = batv.folder / "site"
    answer = _init(batv, "--dir", str(folder), "--domain", "example.com", "--json")
    assert answer.fields == {
        "config": str(folder / "batv.toml"),
        "ring": str(folder / "keys" / "default.ring"),
        "ring_made": True,
        "keys_closed": False,
        "discard_safe_from": "2026-12-01",
    }
    text = (folder / "batv.toml").read_text()
    assert '# "discard" is safe from 2026-12-01 on.' in text.splitlines()
    assert tomllib.loads(text)["domains"] == {"example.com": {"on_forged": "mark", "on_expired": "quarantine"}}


def test_init_writes_what_forged_bounces_shall_get(batv: Command) -> None:
    """A site without mail under way may discard from the start."""
    folder = batv.folder / "site"
    assert _init(batv, "--dir", str(folder), "--domain", "xn--a.example", "--on-forged", "discard").status == 0
    settings = parse((folder / "batv.toml").read_text(), "batv.toml", str(folder))
    assert str(settings.domains["xn--a.example"].on_forged) == "discard"


def test_init_overwrites_nothing(batv: Command) -> None:
    """A second call must not cost the settings or the keys."""
    folder = batv.folder / "site"
    arguments = ("--dir", str(folder), "--domain", "example.com")
    _init(batv, *arguments)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = _init(batv, *arguments)
    assert answer.status == 73
    assert "exists already" in answer.err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_init_finishes_what_was_cut_short(batv: Command) -> None:
    """A ring that is there is kept, and the settings are written."""
    folder = batv.folder / "site"
    arguments = ("--dir", str(folder), "--domain", "example.com")
    _init(batv, *arguments)
    (folder / "batv.toml").unlink()
    before = (folder / "keys" / "default.ring").read_bytes()
    answer = _init(batv, *arguments)
    assert answer.status == 0
    assert "kept as it was" in answer.out
    assert (folder / "keys" / "default.ring").read_bytes() == before


@pytest.mark.parametrize("domain", ["", "a b", "-a.example", "a..example", "a.example.", "a\nb", 'a"]\nx = 1\n["'])
def test_init_refuses_what_is_no_domain(batv: Command, domain: str) -> None:
    """Nothing that comes as a domain may write settings of its own."""
    answer = _init(batv, "--dir", str(batv.folder / "site"), "--domain", domain)
    assert answer.status == 2
    assert "is no domain name" in answer.err
    assert not (batv.folder / "site").exists()


def test_check_tells_every_error_at_once(batv: Command) -> None:
    """Each line names file, line and key, and the status is that of a wrong configuration."""
    batv.config.write_text('[smtp]\nmax_recipients = 1\ncolour = "red"\n[domains."example.com"]\non_forged = "lose"\n')
    answer = batv("config", "check")
    assert (answer.status, answer.out) == (78, "")
    lines = answer.err.splitlines()
    assert len(lines) == 3
    for number, key in ((2, "smtp.max_recipients"), (3, "smtp.colour"), (5, 'domains."example.com".on_forged')):
        assert any(line.startswith(f"batv: {batv.config}:{number}: {key}: ") for line in lines)
    answer = batv("config", "check", "--json")
    assert (answer.status, answer.err) == (78, "")
    assert len(answer.fields["errors"]) == 3


def test_init_closes_a_folder_of_keys_that_others_may_read(batv: Command) -> None:
    """A checkout has one, with the mode that git gives it."""
    keys = batv.folder / "site/keys"
    keys.mkdir(parents=True)
    keys.chmod(0o755)
    answer = _init(batv, "--dir", str(keys.parent), "--domain", "example.com")
    assert answer.status == 0
    assert f"{keys} closed to other users: mode 0700" in answer.out.splitlines()
    assert keys.stat().st_mode & 0o777 == 0o700


def test_init_refuses_a_folder_of_keys_that_others_may_write(batv: Command) -> None:
    """They may have put a ring there."""
    keys = batv.folder / "site/keys"
    keys.mkdir(parents=True)
    keys.chmod(0o777)
    answer = _init(batv, "--dir", str(keys.parent), "--domain", "example.com")
    assert answer.status == 77
    assert answer.err.endswith(f"writable by other users: run chmod 700 {keys}\n")
    assert not (keys.parent / "batv.toml").exists()


def test_a_quiet_init_says_nothing(batv: Command) -> None:
    """A script has words of its own."""
    answer = _init(batv, "--dir", str(batv.folder / "site"), "--domain", "example.com", "--quiet")
    assert answer == Answer(0, "", "")


def test_check_says_that_all_is_well(batv: Command) -> None:
    """No news could also mean that no file was read. Nothing is made on the way."""
    batv("key", "new")
    assert batv("config", "check").out == f"{batv.config} has no errors: 2 domains, outbound and inbound proxy\n"
    answer = batv("config", "check", "--json")
    assert (answer.status, answer.fields) == (0, {"config": str(batv.config), "errors": [], "warnings": []})
    assert not (batv.folder / "var").exists()


def _open_ring(batv: Command) -> None:
    (batv.keys / "default.ring").chmod(0o644)


def _no_keys(batv: Command) -> None:
    shutil.rmtree(batv.keys)


def _add(text: str) -> Callable[[Command], None]:
    def add(batv: Command) -> None:
        batv.config.write_text(batv.config.read_text() + text)

    return add


def _no_proxies(batv: Command) -> None:
    batv.config.write_text('[domains."example.com"]\n')


def _file_as_state(batv: Command) -> None:
    (batv.folder / "var").touch()


def test_check_says_that_there_is_no_key_yet(batv: Command) -> None:
    """The settings are none the worse for it; on a new site the key is the next thing to make."""
    batv("key", "new")
    _no_keys(batv)
    answer = batv("config", "check")
    assert answer.status == 0
    assert "there is no key ring for example.com, and the service does not start: make one with" in answer.err


@pytest.mark.parametrize(
    ("spoil", "status", "said"),
    [
        (_open_ring, 77, "default.ring has mode 0644, open to other users: run chmod 600"),
        (lambda batv: batv.keys.chmod(0o777), 77, "writable by other users: run chmod 700"),
        (lambda batv: os.truncate(batv.keys / "default.ring", 50), 65, "is damaged or cut short: restore it"),
        (_add('[keys]\nmaster_key_file = "master.key"\n'), 78, "keys.master_key_file: there is no file"),
        (_no_proxies, 78, "there is neither an [outbound] nor an [inbound] section: add one with listen and next_hop"),
        (_file_as_state, 73, "var is no folder: move it away, or set state.directory"),
    ],
)
def test_check_finds_what_would_keep_the_service_from_starting(
    batv: Command, spoil: Callable[[Command], None], status: int, said: str
) -> None:
    """Whoever checks before a restart must not learn it from the restart."""
    batv("key", "new")
    spoil(batv)
    answer = batv("config", "check")
    assert (answer.status, answer.out) == (status, "")
    assert all(line.startswith("batv: ") for line in answer.err.splitlines())
    assert said in answer.err
    answer = batv("config", "check", "--json")
    assert (answer.status, answer.err) == (status, "")
    assert any(said in line for line in answer.fields["errors"])


def test_check_finds_everything_at_once(batv: Command) -> None:
    """Each look costs a round; the status is that of a wrong configuration where the errors differ."""
    batv("key", "new")
    batv("key", "new", "--domain", "example.com")
    _open_ring(batv)
    os.truncate(batv.keys / "example.com.ring", 50)
    _file_as_state(batv)
    answer = batv("config", "check")
    assert (answer.status, len(answer.err.splitlines())) == (78, 3)
    assert "make a new ring with 'batv key new --domain example.com'" in answer.err


def test_check_warns_where_no_key_signs(batv: Command) -> None:
    """The service starts, and answers every message with 451."""
    batv("key", "new", "--domain", "lists.example")
    batv("key", "new")
    batv("key", "revoke", "0", "--force", "--domain", "lists.example")
    answer = batv("config", "check")
    assert answer.status == 0
    assert "has no errors" in answer.out
    assert answer.err == (
        "batv: warning: no key of the ring of lists.example signs on 2026-11-23, and mail is answered 451: make one"
        " with 'batv key new --domain lists.example' or let one sign with 'batv key activate N --domain"
        " lists.example'\n"
    )


@pytest.mark.parametrize(
    ("listen", "clients", "warned"),
    [
        ("0.0.0.0:10025", '"0.0.0.0/0"', True),
        ("[::]:10025", '"192.0.2.0/24", "::/0"', True),
        ("mail.example.com:10025", '"0.0.0.0/1", "128.0.0.0/1"', True),
        ("127.0.0.1:10025", '"0.0.0.0/0"', False),
        ("unix:socket", '"0.0.0.0/0"', False),
        ("0.0.0.0:10025", '"10.0.0.0/8", "2001:db8::/32"', False),
    ],
)
def test_check_warns_of_a_proxy_that_signs_for_everybody(
    batv: Command, listen: str, clients: str, *, warned: bool
) -> None:
    """An open relay that signs: whoever finds it sends spam as the site."""
    batv("key", "new")
    text = batv.config.read_text().replace(
        'listen = ["127.0.0.1:10025"]', f'listen = ["{listen}"]\nclients = [{clients}]'
    )
    batv.config.write_text(text)
    answer = batv("config", "check", "--json")
    assert answer.status == 0
    assert ["anybody can send mail through it" in line for line in answer.fields["warnings"]] == [True] * warned


@pytest.mark.parametrize("option", ["proxy_protocol_from", "xclient_from", "xforward_from"])
@pytest.mark.parametrize(
    ("listen", "networks", "warned"),
    [
        ("0.0.0.0:10025", '"0.0.0.0/0"', True),
        ("[::]:10025", '"192.0.2.0/24", "::/1", "8000::/1"', True),
        ("127.0.0.1:10025", '"0.0.0.0/0"', False),
        ("0.0.0.0:10025", '"10.0.0.0/8"', False),
    ],
)
def test_check_warns_of_a_proxy_that_believes_everybody(
    batv: Command, option: str, listen: str, networks: str, *, warned: bool
) -> None:
    """Whoever says that he is a client is one: `clients` keeps nobody out then."""
    batv("key", "new")
    text = batv.config.read_text().replace(
        'listen = ["127.0.0.1:10025"]', f'listen = ["{listen}"]\n{option} = [{networks}]'
    )
    batv.config.write_text(text)
    warnings = batv("config", "check", "--json").fields["warnings"]
    assert [f"outbound.{option} has" in line for line in warnings] == [True] * warned


def test_check_finds_certificates_that_cannot_be_used(batv: Command) -> None:
    """Of both sides, whichever way the connection goes."""
    batv("key", "new")
    authority = Authority(batv.folder)
    certificate, key = authority.issue("mx.example.com")
    options = {
        "tls_certificate": certificate,
        "tls_key": key,
        "tls_client_ca": authority.ca,
        "next_hop_tls": "required",
        "next_hop_tls_ca": authority.ca,
    }
    lines = "".join(f'{option} = "{value}"\n' for option, value in options.items())
    text = batv.config.read_text().replace("[outbound]\n", f"[outbound]\n{lines}")
    text = text.replace("[inbound]\n", f"[inbound]\n{lines}")
    batv.config.write_text(text)
    assert batv("config", "check", "--json").fields == {"config": str(batv.config), "errors": [], "warnings": []}
    key.chmod(0o644)
    answer = batv("config", "check")
    assert (answer.status, answer.err) == (
        77,
        f"batv: {key} has mode 0644, open to other users: run chmod 600 {key}\n",
    )
    authority.ca.write_text("")
    answer = batv("config", "check")
    assert answer.status == 78
    assert f"cannot use the certificate {authority.ca}: it holds no certificate in PEM form" in answer.err


def test_check_tells_root_what_the_user_of_the_service_cannot_read(batv: Command) -> None:
    """A ring that root copied there is right for root, and the service does not start."""
    batv("key", "new")
    root = os.geteuid() == 0
    if root:
        os.chown(batv.keys, 65534, 65534)
    warnings = batv("config", "check", "--json").fields["warnings"]
    # Others can give nothing away, so that for them there is nothing to be found.
    assert [line.endswith(f"run chown 65534 {batv.keys}/default.ring") for line in warnings] == [True] * root


def test_what_show_prints_may_be_read_in_again(batv: Command) -> None:
    """The effective settings are the best beginning for a file of one's own."""
    before = batv("config", "show", "--json").fields
    shown = batv("config", "show")
    assert shown.status == 0
    batv.config.write_text(shown.out)
    assert batv("config", "show", "--json").fields == before


def test_show_writes_what_may_be_repeated_so_that_it_may_be_read_in_again(batv: Command) -> None:
    """A certificate that was lost on the way would shut its holder out."""
    text = batv.config.read_text().replace(
        "[outbound]\n", '[outbound]\ntls_certificate = "mx.pem"\ntls_client_ca = "ca.pem"\n'
    )
    tenant = "01234567-89ab-cdef-0123-456789abcdef"
    text += f"""
[[outbound.client_certificates]]
name = "out.example.com"
[[outbound.client_certificates]]
name = "*.relay.example"
domains = ["example.com"]
tenant = "{tenant}"
[[exemptions]]
reason = "a list that knows its senders"
until = 2027-03-31
recipients = ["*.lists.example", "*-bounces+*@peer.example"]
[[exemptions]]
reason = "a server of measurements"
owner = "ops"
clients = ["192.0.2.0/24"]
senders = ["@example.com", "root@"]
"""
    batv.config.write_text(text)
    before = batv("config", "show", "--json").fields
    assert before["outbound"]["client_certificates"] == [
        {"name": "out.example.com", "domains": [], "tenant": None},
        {"name": "*.relay.example", "domains": ["example.com"], "tenant": tenant},
    ]
    assert before["exemptions"] == [
        {
            "reason": "a list that knows its senders",
            "owner": None,
            "until": "2027-03-31",
            "senders": [],
            "clients": [],
            "recipients": ["*.lists.example", "*-bounces+*@peer.example"],
        },
        {
            "reason": "a server of measurements",
            "owner": "ops",
            "until": None,
            "senders": ["@example.com", "root@"],
            "clients": ["192.0.2.0/24"],
            "recipients": [],
        },
    ]
    batv.config.write_text(batv("config", "show").out)
    assert batv("config", "show", "--json").fields == before


def test_the_defaults_are_shown_without_a_valid_file(batv: Command) -> None:
    """Whoever mistyped an option looks for the right one while the file is wrong."""
    before = batv("config", "show", "--defaults").out
    batv.config.write_text("[keys\n")
    answer = batv("config", "show", "--defaults")
    assert (answer.status, answer.err, answer.out) == (0, "", before)
    shown = tomllib.loads(answer.out)
    assert set(shown) == set(SECTIONS)
    for section, model in SECTIONS.items():
        for option in model.model_fields:
            assert f"\n{option} = " in answer.out or f"\n# {option} " in answer.out, (section, option)
    for array, item in ARRAYS.items():
        assert f"\n# [[{array}]]\n" in answer.out
        for option in item.model_fields:
            assert f"\n# {option} " in answer.out, (array, option)
    assert batv("config", "show", "--defaults", "--json").fields["keys"]["directory"] == "keys"


def test_show_tells_defaults_from_what_was_set(batv: Command) -> None:
    """Whoever looks for a fault wants to know what somebody chose."""
    lines = batv("config", "show").out.splitlines()
    origins = {
        lines[number + 1]: line.endswith("(default)") for number, line in enumerate(lines[:-1]) if line[:1] == "#"
    }
    assert origins[f'directory = "{batv.keys}"']
    assert origins['on_forged = "discard"']
    assert not origins['on_forged = "reject"']
    assert not origins['next_hop = ["127.0.0.1:10026"]']
    assert origins["drain_seconds = 10"]


def test_check_names_exemptions_that_have_ended(batv: Command) -> None:
    """What has ended counts for nothing: somebody may miss it, or leave it there for ever."""
    batv("key", "new")
    _add(
        '[[exemptions]]\nreason = "a fair"\nuntil = 2026-11-22\nsenders = ["fair@"]\n'
        '[[exemptions]]\nreason = "a list"\nuntil = 2026-11-23\nsenders = ["list@"]\n'
    )(batv)
    assert batv("config", "check", "--json").fields["warnings"] == [
        "exemptions.0 (a fair) has ended on 2026-11-22: renew it, or leave it out"
    ]


def test_check_says_when_a_step_does_not_count_yet(batv: Command) -> None:
    """The key has the step, so that no two hosts differ about it: another one needs another key."""
    batv("key", "new")
    _add("[tags]\nstep = 7\n")(batv)
    assert batv("config", "check", "--json").fields["warnings"] == [
        "tags.step is 7, but key 0 of the default ring has 1, which counts: for another step, run batv key rotate"
    ]
    batv("key", "rotate", "--activate-in", "0")
    assert batv("config", "check", "--json").fields["warnings"] == []
    keys = batv("key", "list", "--json").fields["rings"][0]["keys"]
    assert [each["step"] for each in keys] == [1, 7]
    assert "a tag for 7 days" in batv("key", "list").out
    signed = {batv("sign", "joe@example.com", "--day", str(TODAY + ahead)).out for ahead in range(7)}
    assert len(signed) == 2


def test_check_says_until_when_tags_of_the_draft_are_needed(batv: Command) -> None:
    """For as long as they are accepted the strong scheme protects nobody."""
    batv("key", "new", "--lifetime", "10")
    _add('[domains."*.example.com"]\nscheme = "strong"\n')(batv)
    (warning,) = batv("config", "check", "--json").fields["warnings"]
    assert warning == (
        "*.example.com has the strong scheme, but the draft's tags are accepted too, and can be guessed: set"
        " accept_draft_until to 2026-12-04, when those under way have expired"
    )
    _add("accept_draft_until = 2026-12-04\n")(batv)
    assert batv("config", "check", "--json").fields["warnings"] == []


@pytest.mark.parametrize(
    ("until", "made_after"),
    [("2026-12-03", "2026-11-22"), ("2026-11-23", "2026-11-12"), ("2026-11-12", "2026-11-01"), ("2026-11-11", None)],
)
def test_check_warns_where_tags_of_the_draft_end_before_they_expire(
    batv: Command, until: str, made_after: str | None
) -> None:
    """Genuine bounces would be lost for days; when the scheme was switched the site alone knows."""
    batv("key", "new", "--lifetime", "10")
    _add(f'[domains."sub.example"]\nscheme = "strong"\naccept_draft_until = {until}\n')(batv)
    warning = (
        f"sub.example accepts the draft's tags until {until}, so that bounces to those made after {made_after} are"
        " lost: set accept_draft_until to 2026-12-04, unless the strong scheme was on by then"
    )
    expected = [warning] if made_after is not None else []
    assert batv("config", "check", "--json").fields["warnings"] == expected


def test_check_warns_of_lists_that_are_never_asked(batv: Command) -> None:
    """Behind a server on the same host that does not say who its clients are, all of them have a loopback address."""
    text = batv.config.read_text()
    lists = '\n[dnsbl]\nzones = ["ips.backscatterer.org"]\n'
    batv.config.write_text(text + lists)
    warnings = batv("config", "check", "--json").fields["warnings"]
    assert any("dnsbl.zones names lists that are never asked" in each for each in warnings)
    for told in (
        ("[inbound]\n", '[inbound]\nxforward_from = ["127.0.0.1/32"]\n'),
        ('listen = ["127.0.0.1:10027"]', 'listen = ["192.0.2.1:10027"]'),
    ):
        batv.config.write_text(text.replace(*told) + lists)
        warnings = batv("config", "check", "--json").fields["warnings"]
        assert not any("dnsbl" in each for each in warnings)
