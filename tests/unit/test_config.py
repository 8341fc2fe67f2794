"""Settings: what an administrator is told of a mistake."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import pytest

from batv.address import Mailbox
from batv.config import ARRAYS, SECTIONS, Announce, Endpoint, NextHopTls, defaults, parse
from batv.errors import ConfigError
from batv.mac import Case
from batv.signing import Style
from batv.tag import Placement, Scheme
from batv.verdict import Disposition

if TYPE_CHECKING:
    from batv.config import Settings

WHOLE: Final = {
    "outbound": {"listen": ["127.0.0.1:10025"], "next_hop": "127.0.0.1:10026"},
    "inbound": {"listen": ["127.0.0.1:10027"], "next_hop": "127.0.0.1:10028"},
    'domains."example.com"': {},
}

TABLES: Final = {f'{name}."example.com"' if name == "domains" else name: model for name, model in SECTIONS.items()}

OPTIONS: Final = [(table, option) for table, model in TABLES.items() for option in model.model_fields]

VALUES: Final = (
    "7",
    "-1",
    "1.5",
    "inf",
    "true",
    '""',
    '"?"',
    "[]",
    "[7]",
    '["?"]',
    "[[7]]",
    "{}",
    "{ a = 7 }",
    "07:32:00",
)

CERTIFICATES: Final = "[[outbound.client_certificates]]"

TENANT: Final = "01234567-89ab-cdef-0123-456789abcdef"

LISTED: Final = "'batv config show --defaults' lists those there are"

JARGON: Final = re.compile(
    r"valid|input should|instance|tuple|dict|frozenset|mapping|NoneType|pydantic|Value error|union|\bstr(ing)?\b",
    re.IGNORECASE,
)


def text_of(*more: tuple[str, str, str]) -> str:
    """Return settings that are right but for what is put in: table, option and value."""
    tables = {name: {option: json.dumps(value) for option, value in table.items()} for name, table in WHOLE.items()}
    for table, option, value in more:
        tables.setdefault(table, {})[option] = value
    return "".join(
        f"[{name}]\n" + "".join(f"{option} = {value}\n" for option, value in table.items())
        for name, table in tables.items()
    )


def parsed(text: str) -> Settings:
    """Return settings whose relative paths belong to /etc/batv."""
    return parse(text, "batv.toml", "/etc/batv")


def errors_of(text: str) -> list[str]:
    """Return what is wrong with settings, a line each."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "batv.toml", "/etc/batv")
    return str(caught.value).splitlines()


def test_the_settings_that_the_tests_begin_with_are_right() -> None:
    """Else every refusal below would prove nothing."""
    assert set(parse(text_of(), "batv.toml", "/etc/batv").domains) == {"example.com"}


@pytest.mark.parametrize(("table", "option"), OPTIONS, ids=".".join)
def test_a_value_of_the_wrong_type_is_refused_in_plain_words(table: str, option: str) -> None:
    """Each line names the option and what to write, in the words of the file, not of a library."""
    refused = 0
    for value in VALUES:
        text = text_of((table, option, value))
        try:
            parse(text, "batv.toml", "/etc/batv")
        except ConfigError as error:
            refused += 1
            said = str(error)
            number = text.splitlines().index(f"{option} = {value}") + 1
            # What two options do to each other is said of their table.
            assert re.match(
                rf"batv\.toml:({number}: {re.escape(table)}\.{option}[:.]|[0-9]+: {re.escape(table)}: )", said
            )
            assert not JARGON.search(said.replace(option, "")), (value, said)
    assert refused >= len(VALUES) // 2, "the values are all too good"


@pytest.mark.parametrize("table", SECTIONS)
@pytest.mark.parametrize("value", ["7", '"text"', "[]", "[7]"])
def test_a_table_of_the_wrong_type_is_refused_in_plain_words(table: str, value: str) -> None:
    """A section written as an option is a mistake of form, and its line says which form is right."""
    lines = errors_of(f"{table} = {value}\n")
    assert any(line.startswith(f"batv.toml:1: {table}: write a table") for line in lines), lines
    assert not any(JARGON.search(line) for line in lines), lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '[inbound]\nlisten = "127.0.0.1:1"\nnext_hop = "127.0.0.1:2"\n',
            'inbound.listen: write a list: ["127.0.0.1:1"]',
        ),
        (
            '[inbound]\nnext_hop = 25\nlisten = ["127.0.0.1:1"]\n',
            'inbound.next_hop: write an address in quotes, as in "127.0.0.1:10026", or a list of such addresses',
        ),
        ("\n[domains.b.example]\n", 'domains.b.example: put the domain in quotes: [domains."b.example"]'),
        (
            '\n[domains.mail.b.example]\non_forged = "mark"\n',
            'domains.mail.b: put the domain in quotes: [domains."mail.b.example"]',
        ),
        (
            "[smtp]\nmax_recipient = 100\n",
            f"smtp.max_recipient: no such option: did you mean 'max_recipients'? {LISTED}",
        ),
        (
            "[smtp]\ncolour = 100\n",
            f"smtp.colour: no such option: {LISTED}",
        ),
        (
            "\n[smpt]\n",
            f"smpt: no such option: did you mean 'smtp'? {LISTED}",
        ),
        ("[smtp]\nworkers = 65\n", "smtp.workers: must be at most 64"),
        (
            '[inbound]\nnext_hop = []\nlisten = ["127.0.0.1:1"]\n',
            "inbound.next_hop: is empty: name at least one address",
        ),
        (
            '[inbound]\nnext_hop = ["a:1", "b:1", "a:1"]\nlisten = ["127.0.0.1:1"]\n',
            "inbound.next_hop: a:1 stands there twice: leave one out",
        ),
        (
            '[inbound]\nnext_hop = "lmtp:a:b"\nlisten = ["127.0.0.1:1"]\n',
            "inbound.next_hop: 'lmtp:a:b' is no address: write lmtp:HOST:PORT, lmtp:[V6]:PORT or lmtp:unix:PATH",
        ),
        (
            '[inbound]\nnext_hop = ["a:1", "b"]\nlisten = ["127.0.0.1:1"]\n',
            "inbound.next_hop.1: 'b' is no address: write HOST:PORT, [V6]:PORT or unix:PATH",
        ),
        ("[keys]\ndirectory = keys\n", 'text needs quotes: write directory = "keys"'),
        ("[x]\nnext_hop = 127.0.0.1:25 # store\n", 'text needs quotes: write next_hop = "127.0.0.1:25"'),
        ("[x]\nlisten = [127.0.0.1:25, a:1]\n", 'text needs quotes: write listen = ["127.0.0.1:25", "a:1"]'),
        ("[journal]\nfsync = True\n", "true and false are written in small letters: write fsync = true"),
        ("[tags]\na = 2027-13-31\n", "2027-13-31 is no day: write a = 2027-03-31, or whichever you mean"),
        ("[tags]\na = 2027-3-31 # end\n", "2027-3-31 is no day: write a = 2027-03-31, or whichever you mean"),
        ("[keys]\n[keys]\n", "this table stands in the file twice: mend the TOML syntax"),
        ("\n[keys\n", "expected ']' at the end of a table declaration in column 6: mend the TOML syntax"),
    ],
)
def test_a_common_slip_is_answered_with_what_to_write(text: str, line: str) -> None:
    """These are the mistakes of a first hour; each has one remedy, which the line gives."""
    assert errors_of(f'{text}\n[domains."example.com"]\n') == [f"batv.toml:2: {line}"]


def test_settings_without_a_domain_are_refused() -> None:
    """Every recipient would be refused and nothing signed: a file that was emptied by accident looks like that."""
    line = 'domains: there is none: write [domains."example.com"] for each of yours'
    assert errors_of("") == [f"batv.toml: {line}"]
    assert errors_of("[keys]\n\n[domains]\n") == [f"batv.toml:3: {line}"]
    assert len(errors_of("[smtp]\nmax_recipients = 1\n")) == 2


def test_a_domain_stands_there_once() -> None:
    """Of two tables that differ in capitals only, one would count and nobody could tell which."""
    lines = errors_of('[domains."b.example"]\non_forged = "mark"\n[domains."B.example"]\n')
    assert lines == ["batv.toml:1: domains: b.example stands there twice, in capitals and in small letters"]


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 50_000])
def test_a_file_that_overstrains_the_reader_is_an_error_in_it(text: str) -> None:
    """A broken file must never look like a fault of batv."""
    assert errors_of(text) == ["batv.toml: a number is too long, or lists are nested too deep: mend it"]


def test_the_defaults_need_no_file() -> None:
    """Whoever looks for an option does so while the file is wrong."""
    found = defaults("/etc/batv")
    assert (found.keys.directory, found.state.directory) == ("/etc/batv/keys", "/etc/batv/var")
    assert (found.outbound, found.inbound, found.domains) == (None, None, {})


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("mail.example.com:25", Endpoint(host="mail.example.com", port=25)),
        ("[2001:db8::1]:25", Endpoint(host="2001:db8::1", port=25)),
        ("unix:/run/lmtp", Endpoint(path="/run/lmtp")),
        ("lmtp:25", Endpoint(host="lmtp", port=25)),
        ("lmtp:store:24", Endpoint(host="store", port=24, lmtp=True)),
        ("lmtp:lmtp:24", Endpoint(host="lmtp", port=24, lmtp=True)),
        ("lmtp:[2001:db8::1]:24", Endpoint(host="2001:db8::1", port=24, lmtp=True)),
        ("lmtp:unix:/run/lmtp", Endpoint(path="/run/lmtp", lmtp=True)),
    ],
)
def test_an_address_is_written_as_it_is_read(text: str, endpoint: Endpoint) -> None:
    """The log and `batv config show` name it so; a host may be called lmtp."""
    assert Endpoint.parse(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize("text", ["lmtp:", "lmtp:unix:", "lmtp:24:", "lmtp:2001:db8::1:24", "lmtp:lmtp:a:24", "unix:"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """It would be found out by the first message."""
    with pytest.raises(ValueError, match="is no address"):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("unix:/run/lmtp", True),
        ("lmtp:unix:/run/lmtp", True),
        ("localhost:25", True),
        ("127.0.0.9:25", True),
        ("[::1]:25", True),
        ("0.0.0.0:25", False),
        ("192.0.2.1:25", False),
        ("localhost.example.com:25", False),
    ],
)
def test_an_address_is_local_only_where_nothing_leaves_the_host(text: str, *, local: bool) -> None:
    """A password goes there in the clear."""
    assert Endpoint.parse(text).local is local


def test_one_next_hop_is_a_list_of_one() -> None:
    """Most sites have one, and write it without brackets."""
    text = text_of(("inbound", "next_hop", '["lmtp:unix:run/lmtp", "192.0.2.1:25"]'))
    settings = parsed(text)
    assert settings.outbound is not None
    assert settings.inbound is not None
    assert settings.outbound.next_hop == (Endpoint(host="127.0.0.1", port=10026),)
    assert list(map(str, settings.inbound.next_hop)) == ["lmtp:unix:/etc/batv/run/lmtp", "192.0.2.1:25"]


def test_nothing_is_encrypted_or_believed_unless_the_file_says_so() -> None:
    """Whoever is believed can say that he is anybody; an upgrade must not change what a site does."""
    for side in (parsed(text_of()).outbound, parsed(text_of()).inbound):
        assert side is not None
        assert (side.listen_tls, side.tls_certificate, side.next_hop_tls) == ((), None, NextHopTls.OFF)
        assert side.proxy_protocol_from == side.xclient_from == side.xforward_from == ()
        assert side.next_hop_identity is Announce.AUTO


def test_paths_belong_to_the_folder_of_the_file() -> None:
    """The service is started in another one."""
    paths = ["tls_certificate", "tls_key", "tls_client_ca", "next_hop_tls_ca", "next_hop_credentials"]
    for anchored, written in (("/etc/batv/pem/x", "pem/x"), ("/pem/x", "/pem/x")):
        more = [("inbound", option, json.dumps(written)) for option in paths]
        side = parsed(
            text_of(*more, ("inbound", "next_hop_tls", '"required"'), ("inbound", "listen_tls", '["unix:tls"]'))
        ).inbound
        assert side is not None
        assert {getattr(side, option) for option in paths} == {anchored}
        assert side.listen_tls == (Endpoint(path="/etc/batv/tls"),)


def test_a_proxy_may_listen_with_tls_alone() -> None:
    """As submission on port 465 does."""
    tls = ("outbound", "listen_tls", '["192.0.2.1:465"]'), ("outbound", "tls_certificate", '"mx.pem"')
    outbound = parsed(text_of(*tls, ("outbound", "listen", "[]"))).outbound
    assert outbound is not None
    assert (outbound.listen, outbound.listen_tls) == ((), (Endpoint(host="192.0.2.1", port=465),))


NO_CERTIFICATE: Final = "is of no use without a certificate: set tls_certificate too"

UNVERIFIED: Final = "nothing is verified: set next_hop_tls to required or implicit, or leave it out"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"listen": "[]"}, "listen: is empty: name at least one address"),
        (
            {"listen": '["lmtp:127.0.0.1:24"]'},
            "listen: lmtp:127.0.0.1:24 is LMTP, which is spoken to a mail store: leave lmtp: out",
        ),
        ({"listen_tls": '["127.0.0.1:465"]'}, f"listen_tls: {NO_CERTIFICATE}"),
        ({"tls_key": '"key.pem"'}, f"tls_key: {NO_CERTIFICATE}"),
        ({"tls_client_ca": '"ca.pem"'}, f"tls_client_ca: {NO_CERTIFICATE}"),
        (
            {"tls_certificate": '"mx.pem"', "listen_tls": '["127.0.0.1:10027"]'},
            "listen_tls: 127.0.0.1:10027 stands in listen too: leave one out",
        ),
        (
            {"next_hop": '["192.0.2.1:25", "127.0.0.1:10027"]'},
            "next_hop: 127.0.0.1:10027 is this proxy itself: mail would go round in a loop",
        ),
        (
            {"next_hop": '"lmtp:127.0.0.1:10027"'},
            "next_hop: lmtp:127.0.0.1:10027 is this proxy itself: mail would go round in a loop",
        ),
        (
            {"tls_certificate": '"mx.pem"', "listen_tls": '["unix:s"]', "next_hop": '"unix:s"'},
            "next_hop: unix:s is this proxy itself: mail would go round in a loop",
        ),
        ({"next_hop_tls_ca": '"ca.pem"'}, f"next_hop_tls_ca: {UNVERIFIED}"),
        (
            {"next_hop_tls": '"opportunistic"', "next_hop_tls_name": '"b.example"'},
            f"next_hop_tls_name: {UNVERIFIED}",
        ),
        (
            {"next_hop": '"unix:s"', "next_hop_tls": '"required"'},
            "next_hop_tls: unix:s has no name to verify: set next_hop_tls_name",
        ),
        (
            {
                "next_hop": '["127.0.0.1:25", "192.0.2.1:25"]',
                "next_hop_tls": '"opportunistic"',
                "next_hop_credentials": '"password"',
            },
            (
                "next_hop_credentials: the password would be for all to read on the way to 192.0.2.1:25:"
                " set next_hop_tls to required or implicit"
            ),
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_on_the_line_of_one(options: dict[str, str], line: str) -> None:
    """Each would be a door that is open or a wall where mail is lost, and nobody would look there."""
    text = text_of(*(("inbound", option, value) for option, value in options.items()))
    option = line.partition(":")[0]
    head, _, rest = text.partition("[inbound]")
    lines = enumerate(rest.splitlines(), start=head.count("\n") + 1)
    (number,) = [number for number, each in lines if each.startswith(f"{option} = ")]
    assert errors_of(text) == [f"batv.toml:{number}: inbound.{line}"]


@pytest.mark.parametrize(
    ("next_hop", "tls"),
    [
        ('["192.0.2.1:25", "mail.example.com:25"]', "required"),
        ('"192.0.2.1:465"', "implicit"),
        ('["127.0.0.1:25", "[::1]:25", "localhost:26", "unix:s"]', "off"),
        ('"127.0.0.1:25"', "opportunistic"),
    ],
)
def test_a_password_goes_where_nobody_can_read_it(next_hop: str, tls: str) -> None:
    """Inside the host there is nobody on the way; outside, the other end must be known."""
    more = (("next_hop", next_hop), ("next_hop_tls", f'"{tls}"'), ("next_hop_credentials", '"password"'))
    outbound = parsed(text_of(*(("outbound", *pair) for pair in more))).outbound
    assert outbound is not None
    assert outbound.next_hop_tls is NextHopTls(tls)


def test_the_outbound_proxy_delivers_to_no_mailbox() -> None:
    """LMTP gives a reply for each recipient after the message: what one refuses needs a queue to bounce it."""
    assert errors_of(text_of(("outbound", "next_hop", '["127.0.0.1:25", "lmtp:unix:/run/lmtp"]'))) == [
        (
            "batv.toml:3: outbound.next_hop: lmtp:unix:/run/lmtp: LMTP is delivery:"
            " the outbound proxy needs a queue behind it"
        )
    ]


def test_a_local_source_must_be_announced_by_somebody() -> None:
    """Else nothing would be signed, and every bounce would look forged."""
    required = ("outbound", "require_local_source", "true")
    assert errors_of(text_of(required)) == [
        "batv.toml:4: outbound.require_local_source: nobody's XFORWARD is believed: name the peers in xforward_from"
    ]
    assert parsed(text_of(required, ("outbound", "xforward_from", '["127.0.0.0/8"]'))).outbound is not None


def with_certificates(*tables: str) -> str:
    """Return settings whose outbound proxy knows clients by their certificates."""
    text = text_of(("outbound", "tls_certificate", '"mx.pem"'), ("outbound", "tls_client_ca", '"ca.pem"'))
    return text + "".join(f"{CERTIFICATES}\n{table}\n" for table in tables)


def test_a_client_certificate_has_a_name_and_what_it_may_send() -> None:
    """Names are compared in small letters, whatever the file has."""
    outbound = parsed(
        with_certificates(
            'name = "Out.Example.com"',
            f'name = "*.relay.example"\ndomains = ["Example.COM"]\ntenant = "{TENANT.upper()}"',
        )
    ).outbound
    assert outbound is not None
    first, second = outbound.client_certificates
    assert (first.name, first.domains, first.tenant) == ("out.example.com", frozenset(), None)
    assert (second.name, second.domains, second.tenant) == ("*.relay.example", frozenset({"example.com"}), TENANT)


def test_an_error_in_a_table_that_is_repeated_is_on_the_line_of_its_own() -> None:
    """The tables look alike, so that the name of the option alone says nothing."""
    text = with_certificates(
        'name = "a.example"\ncolour = 1',
        'domains = "example.com"\nnam = "a.example"',
        "# the third\n\nname = 7\ntenant = 'x'",
        'name = "*.*.example"',
        'name = "b\u00fccher.example"',
    )
    lines = text.splitlines()
    heads = [number for number, line in enumerate(lines, start=1) if line == CERTIFICATES]
    where = "outbound.client_certificates"
    assert errors_of(text) == [
        f"batv.toml:{heads[0] + 2}: {where}.0.colour: no such option: {LISTED}",
        f"batv.toml:{heads[1]}: {where}.1.name: is missing: set it",
        f'batv.toml:{heads[1] + 1}: {where}.1.domains: write a list: ["example.com"]',
        f"batv.toml:{heads[1] + 2}: {where}.1.nam: no such option: did you mean 'name'? {LISTED}",
        (
            f"batv.toml:{heads[2] + 3}: {where}.2.name: write a name in quotes, as in"
            ' "mail.example.com" or "*.example.com"'
        ),
        f"batv.toml:{heads[2] + 4}: {where}.2.tenant: 'x' is no tenant id: write it as in {TENANT}",
        (
            f"batv.toml:{heads[3] + 1}: {where}.3.name: '*.*.example' is no name of a certificate:"
            " write it as in mail.example.com or *.example.com"
        ),
        (
            f"batv.toml:{heads[4] + 1}: {where}.4.name: 'b\u00fccher.example' is no name of a certificate:"
            " write it as in mail.example.com or *.example.com"
        ),
    ]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ("[outbound.client_certificates]\nname = 'a.example'\n", ": write a line {} for each"),
        ("[outbound]\nclient_certificates = 'a.example'\n", ": write a line {} for each"),
        ("[outbound]\nclient_certificates = ['a.example']\n", ".0: write a table: a line {}"),
    ],
)
def test_a_table_that_may_be_repeated_has_double_brackets(tables: str, said: str) -> None:
    """Few know that of TOML, and what a library says of it helps nobody."""
    (line,) = [line for line in errors_of(tables) if "client_certificates" in line]
    number = tables[: tables.index("client_certificates")].count("\n") + 1
    beginning = f"batv.toml:{number}: outbound.client_certificates{said.format(CERTIFICATES)}"
    assert line == f"{beginning}, and its options on the lines below"


def test_a_client_certificate_needs_an_authority_that_vouches_for_it() -> None:
    """Nobody would be asked for one, and everybody refused."""
    text = text_of() + f'{CERTIFICATES}\nname = "a.example"\n'
    number = text.splitlines().index(CERTIFICATES) + 1
    assert errors_of(text) == [
        f"batv.toml:{number}: outbound.client_certificates: no client is asked for a certificate: set tls_client_ca"
    ]


def test_a_client_certificate_is_for_domains_of_ours() -> None:
    """A slip in the name would shut its holder out. An internationalised domain has two spellings."""
    text = with_certificates('name = "a.example"\ndomains = ["example.org", "example.com", "xn--bcher-kva.example"]')
    text += '[domains."b\u00fccher.example"]\n'
    number = text.splitlines().index(CERTIFICATES) + 3
    assert errors_of(text) == [
        (
            f"batv.toml:{number}: outbound.client_certificates.0.domains: example.org is no domain of yours:"
            ' add [domains."example.org"]'
        )
    ]


def test_all_that_contradicts_itself_is_told_at_once() -> None:
    """Each look costs a round: of one table, and of several."""
    text = text_of(
        ("keys", "master_key_file", '"a"'),
        ("keys", "master_key_credential", '"b"'),
        ("outbound", "require_local_source", "true"),
        ("outbound", "tls_key", '"key.pem"'),
        ("inbound", "next_hop", '["127.0.0.1:10027", "unix:s"]'),
        ("inbound", "next_hop_tls_ca", '"ca.pem"'),
        ("smtp", "workers", "0"),
    )
    keys = [line.split(": ")[1] for line in errors_of(text)]
    assert keys == [
        "outbound.require_local_source",
        "outbound.tls_key",
        "inbound.next_hop",
        "inbound.next_hop_tls_ca",
        "keys.master_key_credential",
        "smtp.workers",
    ]


def test_a_domain_is_ours_or_relayed_not_both() -> None:
    """Its mail would be judged or not as chance will have it; every such domain is named."""
    text = text_of(("inbound", "relay_domains", '["example.com", "example.net", "other.example"]'))
    text += '[domains."example.net"]\n'
    number = text.splitlines().index('relay_domains = ["example.com", "example.net", "other.example"]') + 1
    assert errors_of(text) == [
        f"batv.toml:{number}: inbound.relay_domains: {name} stands under domains too: leave one out"
        for name in ("example.com", "example.net")
    ]


def test_every_table_that_is_repeated_belongs_to_a_section() -> None:
    """`batv config show --defaults` lists its options there; those of a table that belongs to none at the end."""
    assert {name.partition(".")[0] for name in ARRAYS} <= set(SECTIONS) | {"exemptions"}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        (("dns", "servers"), '["ns.example.com:53"]', "named by its IP address and port"),
        (("dns", "servers"), '["127.0.0.1:0"]', "named by its IP address and port"),
        (("dns", "servers"), '["unix:/run/dns"]', "named by its IP address and port"),
        (("dns", "servers"), '["lmtp:127.0.0.1:53"]', "named by its IP address and port"),
        (("dnsbl", "zones"), '["ips backscatterer org"]', "no domain name"),
        (("dnsbl", "on_listed"), '"mark"', "not one of discard, reject, quarantine"),
        (("dnsbl", "on_listed"), '"pass"', "not one of discard, reject, quarantine"),
        (("dnsbl", "seconds"), "11", "at most 10"),
        (('domains."example.com"', "on_listed"), '"pass"', "not one of discard, reject, quarantine"),
    ],
)
def test_a_list_can_neither_be_asked_by_name_nor_let_anything_through(
    option: tuple[str, str], value: str, said: str
) -> None:
    """A name would have to be asked for first; and what a list says only ever makes worse what a bounce gets."""
    lines = errors_of(text_of((*option, value)))
    assert len(lines) == 1
    assert said in lines[0]


def test_lists_do_nothing_until_one_is_named_and_a_domain_may_differ() -> None:
    """Off by default: whoever runs a list learns of everybody who sends bounces to the site."""
    domain = ('domains."example.com"', "on_listed", '"discard"')
    zones = ("dnsbl", "zones", '["ips.backscatterer.org"]')
    for more, wanted in (
        ((), None),
        ((domain,), None),
        ((zones,), Disposition.QUARANTINE),
        ((zones, ("dnsbl", "on_listed", '"reject"')), Disposition.REJECT),
        ((zones, domain), Disposition.DISCARD),
    ):
        policy = parsed(text_of(*more)).policy.for_domain(b"example.com")
        assert policy is not None
        assert policy.on_listed is wanted


def test_what_is_wrong_with_exemptions_and_scope_is_said_at_once_each_with_its_line() -> None:
    """An exemption that does not count, or counts for too much, is found before mail shows it."""
    text = """\

[domains."*.example.com"]
on_expired = "lose"
exempt_recipients = ["postmaster", "a b", 7]
scheme = "stronger"
accept_draft_until = "soon"
[tags]
step = 91
on_too_long = "cut"
[[exemptions]]
reason = ""
[[exemptions]]
reason = "a list"
until = 2027-02-28T00:00:00
senders = ["joe"]
recipients = "*.lists.example"
[[exemptions]]
senders = ["joe@", "@", 5]
owner = "two\\nlines"
colour = "red"
[[exemptions]]
reason = "nobody"
"""
    wanted = [
        (3, "domains.\"*.example.com\".on_expired: 'lose' is not one of"),
        (4, "domains.\"*.example.com\".exempt_recipients.1: 'a b' is no pattern for the part before the @"),
        (4, 'domains."*.example.com".exempt_recipients.2: write what stands before the @ in quotes'),
        (5, "domains.\"*.example.com\".scheme: 'stronger' is not one of draft, strong"),
        (6, 'domains."*.example.com".accept_draft_until: write a day as in 2027-03-31'),
        (8, "tags.step: must be at most 90"),
        (9, "tags.on_too_long: write one of these words, in quotes: remember, leave, refuse"),
        (11, "exemptions.0.reason: write a few words, on one line"),
        (15, "exemptions.1.senders.0: 'joe' is no pattern"),
        (16, "exemptions.1.recipients: write a list"),
        (17, "exemptions.2.reason: is missing: set it"),
        (18, "exemptions.2.senders.1: '@' is no pattern"),
        (18, "exemptions.2.senders.2: write a pattern in quotes"),
        (19, "exemptions.2.owner: write a few words, on one line"),
        (20, "exemptions.2.colour: no such option"),
        (21, "exemptions.3.senders: nobody is named: set senders, clients or recipients"),
    ]
    lines = errors_of(text)
    for number, said in wanted:
        assert any(line.startswith(f"batv.toml:{number}: {said}") for line in lines), (number, said, lines)
    assert any(line.startswith("batv.toml:14: exemptions.1.until: write a day as in") for line in lines), lines
    assert not any(JARGON.search(line) for line in lines), lines
    assert "'*' is no domain name: write it as in example.com or *.example.com" in errors_of('[domains."*"]\n')[0]


def test_a_single_exemption_is_asked_for_as_a_table_that_may_be_repeated() -> None:
    """One pair of brackets is the usual slip."""
    text = text_of(("exemptions", "reason", '"a list"'))
    number = text.splitlines().index("[exemptions]") + 1
    said = "write a line [[exemptions]] for each, and its options on the lines below"
    assert errors_of(text) == [f"batv.toml:{number}: exemptions: {said}"]


def test_the_day_of_an_exemption_is_written_with_quotes_or_without() -> None:
    """TOML has days of its own."""
    for day in ("2027-03-31", '"2027-03-31"'):
        text = text_of() + f'[[exemptions]]\nreason = "a list"\nuntil = {day}\nsenders = ["joe@"]\n'
        (exemption,) = parsed(text).policy.exemptions.every
        assert str(exemption.until) == "2027-03-31"


def test_postmaster_is_exempt_unless_said_otherwise() -> None:
    """RFC 5321 section 4.5.1 wants every domain to take mail for postmaster."""
    postmaster = Mailbox.parse(b"Postmaster@example.com")
    usual = parsed(text_of()).policy.for_domain(b"example.com")
    none = parsed(text_of(('domains."example.com"', "exempt_recipients", "[]"))).policy.for_domain(b"example.com")
    assert usual is not None
    assert none is not None
    assert usual.exempt_recipient(postmaster) == "postmaster"
    assert none.exempt_recipient(postmaster) is None


def test_a_domain_may_write_tags_otherwise_than_the_rest() -> None:
    """What it does not say is as below [tags]; the draft's tags end only where others are written."""
    text = text_of(
        ("tags", "placement", '"subaddress"'),
        ("tags", "accept_draft_until", "2027-03-31"),
        ('domains."example.com"', "scheme", '"strong"'),
        ('domains."*.example.com"', "case", '"exact"'),
    )
    policy = parsed(text).policy
    strong, exact = policy.for_domain(b"example.com"), policy.for_domain(b"x.example.com")
    assert strong is not None
    assert exact is not None
    assert strong.style == Style(Case.FOLD, Placement.SUBADDRESS, Scheme.STRONG)
    assert exact.style == Style(Case.EXACT, Placement.SUBADDRESS, Scheme.DRAFT)
    assert (str(strong.draft_until), exact.draft_until) == ("2027-03-31", None)


def test_an_internationalised_wildcard_stands_for_both_spellings() -> None:
    """Mail names a domain in either."""
    policy = parsed(text_of(('domains."*.exämple.com"', "on_forged", '"mark"'))).policy
    for domain in ("a.exämple.com", "a.xn--exmple-cua.com"):
        assert policy.for_domain(domain.encode()) is not None


def test_a_budget_needs_a_ledger_to_count_in_and_room_for_what_is_beyond_it() -> None:
    """Without either nothing would come of it."""
    text = text_of(("ledger", "max_bounces_per_recipient", "2"), ("state", "quarantine_max_mib", "0"))
    said = "\n".join(errors_of(text))
    assert "ledger.max_bounces_per_recipient: there is no ledger to count in: set ledger.enabled" in said
    assert "ledger.max_bounces_per_recipient: the quarantine keeps nothing: give state.quarantine_max_mib" in said
    on = text_of(("ledger", "max_bounces_per_recipient", "2\nenabled = true"))
    assert parsed(on).ledger.max_bounces_per_recipient == 2


def test_senders_are_exempt_only_where_mail_with_a_sender_is_judged() -> None:
    """Elsewhere it would say nothing, and whoever wrote it believes that it does."""
    senders = ('domains."example.com"', "exempt_senders", '["postmaster@*.example.org", "dmarc-*@"]')
    text = text_of(senders)
    number = text.splitlines().index(f"exempt_senders = {senders[2]}") + 1
    (said,) = errors_of(text)
    assert said == (
        f'batv.toml:{number}: domains."example.com".exempt_senders: mail with a sender is not judged: set'
        " on_bounce_with_sender, or leave it out"
    )
    judging = (senders[0], senders[1], f'{senders[2]}\non_bounce_with_sender = "mark"')
    domain = parsed(text_of(judging)).policy.domains[b"example.com"]
    report = Mailbox(b"DMARC-noreply", b"peer.example")
    assert domain.with_sender is not None
    assert domain.with_sender.exempt_sender(report) == "dmarc-*@"


def test_rescue_needs_a_ledger() -> None:
    """Without one it would rescue nothing, and nobody would know why."""
    text = text_of(('domains."example.com"', "rescue", "true"))
    number = text.splitlines().index("rescue = true") + 1
    assert errors_of(text) == [
        f'batv.toml:{number}: domains."example.com".rescue: there is no ledger to look into: set ledger.enabled'
    ]
    rescuing = parsed(text_of(('domains."example.com"', "rescue", "true"), ("ledger", "enabled", "true"))).policy
    assert rescuing.domains[b"example.com"].rescue
    assert not parsed(text_of()).policy.domains[b"example.com"].rescue


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("sender", '"probe@example.com"', "sender: write one star in the local part, as in probe+*@example.com"),
        ("sender", "7", "sender: write an address with a star in quotes"),
        ("sender", '"probe+*@other.example"', "sender: probe+*@other.example is of no domain of yours"),
        (
            "sender",
            f'"{"p" * 37}*@example.com"',
            f"sender: mail from {'p' * 37}*@example.com is not signed: local part too long for a tag: name another",
        ),
        ("sender", '"probe%*@example.com"', "sender: mail from probe%*@example.com is not signed: local part with a"),
        ("recipient", '"nobody"', "recipient: 'nobody' is no mail address"),
        ("recipient", "7", "recipient: write an address in quotes"),
        ("recipient", '"nobody@b\u00fccher.example"', "recipient: write it in ASCII"),
        ("recipient", '"nobody@EXAMPLE.com"', "recipient: nobody@EXAMPLE.com is of a domain of yours"),
        ("via", '"lmtp:127.0.0.1:24"', "via: lmtp:127.0.0.1:24 is LMTP"),
        ("wait_seconds", "0", "wait_seconds: must be more than 0"),
    ],
)
def test_a_probe_that_could_not_be_made_is_refused(option: str, value: str, said: str) -> None:
    """Before its timer finds out."""
    options = {"sender": '"probe+*@example.com"', "recipient": '"nobody@remote.example"', option: value}
    (line,) = errors_of(text_of(*(("probe", name, found) for name, found in options.items())))
    assert f"probe.{said}" in line


def test_a_probe_s_sender_may_be_as_long_as_a_tag_leaves_room() -> None:
    """With the word that stands for the star."""
    sender = f'"{"p" * 36}*@example.com"'
    probe = parsed(text_of(("probe", "sender", sender), ("probe", "recipient", '"nobody@remote.example"'))).probe
    assert probe.sender is not None


@pytest.mark.parametrize(("option", "other"), [("sender", "recipient"), ("recipient", "sender")])
def test_a_probe_needs_both_of_its_addresses(option: str, other: str) -> None:
    """With one alone there would never be any."""
    value = '"probe+*@example.com"' if option == "sender" else '"nobody@remote.example"'
    (line,) = errors_of(text_of(("probe", option, value)))
    assert line.endswith(f"probe.{option}: is of no use without a {other}: set probe.{other} too")


def test_paths_of_a_probe_belong_to_the_folder_of_the_file() -> None:
    """As all others do."""
    found = parsed(text_of(("probe", "via", '"unix:run/smtp"'), ("probe", "metrics_file", '"batv.prom"'))).probe
    assert (str(found.via), found.metrics_file) == ("unix:/etc/batv/run/smtp", "/etc/batv/batv.prom")
