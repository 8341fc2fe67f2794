"""Settings: what an administrator is told of a mistake."""

from __future__ import annotations

import json
import re
from typing import Final

import pytest

from batv.config import SECTIONS, defaults, parse
from batv.errors import ConfigError

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
        ("[keys]\ndirectory = keys\n", 'text needs quotes: write directory = "keys"'),
        ("[x]\nnext_hop = 127.0.0.1:25 # store\n", 'text needs quotes: write next_hop = "127.0.0.1:25"'),
        ("[x]\nlisten = [127.0.0.1:25, a:1]\n", 'text needs quotes: write listen = ["127.0.0.1:25", "a:1"]'),
        ("[journal]\nfsync = True\n", "true and false are written in small letters: write fsync = true"),
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
