"""Settings: frozen values, read from TOML text, every error reported at once with file, line and key.

This module reads no file and no environment: whoever does hands in the text, and the folder to which relative paths
belong. The descriptions of the fields are what `batv config show` and the README say of each option.
"""

from __future__ import annotations

import json
import re
import tomllib
from difflib import get_close_matches
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from batv.address import DOMAIN, Mailbox
from batv.day import Day
from batv.errors import AddressError, ConfigError, DayError
from batv.keyring import MAX_STEP_DAYS
from batv.mac import Case
from batv.pattern import Pattern
from batv.policy import DomainPolicy, Exemption, Exemptions, Policy
from batv.probe import WORD_DIGITS, ProbeSender
from batv.rollout import OnLoss, Plan
from batv.signing import Style, obstacle
from batv.tag import ForeignForm, Placement, Scheme
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from pydantic_core import InitErrorDetails

__all__ = [
    "ARRAYS",
    "SECTIONS",
    "Announce",
    "ClientCertificate",
    "DnsSettings",
    "DnsblSettings",
    "DomainSettings",
    "Endpoint",
    "ExemptionSettings",
    "GuessingSettings",
    "InboundSettings",
    "JournalSettings",
    "KeysSettings",
    "LedgerSettings",
    "NextHopSettings",
    "NextHopTls",
    "OutboundSettings",
    "ProbeSettings",
    "RolloutSettings",
    "Settings",
    "SmtpSettings",
    "StateSettings",
    "TagsSettings",
    "defaults",
    "parse",
]

_MEBIBYTE: Final = 1 << 20
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_ASSIGNMENT: Final = re.compile(r"\s*(?P<key>[A-Za-z0-9_-]+)\s*=\s*(?P<value>[^#]*?)\s*(?:#.*)?")
_DAY: Final = re.compile(r"[0-9]+-[0-9]+-[0-9]+")
_PLACE: Final = re.compile(r" ?\(at line (?P<line>[0-9]+), column (?P<column>[0-9]+)\)")
_TWICE: Final = {
    "Cannot declare": "this table stands in the file twice",
    "Cannot overwrite": "this option stands in its table twice",
}
"""What tomllib says, in Python's words, and what it means."""

_SAID: Final = {
    "missing": "is missing: set it",
    "string_type": "write text in quotes",
    "bool_type": "write true or false, without quotes",
    "int_type": "write a whole number, without quotes",
    "float_type": "write a number, without quotes",
    "finite_number": "write a number, without quotes",
}
"""What pydantic calls an error, and what to do about it."""

_DOMAIN_NAME = re.compile(DOMAIN)
_GUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PLACE_PART: Final = re.compile(r'"[^"]*"|[^.]+')
_MAX_PORT: Final = 65_535
_LISTENER_PATHS: Final = ("tls_certificate", "tls_key", "tls_client_ca", "next_hop_tls_ca", "next_hop_credentials")
_DOMAIN_TABLE: Final = '[domains."example.com"]'
_ON_FORGED: Final = (
    Disposition.DISCARD,
    Disposition.REJECT,
    Disposition.QUARANTINE,
    Disposition.MARK,
    Disposition.PASS,
)


_ON_LISTED: Final = (Disposition.DISCARD, Disposition.REJECT, Disposition.QUARANTINE)


class _FormError(ValueError):
    """A value of another type than its option has. A ValueError, since pydantic collects those."""


class Announce(Enum):
    """How the next hop learns which client a message came from."""

    AUTO = "auto"  # XFORWARD, else XCLIENT, where the next hop offers them
    OFF = "off"
    XFORWARD = "xforward"
    XCLIENT = "xclient"
    PROXY_V1 = "proxy-v1"
    PROXY_V2 = "proxy-v2"


class NextHopTls(Enum):
    """Whether the way to the next hop is encrypted, and whether it must be the right one that answers."""

    OFF = "off"
    OPPORTUNISTIC = "opportunistic"  # STARTTLS where it is offered; nothing is verified (RFC 7435)
    REQUIRED = "required"  # STARTTLS, verified
    IMPLICIT = "implicit"  # TLS from the first octet (RFC 8314 section 3.3), verified

    @property
    def verifies(self) -> bool:
        """Whether the certificate must be signed by a trusted authority, for the right name."""
        return self in {NextHopTls.REQUIRED, NextHopTls.IMPLICIT}


def _place(option: str) -> tuple[str, ...]:
    return tuple(part.strip('"') for part in _PLACE_PART.findall(option))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """Yield each option that does not go with the others, and what is wrong.

        Tables stand before it, with dots; names with dots in them stand in quotes.
        """
        yield from ()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        found: list[InitErrorDetails] = [
            {"type": "value_error", "loc": _place(option), "input": None, "ctx": {"error": ValueError(said)}}
            for option, said in self._contradictions()
        ]
        if found:
            # Raised by a validator, the errors join those of the other tables, each with its own place.
            raise ValidationError.from_exception_data(type(self).__name__, found)
        return self


class Endpoint(_Section):
    """Where to listen or to connect: a host and a port, or the path of a Unix socket.

    Attributes:
        host: name or IP address without brackets; empty for a Unix socket.
        port: TCP port; 0 lets the system choose one to listen on.
        path: path of the Unix socket; empty for TCP.
        lmtp: LMTP (RFC 2033) is spoken there, not SMTP.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    lmtp: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the endpoint written `HOST:PORT`, `[V6]:PORT` or `unix:PATH`, each with `lmtp:` before it or not.

        Raises:
            ValueError: the text has another form.
        """
        # In `lmtp:24` it is the name of a host.
        lmtp = text.startswith("lmtp:") and ":" in text.removeprefix("lmtp:")
        scheme = "lmtp:" if lmtp else ""
        form = f"'{text}' is no address: write {scheme}HOST:PORT, {scheme}[V6]:PORT or {scheme}unix:PATH"
        text = text.removeprefix(scheme)
        if text.startswith("unix:"):
            if not text.removeprefix("unix:"):
                raise ValueError(form)
            return cls(path=text.removeprefix("unix:"), lmtp=lmtp)
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not (colon and host and port.isascii() and port.isdigit() and int(port) <= _MAX_PORT):
            raise ValueError(form)
        if (":" in host) != bracketed:
            raise ValueError(form)
        if bracketed:
            host = str(ip_address(host[1:-1]))
        return cls(host=host, port=int(port), lmtp=lmtp)

    def __str__(self) -> str:
        """Return the endpoint as it is written in the settings."""
        scheme = "lmtp:" if self.lmtp else ""
        if self.path:
            return f"{scheme}unix:{self.path}"
        return f"{scheme}[{self.host}]:{self.port}" if ":" in self.host else f"{scheme}{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether nothing that goes there leaves this host: a Unix socket, or the loopback interface."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name, which may mean anything


def _dns_server(endpoint: Endpoint) -> Endpoint:
    try:
        ip_address(endpoint.host)
    except ValueError:
        endpoint = Endpoint(lmtp=True)
    if endpoint.lmtp or not endpoint.port:
        # Its name would have to be asked for first.
        raise ValueError("a DNS server is named by its IP address and port, as in 127.0.0.1:53")
    return endpoint


def _endpoint(value: object) -> object:
    if isinstance(value, Endpoint):
        return value
    if not isinstance(value, str):
        raise _FormError('write an address in quotes, as in "127.0.0.1:10026"')
    return Endpoint.parse(value)


def _next_hops(value: object) -> object:
    """Turn one address into a list of one; what a list holds is looked at item by item."""
    if isinstance(value, list | tuple):
        return tuple(value)
    if not isinstance(value, str):
        raise _FormError('write an address in quotes, as in "127.0.0.1:10026", or a list of such addresses')
    return (Endpoint.parse(value),)


def _one_or_more(value: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    if not value:
        raise ValueError("is empty: name at least one address")
    twice = next((endpoint for number, endpoint in enumerate(value) if endpoint in value[:number]), None)
    if twice is not None:
        raise ValueError(f"{twice} stands there twice: leave one out")
    return value


def _network(value: object) -> object:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise _FormError('write a network in quotes, as in "192.0.2.0/24"')
    try:
        return IPv6Network(value) if ":" in value else IPv4Network(value)
    except ValueError as error:
        raise ValueError(f"{error}: write a network such as 192.0.2.0/24 or 2001:db8::/32") from error


def _word(kind: type[Enum], members: Iterable[Enum] = ()) -> Callable[[object], Enum]:
    """Return what turns a word of the settings into the member that it stands for."""
    allowed = {member.value: member for member in members or kind}

    def convert(value: object) -> Enum:
        if isinstance(value, kind):
            return value
        if not isinstance(value, str):
            raise _FormError(f"write one of these words, in quotes: {', '.join(allowed)}")
        if value not in allowed:
            raise ValueError(f"'{value}' is not one of {', '.join(allowed)}")
        return allowed[value]

    return convert


def _enum(kind: type[Enum], members: Iterable[Enum] = ()) -> BeforeValidator:
    return BeforeValidator(_word(kind, members))


def _list(example: str, kind: Callable[[list[Any]], Collection[Any]] = tuple) -> BeforeValidator:
    """Return what turns a TOML list into the kind of the field, and refuses what is no list."""

    def convert(value: object) -> object:
        if isinstance(value, list):
            return kind(value)
        if isinstance(value, tuple | frozenset):
            return value
        # What was written is shown where it may be what was meant.
        raise ValueError(f"write a list: [{json.dumps(value if isinstance(value, str) else example)}]")

    return BeforeValidator(convert)


def _domain_name(name: object) -> str:
    if not isinstance(name, str):
        raise _FormError('write a domain name in quotes, as in "example.com"')
    if not _DOMAIN_NAME.fullmatch(name.encode()):
        raise ValueError(f"'{name}' is no domain name: write it as in example.com")
    return name.lower()


def _own_domain_name(name: str) -> str:
    if not _DOMAIN_NAME.fullmatch(name.removeprefix("*.").encode()):
        raise ValueError(f"'{name}' is no domain name: write it as in example.com or *.example.com")
    return name.lower()


def _domain_name_set(names: Iterable[object]) -> frozenset[str]:
    return frozenset(_domain_name(name) for name in names)


def _certificate_name(name: object) -> str:
    if not isinstance(name, str):
        raise _FormError('write a name in quotes, as in "mail.example.com" or "*.example.com"')
    # Certificates hold the ASCII form (RFC 5280 section 7.2): another one would be equal to none of their names.
    if not name.isascii() or not _DOMAIN_NAME.fullmatch(name.removeprefix("*.").encode()):
        raise ValueError(f"'{name}' is no name of a certificate: write it as in mail.example.com or *.example.com")
    return name.lower()


def _guid(value: str) -> str:
    if not _GUID.fullmatch(value.lower()):
        raise ValueError(f"'{value}' is no tenant id: write it as in 01234567-89ab-cdef-0123-456789abcdef")
    return value.lower()


def _tables(name: str) -> BeforeValidator:
    def convert(value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(value)
        raise _FormError(f"write a line [[{name}]] for each, and its options on the lines below")

    return BeforeValidator(convert)


def _pattern(value: object) -> object:
    if isinstance(value, Pattern):
        return value
    if not isinstance(value, str):
        raise _FormError('write a pattern in quotes, as in "list-*@example.com" or "*.example.org"')
    return Pattern.parse(value)


def _local_pattern(value: object) -> str:
    if not isinstance(value, str):
        raise _FormError('write what stands before the @ in quotes, as in "postmaster" or "list-*"')
    Pattern.parse_local(value)
    return value


def _mailbox(value: object) -> object:
    if isinstance(value, Mailbox):
        return value
    if not isinstance(value, str):
        raise _FormError('write an address in quotes, as in "nobody@example.org"')
    try:
        mailbox = Mailbox.parse(value.encode())
    except AddressError as error:
        raise ValueError(str(error)) from error
    if not mailbox.ascii:
        raise ValueError("write it in ASCII, the domain as in xn--bcher-kva.example: not every server takes more")
    return mailbox


def _probe_sender(value: object) -> object:
    if isinstance(value, ProbeSender):
        return value
    if not isinstance(value, str):
        raise _FormError('write an address with a star in quotes, as in "probe+*@example.com"')
    return ProbeSender.parse(value)


def _day(value: object) -> object:
    if isinstance(value, Day):
        return value
    # What TOML calls a local date comes as a date of Python; one with a time has another text.
    text = value if isinstance(value, str) else getattr(value, "isoformat", str)()
    try:
        return Day.from_iso(text)
    except DayError as error:
        raise ValueError("write a day as in 2027-03-31") from error


def _one_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("write a few words, on one line")
    return value


def _form_set(words: Iterable[object]) -> frozenset[Enum]:
    return frozenset(map(_word(ForeignForm), words))


def _path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("write the path of a file or folder")
    return value


EndpointField = Annotated[Endpoint, BeforeValidator(_endpoint)]
NetworkField = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
NetworksField = Annotated[tuple[NetworkField, ...], _list("192.0.2.1/32")]
DomainNameField = Annotated[str, BeforeValidator(_domain_name)]
ListenField = Annotated[tuple[EndpointField, ...], _list("127.0.0.1:10025")]
PathField = Annotated[str, AfterValidator(_path)]
PatternsField = Annotated[tuple[Annotated[Pattern, BeforeValidator(_pattern)], ...], _list("list-*@example.com")]
LocalPatternsField = Annotated[tuple[Annotated[str, BeforeValidator(_local_pattern)], ...], _list("postmaster")]
DayField = Annotated[Day, BeforeValidator(_day)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class KeysSettings(_Section):
    """Where the key rings are."""

    directory: PathField = Field(
        "keys", description="folder of the key ring files; mode 0700, owned by the service's user"
    )
    master_key_file: PathField | None = Field(
        None, description="file with the 32-octet master key (raw, or 64 hex digits) under which the rings are sealed"
    )
    master_key_credential: str | None = Field(
        None, description="name of the systemd credential that holds the master key, instead of `master_key_file`"
    )

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.master_key_file is not None and self.master_key_credential is not None:
            yield "master_key_credential", "master_key_file is set too: leave one out"


class _ListenerSettings(_Section):
    listen: ListenField = Field(description="addresses to listen on")
    listen_tls: ListenField = Field(
        (), description="addresses to listen on with TLS from the first octet (RFC 8314), as on port 465"
    )
    tls_certificate: PathField | None = Field(
        None, description="PEM file of the certificate and its chain; STARTTLS is offered with it"
    )
    tls_key: PathField | None = Field(
        None, description="PEM file of the key, mode 0600; not set: it is in `tls_certificate`"
    )
    tls_client_ca: PathField | None = Field(
        None, description="PEM file of the authorities whose certificates clients may show"
    )
    proxy_protocol_from: NetworksField = Field(
        (),
        description="networks of load balancers that say with a PROXY header who the client is",
    )
    xclient_from: NetworksField = Field((), description="networks of peers that may say with XCLIENT who the client is")
    xforward_from: NetworksField = Field(
        (), description="networks of peers that may say with XFORWARD who the client is"
    )
    next_hop: Annotated[tuple[EndpointField, ...], BeforeValidator(_next_hops), AfterValidator(_one_or_more)] = Field(
        description="where the mail goes on to: an address, or a list that is tried in order;"
        " inbound: `lmtp:` before an address of a mail store that speaks LMTP"
    )
    next_hop_identity: Annotated[Announce, _enum(Announce)] = Field(
        Announce.AUTO,
        description="how the next hop learns who the client is: xforward, xclient, proxy-v1, proxy-v2, off;"
        " auto: XFORWARD, else XCLIENT, where it offers them; where one is named and not offered, clients hear 451",
    )
    next_hop_tls: Annotated[NextHopTls, _enum(NextHopTls)] = Field(
        NextHopTls.OFF,
        description="off; opportunistic: STARTTLS if offered, unverified; required: STARTTLS, verified;"
        " implicit: TLS from the first octet, verified",
    )
    next_hop_tls_ca: PathField | None = Field(
        None, description="PEM file of the authorities that vouch for the next hop; not set: those of the system"
    )
    next_hop_tls_name: Annotated[str, BeforeValidator(_domain_name)] | None = Field(
        None, description="name that the next hop's certificate must hold; not set: the host of its address"
    )
    next_hop_credentials: PathField | None = Field(
        None, description="file, mode 0600, of two lines: user and password to log in with at the next hop"
    )

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        yield from self._listening_contradictions()
        yield from self._next_hop_contradictions()

    def _listening_contradictions(self) -> Iterator[tuple[str, str]]:
        if not self.listen and not self.listen_tls:
            yield "listen", "is empty: name at least one address"
        for option, endpoints in (("listen", self.listen), ("listen_tls", self.listen_tls)):
            for endpoint in endpoints:
                if endpoint.lmtp:
                    yield option, f"{endpoint} is LMTP, which is spoken to a mail store: leave lmtp: out"
        for endpoint in self.listen_tls:
            if endpoint in self.listen and (endpoint.path or endpoint.port != 0):
                yield "listen_tls", f"{endpoint} stands in listen too: leave one out"
        if self.tls_certificate is None:
            for option in ("listen_tls", "tls_key", "tls_client_ca"):
                if getattr(self, option):
                    yield option, "is of no use without a certificate: set tls_certificate too"

    def _next_hop_contradictions(self) -> Iterator[tuple[str, str]]:
        for endpoint in self.next_hop:
            plain = endpoint.model_copy(update={"lmtp": False})
            if plain in (*self.listen, *self.listen_tls) and (endpoint.path or endpoint.port != 0):
                yield "next_hop", f"{endpoint} is this proxy itself: mail would go round in a loop"
            if self.next_hop_tls.verifies and endpoint.path and self.next_hop_tls_name is None:
                yield "next_hop_tls", f"{endpoint} has no name to verify: set next_hop_tls_name"
        if not self.next_hop_tls.verifies:
            for option in ("next_hop_tls_ca", "next_hop_tls_name"):
                if getattr(self, option) is not None:
                    yield option, "nothing is verified: set next_hop_tls to required or implicit, or leave it out"
            far = next((endpoint for endpoint in self.next_hop if not endpoint.local), None)
            if self.next_hop_credentials is not None and far is not None:
                said = f"the password would be for all to read on the way to {far}"
                yield "next_hop_credentials", f"{said}: set next_hop_tls to required or implicit"


class ClientCertificate(_Section):
    """A certificate with which clients may send, and what for."""

    name: Annotated[str, BeforeValidator(_certificate_name)] = Field(
        description="DNS name in the certificate's subjectAltName: exact, or *.example.com for any one label before it"
    )
    domains: Annotated[frozenset[str], _list("example.com", _domain_name_set)] = Field(
        frozenset(), description="domains of yours whose mail it may send; empty: all"
    )
    tenant: Annotated[str, AfterValidator(_guid)] | None = Field(
        None,
        description="Exchange Online tenant id that must stand in X-MS-Exchange-CrossTenant-Id;"
        " against other tenants, which show the same certificate",
    )

    @property
    def spellings(self) -> frozenset[bytes]:
        """The domains; an internationalised one under both of its spellings."""
        return frozenset(spelling for name in self.domains for spelling in _spellings(name))


class OutboundSettings(_ListenerSettings):
    """The proxy that signs."""

    clients: Annotated[tuple[NetworkField, ...], _list("127.0.0.0/8")] = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="networks whose mail is taken and signed; any other client is refused with 554 5.7.1",
    )
    client_certificates: Annotated[tuple[ClientCertificate, ...], _tables("outbound.client_certificates")] = Field(
        (), description="tables, one for each certificate whose holder is taken for a client of yours"
    )
    require_local_source: bool = Field(
        default=False,
        description="sign only what a peer of `xforward_from` announces with XFORWARD SOURCE=LOCAL;"
        " against signing what is only forwarded",
    )
    exempt_own_domains: bool = Field(
        default=False,
        description="leave mail to domains of yours unsigned; for sites whose internal mail shall show no tag",
    )

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        yield from super()._contradictions()
        for endpoint in self.next_hop:
            if endpoint.lmtp:
                yield "next_hop", f"{endpoint}: LMTP is delivery: the outbound proxy needs a queue behind it"
        if self.client_certificates and self.tls_client_ca is None:
            yield "client_certificates", "no client is asked for a certificate: set tls_client_ca"
        if self.require_local_source and not self.xforward_from:
            yield "require_local_source", "nobody's XFORWARD is believed: name the peers in xforward_from"


class InboundSettings(_ListenerSettings):
    """The proxy that verifies."""

    relay_domains: Annotated[frozenset[str], _list("hosted.example", _domain_name_set)] = Field(
        frozenset(), description="hosted domains whose mail passes unsigned and unjudged"
    )
    max_connections_per_client: int = Field(
        1000,
        ge=0,
        description="connections at once from one address, in each worker; 0: as many as `max_connections`; against one"
        " client that takes them all",
    )
    exempt_clients: NetworksField = Field(
        (),
        description="networks whose forged bounces are not judged; for servers of your own that answer to senders"
        " whose mail leaves unsigned",
    )


RefinedField = Annotated[Disposition, _enum(Disposition, _ON_FORGED)] | None


class DomainSettings(_Section):
    """What is wanted for one domain."""

    on_forged: Annotated[Disposition, _enum(Disposition, _ON_FORGED)] = Field(
        Disposition.DISCARD, description="what a forged bounce gets: discard, reject, quarantine, mark or pass"
    )
    on_untagged: RefinedField = Field(
        None, description="what a bounce without a tag gets; not set: `on_forged`; for a way out that is not signed yet"
    )
    on_malformed: RefinedField = Field(
        None, description="what a bounce gets whose tag is none; not set: `on_forged`; for peers that damage addresses"
    )
    on_unknown_key: RefinedField = Field(
        None, description="what a bounce gets whose key is unknown; not set: `on_forged`; for a key that was lost"
    )
    on_bad_signature: RefinedField = Field(
        None,
        description="what a bounce gets whose tag does not fit; not set: `on_forged`; for what is surely forged",
    )
    on_expired: RefinedField = Field(
        None, description="what a bounce gets whose tag has expired; not set: `on_forged`; for bounces that come late"
    )
    rescue: bool = Field(
        default=False,
        description="let a bounce without a tag pass that answers a message which its recipient sent, as `[ledger]`"
        " knows it: receipts, vacation notices, answers of calendars",
    )
    exempt_recipients: LocalPatternsField = Field(
        ("postmaster",),
        description="users, with `*` for any part, to whom bounces without a tag are not judged; RFC 5321 section 4.5.1"
        " wants `postmaster` to be reached",
    )
    leave_forms: Annotated[frozenset[ForeignForm], _list("srs", _form_set)] = Field(
        frozenset(),
        description="address forms of other systems that are neither signed nor judged:"
        " srs, exchange-srs, cisco, barracuda, sparkpost",
    )
    on_bounce_with_sender: RefinedField = Field(
        None,
        description="what a bounce without a good tag gets that has a sender, and is known by that or by its header;"
        " replies are marked at most; not set: mail with a sender is not judged",
    )
    exempt_senders: PatternsField = Field(
        (),
        description="senders whose mail is not judged as a bounce, neither for them nor for its header; for reports"
        " that come from `postmaster@`; of use with `on_bounce_with_sender` only",
    )
    on_listed: Annotated[Disposition, _enum(Disposition, _ON_LISTED)] | None = Field(
        None, description="as `[dnsbl] on_listed`, for this domain; not set: as there"
    )
    rollout: Literal["off", "auto"] = Field(
        "off", description="auto: judging is switched on step by step, see [rollout]; off: it is in force at once"
    )
    case: Annotated[Case, _enum(Case)] | None = Field(
        None, description="as `[tags] case`, for this domain; not set: as there"
    )
    placement: Annotated[Placement, _enum(Placement)] | None = Field(
        None, description="as `[tags] placement`, for this domain; not set: as there"
    )
    scheme: Annotated[Scheme, _enum(Scheme)] | None = Field(
        None, description="as `[tags] scheme`, for this domain; not set: as there"
    )
    accept_draft_until: DayField | None = Field(
        None, description="as `[tags] accept_draft_until`, for this domain; not set: as there"
    )

    @property
    def by_verdict(self) -> dict[Verdict, Disposition]:
        """What is wanted for some verdicts instead of `on_forged`."""
        wanted = {
            Verdict.UNTAGGED: self.on_untagged,
            Verdict.MALFORMED: self.on_malformed,
            Verdict.UNKNOWN_KEY: self.on_unknown_key,
            Verdict.BAD_SIGNATURE: self.on_bad_signature,
            Verdict.EXPIRED: self.on_expired,
        }
        return {verdict: disposition for verdict, disposition in wanted.items() if disposition is not None}


class ExemptionSettings(_Section):
    """Mail that leaves unsigned on purpose: of each kind that is named, one must fit."""

    reason: Annotated[str, AfterValidator(_one_line)] = Field(
        description="why its mail is exempt; stands in the journal: a list that knows its senders, a partner's filter"
    )
    owner: Annotated[str, AfterValidator(_one_line)] | None = Field(
        None, description="who asked for it, and can say whether it is still needed; stands in the journal"
    )
    until: DayField | None = Field(
        None, description="last day on which it counts, as in 2027-03-31; for exemptions that shall not be forgotten"
    )
    senders: PatternsField = Field(
        (), description="senders of yours; for a program that cannot bear a tag; bounces to them are not judged then"
    )
    clients: NetworksField = Field((), description="networks of clients; for a server whose mail needs no tag")
    recipients: PatternsField = Field(
        (),
        description="recipients; for lists and peers that know senders by their address; MAIL then waits for the first"
        " RCPT, and recipients of the other kind hear `452 4.5.3`",
    )

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if not (self.senders or self.clients or self.recipients):
            yield "senders", "nobody is named: set senders, clients or recipients"

    @property
    def exemption(self) -> Exemption:
        """The settings as the policy takes them."""
        return Exemption(self.reason, self.owner or "", self.until, self.senders, self.clients, self.recipients)


class DnsSettings(_Section):
    """Who answers questions to the DNS."""

    servers: Annotated[tuple[Annotated[EndpointField, AfterValidator(_dns_server)], ...], _list("127.0.0.1:53")] = (
        Field((), description="addresses of the DNS servers to ask; empty: those of /etc/resolv.conf")
    )


class DnsblSettings(_Section):
    """Lists of servers that send backscatter, and what they may do to a bounce."""

    zones: Annotated[tuple[DomainNameField, ...], _list("ips.backscatterer.org")] = Field(
        (),
        description="DNS zones of lists that are asked about the client of a bounce, and of nothing else; empty: none",
    )
    on_listed: Annotated[Disposition, _enum(Disposition, _ON_LISTED)] = Field(
        Disposition.QUARANTINE,
        description="what a bounce without a tag gets at least if a list has its client: discard, reject or quarantine;"
        " `on_forged` stays where it is worse",
    )
    seconds: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = Field(
        2, description="seconds that a bounce waits for all lists together; after that nobody is listed"
    )


class StateSettings(_Section):
    """Where what the service writes is kept."""

    directory: PathField = Field(
        "var", description="folder of the journal and the quarantine; writable by the service's user only"
    )
    quarantine_max_mib: int = Field(
        1024,
        ge=0,
        description="MiB that the quarantine may take; beyond that forged bounces are discarded, and recorded;"
        " 0 keeps none",
    )

    @property
    def quarantine_max_octets(self) -> int:
        """What the quarantine may take, in octets."""
        return self.quarantine_max_mib * _MEBIBYTE


class GuessingSettings(_Section):
    """What is done about clients that try tags."""

    max_failures: int = Field(
        0,
        ge=0,
        le=1000,
        description="failed tags in bounces from a network (/24, IPv6 /48) to a recipient, after which good ones go to"
        " the quarantine; 0: off; in each worker; against guessing",
    )
    window_seconds: Seconds = Field(
        3600,
        description="seconds for which failed tags count after the first, and from `max_failures` on after the last",
    )


class JournalSettings(_Section):
    """How the journal is written."""

    fsync: bool = Field(
        default=False,
        description="wait until the disk has the record before the reply; survives a power cut, costs a disk write",
    )


class LedgerSettings(_Section):
    """What is remembered of the mail that is sent, so that genuine replies to plain addresses can be told."""

    enabled: bool = Field(
        default=False,
        description="keep the ledger: hashes of Message-IDs, senders and recipients of mail that is sent, about 40"
        " octets a message; for `rescue`, `on_too_long` and exemptions",
    )
    keep_days: int = Field(
        30,
        ge=1,
        le=366,
        description="days for which a message is remembered; replies that come later are judged as any",
    )
    max_mib: int = Field(
        2048, ge=1, description="MiB that the ledger may take; beyond that the oldest days go, and not today's"
    )
    max_rescues: int = Field(
        100,
        ge=1,
        description="messages a day (UTC) that are let through to one recipient for what the ledger knows; against"
        " whoever has read both Message-ID and recipient in an archive",
    )
    max_bounces_per_recipient: int = Field(
        0,
        ge=0,
        le=1000,
        description="bounces to a tag for each recipient of mail that left with it, and 10 more; beyond that those pass"
        " that answer mail on the ledger, and the rest goes to the quarantine; 0: any number; against a stolen tag",
    )

    @property
    def max_octets(self) -> int:
        """What the ledger may take, in octets."""
        return self.max_mib * _MEBIBYTE


class SmtpSettings(_Section):
    """How clients are served, and what a client may cost."""

    hostname: str = Field("", description="name in greeting and EHLO; empty: the system's host name")
    bare_newlines: Literal["normalize", "reject"] = Field(
        "normalize", description="bare CR, bare LF and NUL in a message: made harmless, or the message is refused"
    )
    drain_seconds: Seconds = Field(10, description="seconds that transactions under way get to end after SIGTERM")
    command_seconds: Seconds = Field(
        300,
        description="seconds a client may take for a command (RFC 5321 section 4.5.3.2.7); against idle connections",
    )
    greeting_seconds: Seconds = Field(
        60, description="seconds a client may take for its first command; against connections that say nothing"
    )
    data_seconds: Seconds = Field(
        180, description="seconds between two pieces of a message (RFC 5321 section 4.5.3.2.5); against stalled senders"
    )
    message_seconds: Seconds = Field(
        3600,
        description="seconds a whole message may take; then the client hears 421 4.4.2, and keeps it; against senders"
        " of an octet now and then",
    )
    session_seconds: Seconds = Field(
        86_400,
        description="seconds a connection may last; then the client hears 421 4.4.2 once it has no transaction, or one"
        " that has lasted `message_seconds` more; against connections without end",
    )
    max_connections: int = Field(
        2000,
        ge=1,
        description="connections at once on each listener, in each worker; fewer where the system's limit on open files"
        " allows no more; against floods",
    )
    max_connections_per_client: int = Field(
        0, ge=0, description="connections at once from one address; 0: as many as `max_connections`"
    )
    max_recipients: int = Field(
        1000,
        ge=100,
        description="recipients of a transaction (RFC 5321 section 4.5.3.1.8 wants 100); against memory use",
    )
    max_command_octets: int = Field(
        4096, ge=1024, description="octets of a command line with its parameters; against endless lines"
    )
    max_message_octets: int = Field(
        256 * _MEBIBYTE, ge=_MEBIBYTE, description="octets of a message; against endless messages"
    )
    max_idle_commands: int = Field(
        100,
        ge=10,
        description="commands in a row that bring no message nearer (NOOP, RSET, errors); against busy idling",
    )
    workers: int = Field(1, ge=1, le=64, description="processes that share each port; one uses one core")
    add_received: bool = Field(
        default=False, description="put a Received field before each message (RFC 5321 section 4.4); for tracing"
    )
    max_hops: int = Field(
        100,
        ge=10,
        description="Received fields of a message; one with more is refused with 554 5.4.6; against loops",
    )


class RolloutSettings(_Section):
    """How domains with `rollout = "auto"` are switched on."""

    observe_days: int = Field(7, ge=1, le=365, description="days for which every bounce passes, and is only judged")
    mark_days: int = Field(7, ge=1, le=365, description="days for which forged bounces are marked")
    quarantine_days: int = Field(
        7,
        ge=1,
        le=365,
        description="days for which forged bounces are quarantined; then `on_forged` and its kind are in force",
    )
    max_losses: int = Field(
        0, ge=0, description="genuine bounces that may be withheld, or would have been, before a step has failed"
    )
    on_loss: Annotated[OnLoss, _enum(OnLoss)] = Field(
        OnLoss.BACK, description="what a step that has failed leads to: back: one step; stop: no further by itself"
    )

    @property
    def plan(self) -> Plan:
        """The settings as the rollout takes them."""
        return Plan(self.observe_days, self.mark_days, self.quarantine_days, self.max_losses, self.on_loss)


class ProbeSettings(_Section):
    """How the whole loop is probed."""

    sender: Annotated[ProbeSender, BeforeValidator(_probe_sender)] | None = Field(
        None,
        description="addresses of a domain of yours that nobody else uses, as in `probe+*@example.com`: each probe puts"
        " another word for the star; all of them must have a mailbox; not set: there are no probes",
    )
    recipient: Annotated[Mailbox, BeforeValidator(_mailbox)] | None = Field(
        None,
        description="address at another site that does not exist, and whose server takes mail for it and bounces it"
        " later; ask that site",
    )
    via: EndpointField | None = Field(
        None,
        description="where probes are handed in; not set: the first address of `[outbound] listen`; a submission server"
        " that asks for no login is probed along with the rest",
    )
    wait_seconds: Seconds = Field(
        3600, description="seconds that the bounce may take; then the loop is broken; greylisting takes its time"
    )
    metrics_file: PathField | None = Field(
        None, description="file that the metrics go to, for the textfile collector of node_exporter"
    )

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.sender is not None and self.recipient is None:
            yield "sender", "is of no use without a recipient: set probe.recipient too"
        if self.recipient is not None and self.sender is None:
            yield "recipient", "is of no use without a sender: set probe.sender too"
        if self.via is not None and self.via.lmtp:
            yield "via", f"{self.via} is LMTP, which is spoken to a mail store: leave lmtp: out"


class NextHopSettings(_Section):
    """How long the next hop may take. Each is a little under what a client waits, so that it hears 451, not nothing."""

    connect_seconds: Seconds = Field(30, description="seconds to connect, and again for the greeting and EHLO")
    command_seconds: Seconds = Field(270, description="seconds for the reply to MAIL, RCPT and RSET (clients wait 300)")
    data_seconds: Seconds = Field(
        110, description="seconds for the reply to DATA, and for each piece taken (clients wait 120)"
    )
    message_seconds: Seconds = Field(570, description="seconds for the reply to the message (clients wait 600)")
    idle_seconds: Seconds = Field(30, description="seconds for which an unused connection to the next hop is kept")
    backoff_seconds: Seconds = Field(
        30, description="seconds for which a next hop that is out of reach is passed over while another one answers"
    )


class TagsSettings(_Section):
    """How tags are written; all forms are always understood."""

    case: Annotated[Case, _enum(Case)] = Field(
        Case.FOLD,
        description="fold: letters are hashed in lower case; exact: as written, for keys shared with Exim or"
        " batv-tools",
    )
    placement: Annotated[Placement, _enum(Placement)] = Field(
        Placement.PREFIX, description="prefix: prvs=TAG=local@domain; subaddress: local+prvs=TAG@domain"
    )
    scheme: Annotated[Scheme, _enum(Scheme)] = Field(
        Scheme.DRAFT,
        description="draft: 24 bits of signature; strong: 40 bits, with prvs2= in place of prvs=, five octets longer;"
        " against guessing",
    )
    step: int = Field(
        1,
        ge=1,
        le=MAX_STEP_DAYS,
        description="days for which an address keeps one tag, from the next key on (`batv key rotate`);"
        " for greylisting and for lists that know their senders",
    )
    accept_draft_until: DayField | None = Field(
        None,
        description='last day on which the draft\'s tags are accepted under `scheme = "strong"`, as in 2027-03-31;'
        " until then they can be guessed as before; not set: always",
    )
    on_too_long: Literal["remember", "leave", "refuse"] = Field(
        "remember",
        description="mail from an address too long for a tag: remember: it goes unsigned, and where both proxies share"
        " a `[ledger]`, bounces to such addresses are judged but for those on it; leave: it goes unsigned, and its"
        " bounces are not judged; refuse: `550 5.1.7`; against forged bounces to such addresses",
    )

    @property
    def style(self) -> Style:
        """The settings as signing takes them."""
        return Style(self.case, self.placement, self.scheme)


class Settings(_Section):
    """All settings."""

    keys: KeysSettings = Field(default_factory=KeysSettings)
    outbound: OutboundSettings | None = None
    inbound: InboundSettings | None = None
    domains: dict[str, DomainSettings] = Field(default_factory=dict)
    state: StateSettings = Field(default_factory=StateSettings)
    journal: JournalSettings = Field(default_factory=JournalSettings)
    ledger: LedgerSettings = Field(default_factory=LedgerSettings)
    smtp: SmtpSettings = Field(default_factory=SmtpSettings)
    next_hop: NextHopSettings = Field(default_factory=NextHopSettings)
    tags: TagsSettings = Field(default_factory=TagsSettings)
    guessing: GuessingSettings = Field(default_factory=GuessingSettings)
    dns: DnsSettings = Field(default_factory=DnsSettings)
    dnsbl: DnsblSettings = Field(default_factory=DnsblSettings)
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    exemptions: Annotated[tuple[ExemptionSettings, ...], _tables("exemptions")] = ()

    @field_validator("domains", mode="before")
    @classmethod
    def _domain_names(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise _FormError(f"write a table for each domain: {_DOMAIN_TABLE}")
        names: dict[str, object] = {}
        for name, settings in value.items():
            if _own_domain_name(name) in names:
                raise ValueError(f"{name.lower()} stands there twice, in capitals and in small letters")
            names[name.lower()] = settings
        return names

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.inbound is not None:
            for name in sorted(self.inbound.relay_domains & set(self.domains)):
                yield "inbound.relay_domains", f"{name} stands under domains too: leave one out"
        yield from self._nowhere_to_keep()
        for name, domain in self.domains.items():
            if domain.exempt_senders and domain.on_bounce_with_sender is None:
                place = f'domains."{name}".exempt_senders'
                yield place, "mail with a sender is not judged: set on_bounce_with_sender, or leave it out"
        yield from self._nothing_to_probe()
        policy = self.policy
        recipient = self.probe.recipient
        if recipient is not None and policy.for_domain(recipient.domain) is not None:
            yield "probe.recipient", f"{recipient} is of a domain of yours: name an address at another site"
        if self.outbound is not None:
            for number, certificate in enumerate(self.outbound.client_certificates):
                for name in sorted(certificate.domains):
                    if policy.for_domain(name.encode()) is None:
                        place = f"outbound.client_certificates.{number}.domains"
                        yield place, f"{name} is no domain of yours: add [domains.{json.dumps(name)}]"

    def _nothing_to_probe(self) -> Iterator[tuple[str, str]]:
        """Yield why no mail of a probe is signed, by its sender alone."""
        sender = self.probe.sender
        if sender is None:
            return
        domain = self.policy.for_domain(sender.domain)
        if domain is None:
            yield "probe.sender", f"{sender} is of no domain of yours: name an address of one that is signed"
            return
        hindrance = obstacle(sender.of("0" * WORD_DIGITS), (domain.style or self.tags.style).scheme)
        if hindrance is not None:
            yield "probe.sender", f"mail from {sender} is not signed: {hindrance.value}: name another address"

    def _nowhere_to_keep(self) -> Iterator[tuple[str, str]]:
        """Yield what is of no use without a ledger to look into, or without a quarantine that keeps what is found."""
        suspects = {
            "guessing.max_failures": self.guessing.max_failures,
            "ledger.max_bounces_per_recipient": self.ledger.max_bounces_per_recipient,
        }
        if not self.state.quarantine_max_mib:
            for name in (name for name, most in suspects.items() if most):
                yield name, "the quarantine keeps nothing: give state.quarantine_max_mib some room"
        if not self.ledger.enabled:
            for name, domain in self.domains.items():
                if domain.rescue:
                    yield f'domains."{name}".rescue', "there is no ledger to look into: set ledger.enabled"
            if self.ledger.max_bounces_per_recipient:
                yield "ledger.max_bounces_per_recipient", "there is no ledger to count in: set ledger.enabled"

    @property
    def automatic(self) -> dict[bytes, str]:
        """The spellings of the domains that are switched on step by step, with their names in the settings."""
        names = (name for name, wanted in self.domains.items() if wanted.rollout == "auto")
        return {spelling: name for name in names for spelling in _spellings(name)}

    @property
    def policy(self) -> Policy:
        """What the settings want for each domain; an internationalised one under both of its spellings."""
        domains = {
            spelling: policy
            for name, settings in self.domains.items()
            for policy in (self._domain_policy(settings),)
            for spelling in _spellings(name)
        }
        relayed = self.inbound.relay_domains if self.inbound is not None else frozenset[str]()
        return Policy(
            domains,
            frozenset(spelling for name in relayed for spelling in _spellings(name)),
            Exemptions(each.exemption for each in self.exemptions),
            exempt_own_domains=self.outbound is not None and self.outbound.exempt_own_domains,
            exempt_clients=self.inbound.exempt_clients if self.inbound is not None else (),
            remembers=self._remembers,
        )

    @property
    def _remembers(self) -> bool:
        # Of what leaves by another host alone, the ledger of this one knows nothing.
        return self.ledger.enabled and self.outbound is not None

    def _domain_policy(self, domain: DomainSettings) -> DomainPolicy:
        style = Style(
            domain.case or self.tags.case, domain.placement or self.tags.placement, domain.scheme or self.tags.scheme
        )
        strong = style.scheme is Scheme.STRONG
        return DomainPolicy(
            domain.on_forged,
            domain.leave_forms,
            self._on_listed(domain),
            domain.by_verdict,
            tuple(map(Pattern.parse_local, domain.exempt_recipients)),
            refuse_too_long=self.tags.on_too_long == "refuse",
            remember_too_long=self.tags.on_too_long == "remember" and self._remembers,
            style=style,
            rescue=domain.rescue,
            on_bounce_with_sender=domain.on_bounce_with_sender,
            exempt_senders=domain.exempt_senders,
            draft_until=(domain.accept_draft_until or self.tags.accept_draft_until) if strong else None,
        )

    def _on_listed(self, domain: DomainSettings) -> Disposition | None:
        return (domain.on_listed or self.dnsbl.on_listed) if self.dnsbl.zones else None


SECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "keys": KeysSettings,
    "outbound": OutboundSettings,
    "inbound": InboundSettings,
    "domains": DomainSettings,
    "state": StateSettings,
    "journal": JournalSettings,
    "ledger": LedgerSettings,
    "smtp": SmtpSettings,
    "next_hop": NextHopSettings,
    "tags": TagsSettings,
    "guessing": GuessingSettings,
    "dns": DnsSettings,
    "dnsbl": DnsblSettings,
    "rollout": RolloutSettings,
    "probe": ProbeSettings,
}
"""The options of each table; `domains` has one table for each domain."""

ARRAYS: Final[Mapping[str, type[BaseModel]]] = {
    "outbound.client_certificates": ClientCertificate,
    "exemptions": ExemptionSettings,
}
"""The options of each table that may be repeated, with its name in double brackets."""


def _spellings(name: str) -> set[bytes]:
    if name.startswith("*."):
        return {b"*." + spelling for spelling in _spellings(name[2:])}
    spellings = {name.encode()}
    if not name.isascii() or "xn--" in name:
        import idna  # noqa: PLC0415 -- its tables cost memory that few sites need

        try:
            ascii_form = idna.encode(name, uts46=True)
            spellings |= {ascii_form, idna.decode(ascii_form).encode()}
        except idna.IDNAError:
            pass  # Not a name that the rules for internationalised domains know: it stands for itself alone.
    return spellings


def parse(text: str, filename: str, base: str) -> Settings:
    """Return the settings that a TOML text holds.

    Args:
        text: the text.
        filename: its name, for messages.
        base: folder to which relative paths belong, absolute.

    Raises:
        ConfigError: one line for each error, `FILE:LINE: key: what is wrong`.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(str(error), text, filename) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{filename}: a number is too long, or lists are nested too deep", "mend it") from error
    lines = dict(_lines(text))
    found: list[tuple[int, str]] = []
    settings = None
    try:
        settings = Settings.model_validate(table)
    except ValidationError as error:
        found += [_located(detail, lines) for detail in error.errors(include_url=False)]
    if table.get("domains", {}) == {}:
        # Without one, nothing is signed and nobody's mail is taken: no site can mean that.
        found.append((lines.get(("domains",), 0), f"domains: there is none: write {_DOMAIN_TABLE} for each of yours"))
    if settings is None or found:
        messages = [f"{filename}:{line}: {said}" if line else f"{filename}: {said}" for line, said in sorted(found)]
        raise ConfigError("\n".join(messages))
    return _anchored(settings, base)


def defaults(base: str | None = None) -> Settings:
    """Return the settings that hold where a file says nothing. They are no site's: no proxy, no domain.

    Args:
        base: folder to which relative paths belong, absolute; None leaves them relative.
    """
    return Settings() if base is None else _anchored(Settings(), base)


def _anchored(settings: Settings, base: str) -> Settings:
    def absolute(path: str) -> str:
        return path if path.startswith("/") else f"{base}/{path}"

    changes: dict[str, Any] = {
        "keys": _with_paths(settings.keys, ("directory", "master_key_file"), absolute),
        "state": _with_paths(settings.state, ("directory",), absolute),
    }
    probe = _with_paths(settings.probe, ("metrics_file",), absolute)
    if settings.probe.via is not None:
        probe = probe.model_copy(update={"via": _anchored_endpoint(settings.probe.via, absolute)})
    changes["probe"] = probe
    for name in ("outbound", "inbound"):
        side = getattr(settings, name)
        if side is None:
            continue
        endpoints = {
            option: tuple(_anchored_endpoint(endpoint, absolute) for endpoint in getattr(side, option))
            for option in ("listen", "listen_tls", "next_hop")
        }
        changes[name] = _with_paths(side.model_copy(update=endpoints), _LISTENER_PATHS, absolute)
    return settings.model_copy(update=changes)


def _with_paths(section: _Section, options: Iterable[str], absolute: Callable[[str], str]) -> _Section:
    paths = {option: getattr(section, option) for option in options}
    return section.model_copy(update={option: absolute(path) for option, path in paths.items() if path is not None})


def _anchored_endpoint(endpoint: Endpoint, absolute: Callable[[str], str]) -> Endpoint:
    return endpoint.model_copy(update={"path": absolute(endpoint.path)}) if endpoint.path else endpoint


def _located(detail: Mapping[str, Any], lines: Mapping[tuple[str, ...], int]) -> tuple[int, str]:
    """Return the line of an error that pydantic found, and what is said of it."""
    where = tuple(str(part) for part in detail["loc"] if part != "[key]")
    # A key may be missing altogether, or be an item of a list: then the nearest table or key above it is named.
    line = next((lines[where[:length]] for length in range(len(where), 0, -1) if where[:length] in lines), 0)
    if not line:
        # Of a table within a table only the inner one has a line.
        line = next((number for path, number in lines.items() if path[: len(where)] == where), 0)
    key = ".".join(f'"{part}"' if "." in part else part for part in where) or "settings"
    return line, f"{key}: {_said(detail, where)}"


def _said(detail: Mapping[str, Any], where: tuple[str, ...]) -> str:
    limits = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _no_such_option(where, detail["input"])
        case "value_error":
            text = str(limits["error"])
            return text[:1].lower() + text[1:]
        case "greater_than":
            return f"must be more than {limits['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {limits['ge']}"
        case "less_than_equal":
            return f"must be at most {limits['le']}"
        case "literal_error":
            return f"write one of these words, in quotes: {limits['expected']}".replace("'", "").replace(" or ", ", ")
        case "model_type" if ".".join(where[:-1]) in ARRAYS:
            return f"write a table: a line [[{'.'.join(where[:-1])}]], and its options on the lines below"
        case "model_type":
            head = ".".join(part if _BARE_KEY.fullmatch(part) else json.dumps(part) for part in where)
            return f"write a table: a line [{head}], and its options on the lines below"
        case kind:
            return _SAID.get(kind, "this value cannot stand here: see 'batv config show --defaults'")


def _no_such_option(where: tuple[str, ...], value: object) -> str:
    *tables, option = where
    if tables[:1] == ["domains"] and isinstance(value, dict):
        # [domains.example.com] is a table `com` in a table `example` to TOML.
        parts, inner = [*tables[1:], option], value
        while below := [(name, item) for name, item in inner.items() if isinstance(item, dict)]:
            name, inner = below[0]
            parts.append(name)
        return f'put the domain in quotes: [domains."{".".join(parts)}"]'
    repeated = ARRAYS.get(".".join(tables[:-1]))
    model: type[BaseModel] = repeated or (SECTIONS[tables[0]] if tables else Settings)
    near = get_close_matches(option.lower(), model.model_fields, 1)
    meant = f"did you mean '{near[0]}'? " if near else ""
    return f"no such option: {meant}'batv config show --defaults' lists those there are"


def _syntax_error(said: str, text: str, filename: str) -> ConfigError:
    place = _PLACE.search(said)
    line = int(place["line"]) if place is not None else 0
    where = f"{filename}:{line}" if line else filename
    meant = _meant(text.splitlines()[line - 1 : line]) if line else None
    if meant is not None:
        return ConfigError(f"{where}: {meant[0]}", f"write {meant[1]}")
    what = next((words for beginning, words in _TWICE.items() if said.startswith(beginning)), None)
    if what is None:
        what = f"{said[: place.start()]} in column {place['column']}" if place is not None else said
        what = what[:1].lower() + what[1:]
    return ConfigError(f"{where}: {what}", "mend the TOML syntax")


def _meant(lines: Sequence[str]) -> tuple[str, str] | None:
    """Return what a line `key = value` lacks and how to write it, where its value is all that is wrong with it."""
    match = _ASSIGNMENT.fullmatch(lines[0]) if lines else None
    if match is None:
        return None
    value = match["value"]
    if value.lower() in {"true", "false"}:
        return "true and false are written in small letters", f"{match['key']} = {value.lower()}"
    if _DAY.fullmatch(value):
        return f"{value} is no day", f"{match['key']} = 2027-03-31, or whichever you mean"
    listed = value.startswith("[") and value.endswith("]")
    words = [word.strip() for word in value[1:-1].split(",")] if listed else [value]
    if any(not word or '"' in word or "'" in word for word in words):
        return None
    text = ", ".join(json.dumps(word, ensure_ascii=False) for word in words)
    candidate = f"{match['key']} = [{text}]" if listed else f"{match['key']} = {text}"
    try:
        tomllib.loads(candidate)
    except tomllib.TOMLDecodeError:
        return None
    return "text needs quotes", candidate


def _lines(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield each key of a TOML text with the line on which it is set.

    tomllib does not tell lines, so each line that looks like a table's head or a key is handed to it alone; what it
    cannot read by itself (the inside of a list or of a long string) is passed over. A table that is repeated has its
    number, from 0, behind its name.
    """
    table: tuple[str, ...] = ()
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        head = stripped.startswith("[")
        candidate = stripped if head else stripped.partition("=")[0] + "= 0"
        if not stripped or stripped.startswith("#") or (not head and "=" not in stripped):
            continue
        try:
            keys = tuple(_only_path(tomllib.loads(candidate)))
        except tomllib.TOMLDecodeError:
            continue
        if not head:
            yield (*table, *keys), number
            continue
        table = keys
        if stripped.startswith("[["):
            seen[keys] = seen.get(keys, -1) + 1
            if not seen[keys]:
                yield keys, number
            table = (*keys, str(seen[keys]))
        yield table, number


def _only_path(table: Mapping[str, Any]) -> Iterator[str]:
    while isinstance(table, dict) and table:
        key, table = next(iter(table.items()))
        yield key
