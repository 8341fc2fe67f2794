r"""What octets mean, read from the standards one octet at a time: slow, obvious, and without a line of the product.

Each function reads whole octets; how they come in pieces is the product's matter. Where the product is wider than a
standard, and says so, the function is as wide, and its docstring names it.

Source: RFC 5321 sections 4.1.1, 4.1.2, 4.2, 4.4 and 4.5.2; RFC 6531 section 3.3; RFC 3461 section 4 (xtext);
draft-levine-smtp-batv-01 sections 3 and 4; XCLIENT_README and XFORWARD_README of Postfix; HAProxy's proxy-protocol.txt.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple

__all__ = [
    "Argument",
    "Ends",
    "Scanned",
    "Tagged",
    "command",
    "holds_tag",
    "looks_tagged",
    "mail",
    "mailbox",
    "marked",
    "names_a_relay",
    "parameters_of",
    "peeked",
    "proxy_header",
    "rcpt",
    "replies",
    "scanned",
    "tagged",
    "unstuffed",
    "xclient",
    "xforward",
]

_DIGITS: Final = frozenset(b"0123456789")
_LETTERS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_HEX_DIGITS: Final = _DIGITS | frozenset(b"ABCDEFabcdef")
_ATEXT: Final = _DIGITS | _LETTERS | frozenset(b"!#$%&'*+-/=?^_`{|}~")
_PRINTABLE: Final = frozenset(range(32, 127))
_WHITE: Final = frozenset(b" \t")


# Commands.


def command(line: bytes) -> bytes | None:
    """Return the verb of a line, in upper case; None if it is no command at all.

    Args:
        line: the octets before a line feed. A command ends with CRLF and holds no control character.
    """
    if line[-1:] != b"\r" or any(octet < 32 or octet == 127 for octet in line[:-1]):
        return None
    return _upper(line[:-1].split(b" ")[0])


# Mailboxes, paths and parameters.


class Argument(NamedTuple):
    """What MAIL or RCPT names.

    Attributes:
        path: from `<` to `>`, as written.
        local: the local part; None for `<>` and `<Postmaster>`.
        domain: the domain; None for the same.
        parameters: each parameter as written.
    """

    path: bytes
    local: bytes | None
    domain: bytes | None
    parameters: tuple[bytes, ...]


def mailbox(octets: bytes) -> tuple[bytes, bytes] | None:
    """Return local part and domain; None if the octets are no mailbox.

    Wider than RFC 5321: dots stand anywhere in an unquoted local part, a label may hold an underscore, and no length
    is enforced.
    """
    at = _after_local_part(octets, 0)
    if at is None or octets[at : at + 1] != b"@" or _after_domain(octets, at + 1) != len(octets):
        return None
    return octets[:at], octets[at + 1 :]


def mail(argument: bytes) -> Argument | None:
    """Return what follows `MAIL `, taken apart; None if it breaks the grammar or has a path of more than 1 KiB.

    Wider than RFC 5321: one space may stand before the path, and the value of a parameter may hold anything but a
    space, or nothing.
    """
    return _argument(argument, b"FROM:", b"<>")


def rcpt(argument: bytes) -> Argument | None:
    """Return what follows `RCPT `, taken apart, as `mail` does."""
    return _argument(argument, b"TO:", b"<POSTMASTER>")


def names_a_relay(argument: bytes) -> bool:
    """Whether what follows `RCPT ` has a mailbox with another `@` and domain behind it, or several, and no route."""
    if _upper(argument[:3]) != b"TO:":
        return False
    begin = 4 if argument[3:4] == b" " else 3
    end = _after_local_part(argument, begin + 1) if argument[begin : begin + 1] == b"<" else None
    domains = 0
    while end is not None and argument[end : end + 1] == b"@":
        end = _after_domain(argument, end + 1)
        domains += 1
    return (
        end is not None
        and domains > 1
        and argument[end : end + 1] == b">"
        and _parameters(argument[end + 1 :]) is not None
    )


def parameters_of(argument: Argument) -> list[tuple[bytes, bytes]]:
    """Return keyword, in upper case, and value of each parameter; the value is empty where there is none."""
    pairs = []
    for parameter in argument.parameters:
        keyword, _, value = parameter.partition(b"=")
        pairs.append((_upper(keyword), value))
    return pairs


def _argument(argument: bytes, keyword: bytes, special: bytes) -> Argument | None:
    if _upper(argument[: len(keyword)]) != keyword:
        return None
    begin = len(keyword)
    if argument[begin : begin + 1] == b" ":
        begin += 1
    if _upper(argument[begin : begin + len(special)]) == special:
        end = begin + len(special)
        local = domain = None
    else:
        found = _path(argument, begin)
        if found is None:
            return None
        local, domain, end = found
    if end > 1024:
        return None
    parameters = _parameters(argument[end:])
    return None if parameters is None else Argument(argument[begin:end], local, domain, parameters)


def _path(octets: bytes, at: int) -> tuple[bytes, bytes, int] | None:
    """Return local part, domain, and where the path ends."""
    if octets[at : at + 1] != b"<":
        return None
    at += 1
    while octets[at : at + 1] == b"@":  # a source route: @one,@two:
        after = _after_domain(octets, at + 1)
        if after is None or octets[after : after + 1] not in {b",", b":"}:
            return None
        at = after + 1
        if octets[after : after + 1] == b":":
            break
        if octets[at : at + 1] != b"@":
            return None
    after_local = _after_local_part(octets, at)
    if after_local is None or octets[after_local : after_local + 1] != b"@":
        return None
    after_domain = _after_domain(octets, after_local + 1)
    if after_domain is None or octets[after_domain : after_domain + 1] != b">":
        return None
    return octets[at:after_local], octets[after_local + 1 : after_domain], after_domain + 1


def _parameters(octets: bytes) -> tuple[bytes, ...] | None:
    if octets and not octets.startswith(b" "):
        return None
    parameters = tuple(word for word in octets.split(b" ") if word)
    return parameters if all(map(_is_parameter, parameters)) else None


def _is_parameter(word: bytes) -> bool:
    keyword = word.partition(b"=")[0]
    return (
        len(keyword) > 0
        and keyword[0] in _LETTERS | _DIGITS
        and all(octet in _LETTERS | _DIGITS | {ord("-")} for octet in keyword)
    )


def _after_local_part(octets: bytes, at: int) -> int | None:
    if octets[at : at + 1] != b'"':
        begin = at
        while (after := _after_one_of(octets, at, _ATEXT | {ord(".")})) is not None:
            at = after
        return at if at > begin else None
    at += 1
    while at < len(octets):
        if octets[at] == ord('"'):
            return at + 1
        if octets[at] == ord("\\"):
            if octets[at + 1 : at + 2] == b"" or octets[at + 1] not in _PRINTABLE:
                return None
            at += 2
            continue
        after = _after_one_of(octets, at, _PRINTABLE)
        if after is None:
            return None
        at = after
    return None


def _after_domain(octets: bytes, at: int) -> int | None:
    if octets[at : at + 1] == b"[":
        begin = at = at + 1
        while at < len(octets) and (33 <= octets[at] <= 90 or 94 <= octets[at] <= 126):
            at += 1
        return at + 1 if at > begin and octets[at : at + 1] == b"]" else None
    while True:
        begin = at
        while (after := _after_one_of(octets, at, _LETTERS | _DIGITS | frozenset(b"-_"))) is not None:
            at = after
        label = octets[begin:at]
        if not label or label.startswith(b"-") or label.endswith(b"-"):
            return None
        if octets[at : at + 1] != b".":
            return at
        at += 1


def _after_one_of(octets: bytes, at: int, allowed: frozenset[int]) -> int | None:
    """Return where the character ends that begins there, if it is one of those allowed, or beyond ASCII."""
    if at >= len(octets):
        return None
    if octets[at] < 128:
        return at + 1 if octets[at] in allowed else None
    for length in (2, 3, 4):
        try:
            if len(octets[at : at + length].decode("utf-8")) == 1:
                return at + length
        except UnicodeDecodeError:
            continue
    return None


# Tags.


_TAG_TYPES: Final = {b"PRVS=": 6, b"PRVS2=": 10}
"""How many digits of signature a tag of each type has: the draft's scheme, and our own strong one."""


class Tagged(NamedTuple):
    """A local part with a tag, taken apart.

    Attributes:
        key_number: the digit K.
        stamp: the digits DDD.
        signature: the digits of the signature, in lower case.
        rest: the local part without the tag.
        prefix: whether the tag stood before the rest, else behind it.
    """

    key_number: int
    stamp: bytes
    signature: bytes
    rest: bytes
    prefix: bool


def tagged(local: bytes) -> Tagged | None:
    """Return the tag of a local part and the rest; None where there is none.

    Args:
        local: a local part that follows the grammar, with its quotes.
    """
    quoted = local[:1] == b'"'
    inner = local[1:-1] if quoted else local

    def whole(rest: bytes) -> bytes | None:
        """Return the rest as a local part; None if it is none."""
        return b'"' + rest + b'"' if quoted else rest or None

    for kind, digits in _TAG_TYPES.items():
        begin = len(kind)
        end = begin + 4 + digits
        value = inner[begin:end]
        rest = whole(inner[end + 1 :])
        if _upper(inner[:begin]) == kind and _is_tag(value, digits) and inner[end : end + 1] == b"=" and rest:
            return Tagged(int(value[:1]), value[1:4], _lower(value[4:]), rest, prefix=True)
    for kind, digits in _TAG_TYPES.items():
        value = inner[-4 - digits :]
        begin = len(inner) - len(b"+" + kind) - 4 - digits
        if begin < 0 or _upper(inner[begin : -4 - digits]) != b"+" + kind or not _is_tag(value, digits):
            continue
        rest = whole(inner[:begin])
        if rest and not (quoted and _ends_within_pair(inner[:begin])):
            return Tagged(int(value[:1]), value[1:4], _lower(value[4:]), rest, prefix=False)
    return None


def looks_tagged(local: bytes) -> bool:
    """Whether a local part starts like a tag, within its quotes."""
    return any(_upper(local.removeprefix(b'"')[: len(kind)]) == kind for kind in _TAG_TYPES)


def holds_tag(text: str) -> bool:
    """Whether a tag stands anywhere in a text, with whatever around it."""
    octets = text.encode("utf-8", "surrogatepass")
    return any(
        _upper(octets[at : at + len(kind)]) == kind
        and _is_tag(octets[at + len(kind) : at + len(kind) + 4 + digits], digits)
        for at in range(len(octets))
        for kind, digits in _TAG_TYPES.items()
    )


def _is_tag(value: bytes, digits: int) -> bool:
    return (
        len(value) == 4 + digits
        and all(octet in _DIGITS for octet in value[:4])
        and all(octet in _HEX_DIGITS for octet in value[4:])
    )


def _ends_within_pair(quoted: bytes) -> bool:
    """Whether the text of a quoted string ends with a backslash that belongs to the next character."""
    at = 0
    while at < len(quoted):
        at += 2 if quoted[at] == ord("\\") else 1
    return at > len(quoted)


# Replies.


def replies(octets: bytes) -> tuple[list[tuple[int, tuple[bytes, ...]]], bool]:
    """Return code and texts of each whole reply, and whether something that is no reply came behind them.

    Wider than RFC 5321: the second digit is any, and any octet from 128 on may stand in a text. Narrower: a line has
    2048 octets at most, a reply 65 536.
    """
    found: list[tuple[int, tuple[bytes, ...]]] = []
    texts: list[bytes] = []
    first_code = b""
    length = 0
    while octets:
        at = 0
        while at < len(octets) and octets[at : at + 2] != b"\r\n":
            if octets[at] == ord("\n"):
                return found, True
            at += 1
        if at == len(octets):
            # A CR at the very end is the first half of what ends the line, if there is more to come.
            return found, len(octets.removesuffix(b"\r")) > 2048
        line, octets = octets[:at], octets[at + 2 :]
        code, separator, text = line[:3], line[3:4], line[4:]
        length += len(line)
        if (
            len(line) > 2048
            or length > 65_536
            or len(code) != 3
            or not all(octet in _DIGITS for octet in code)
            or not ord("2") <= code[0] <= ord("5")
            or separator not in {b"", b" ", b"-"}
            or not all(octet == ord("\t") or octet >= 128 or octet in _PRINTABLE for octet in text)
            or (texts and code != first_code)
        ):
            return found, True
        first_code = code
        texts.append(text)
        if separator != b"-":
            found.append((int(code), tuple(texts)))
            texts, length = [], 0
    return found, False


# The message.


class Scanned(NamedTuple):
    """What came after the 354.

    Attributes:
        message: what must be sent on, without the final dot; None where the end is not there.
        rest: what came behind the end.
        octets: how many the client's message had.
        bare: whether there was a bare CR, a bare LF or a NUL among them.
    """

    message: bytes | None
    rest: bytes
    octets: int
    bare: bool


def scanned(octets: bytes) -> Scanned:
    """Return what must become of the octets after the 354."""
    end = (b"\r\n" + octets).find(b"\r\n.\r\n")
    if end < 0:
        return Scanned(None, b"", 0, bare=False)
    message, rest = octets[:end], octets[end + 3 :]
    lines: list[tuple[bytes, bool]] = []  # the line, and whether the client's own CRLF ended it
    line, at, bare = b"", 0, False
    while at < len(message):
        octet = message[at : at + 1]
        if message[at : at + 2] == b"\r\n":
            lines.append((line, True))
            line, at = b"", at + 2
            continue
        bare = bare or octet in b"\r\n\0"
        if octet == b"\n":
            lines.append((line, False))
            line = b""
        else:
            line += b" " if octet in b"\r\0" else octet
        at += 1
    assert not line, "a message ends with the CRLF before its final dot"
    out = b""
    own = True
    for text, own_end in lines:
        made_by_us = text.startswith(b".") and (not own or (text == b"." and not own_end))
        out += (b"." if made_by_us else b"") + text + b"\r\n"
        own = own_end
    return Scanned(out, rest, len(message), bare)


def unstuffed(message: bytes) -> bytes:
    """Return a message line by line without the first dot of each line that has one."""
    return b"\r\n".join(line.removeprefix(b".") for line in message.split(b"\r\n"))


def marked(status: bytes | None, message: bytes) -> bytes:
    """Return a message with a status field before it, and without fields of that name of its own.

    The lines are read as the next hop sees them once it has taken the dots off. The name and its colon may have white
    space between them, or a line end before a line that goes on with white space.

    Args:
        status: value of the field to put on; None to take out only.
        message: lines that all end with CRLF.
    """
    *lines, last = message.split(b"\r\n")
    assert last == b""
    kept = [] if status is None else [b"X-Batv-Status: " + status]
    taking = status is not None
    for number, line in enumerate(lines):
        if not line:
            kept += lines[number:]
            break
        seen = line.removeprefix(b".")
        if not seen or seen[0] not in _WHITE:
            after_name = seen[13:].lstrip(b" \t")
            taking = _upper(seen[:13]) == b"X-BATV-STATUS" and after_name[:1] in {b"", b":"}
        if not taking:
            kept.append(line)
    return b"".join(line + b"\r\n" for line in kept)


def peeked(message: bytes) -> tuple[bytes, int, frozenset[bytes]]:
    """Return the first Message-ID that has a value, how many Received fields there are, and the tenants.

    The value of a field ends with its line, but for one that begins on the next.

    Args:
        message: lines that all end with CRLF.
    """
    header = (b"\r\n" + message).partition(b"\r\n\r\n")[0].split(b"\r\n")
    message_id, hops = b"", 0
    tenants = set()
    for line, next_line in zip(header, [*header[1:], b""], strict=True):
        name, colon, value = line.removeprefix(b".").partition(b":")
        hops += _upper(name + colon) == b"RECEIVED:"
        value = value.lstrip(b" \t")
        if not value and next_line[:1] in {b" ", b"\t"}:
            value = next_line.lstrip(b" \t")
        kind = _upper(name.rstrip(b" \t")) if colon else b""
        if kind == b"MESSAGE-ID" and not message_id:
            message_id = value[:998].strip(b" \t")
        elif kind == b"X-MS-EXCHANGE-CROSSTENANT-ID":
            tenants.add(_lower(value).strip(b" \t"))
    return message_id, hops, frozenset(tenants)


# Who the client is.


_XCLIENT: Final = {
    b"NAME": "name",
    b"ADDR": "address",
    b"PORT": "port",
    b"PROTO": "protocol",
    b"HELO": "helo",
    b"LOGIN": "login",
    b"DESTADDR": "destination_address",
    b"DESTPORT": "destination_port",
}
_XFORWARD: Final = {
    b"NAME": "name",
    b"ADDR": "address",
    b"PORT": "port",
    b"PROTO": "protocol",
    b"HELO": "helo",
    b"IDENT": "ident",
    b"SOURCE": "source",
}


def xclient(argument: bytes) -> dict[str, str | int | None] | None:
    """Return what XCLIENT tells, by field of an origin, with None or nothing for what is unavailable.

    None if it breaks a rule.

    Wider than RFC 3461: in a value, `=` may stand for itself, and hex digits may be small.
    """
    return _told(argument, _XCLIENT, ("SMTP", "ESMTP"))


def xforward(argument: bytes) -> dict[str, str | int | None] | None:
    """Return what XFORWARD tells, as `xclient` does."""
    return _told(argument, _XFORWARD, None)


def _told(
    argument: bytes, fields: dict[bytes, str], protocols: tuple[str, ...] | None
) -> dict[str, str | int | None] | None:
    told: dict[str, str | int | None] = {}
    for pair in argument.split(b" "):
        if not pair:
            continue
        attribute, _, value = pair.partition(b"=")
        field = fields.get(_upper(attribute))
        if field is None or field in told or not 0 < len(value) <= 255:
            return None
        octets = _from_xtext(value)
        if octets is None:
            return None
        if _upper(octets) in {b"[UNAVAILABLE]", b"[TEMPUNAVAIL]"}:
            told[field] = None if "port" in field or field == "source" else ""
            continue
        try:
            text = octets.decode("utf-8")
        except UnicodeDecodeError:
            return None
        if not text.isprintable():
            return None
        found = _value(field, text, protocols)
        if found is None:
            return None
        told[field] = None if found == 0 else found
    return told or None


def _value(field: str, text: str, protocols: tuple[str, ...] | None) -> str | int | None:
    """Return what the text of an attribute stands for; None if it cannot be what the attribute says it is."""
    if "address" in field:
        return _address(text)
    if "port" in field:
        fits = 0 < len(text) <= 5 and all(letter in "0123456789" for letter in text) and int(text) < 65_536
        return int(text) if fits else None
    if field == "name":
        return text if _is_host_name(text) else None
    if field == "protocol":
        fits = 0 < len(text) <= 64 and all("!" <= letter <= "~" for letter in text)
        return text.upper() if fits and (protocols is None or text.upper() in protocols) else None
    if field == "source":
        return text.upper() if text.upper() in {"LOCAL", "REMOTE"} else None
    return text


def _from_xtext(value: bytes) -> bytes | None:
    octets = b""
    at = 0
    while at < len(value):
        if value[at] == ord("+"):
            digits = value[at + 1 : at + 3]
            if len(digits) < 2 or not all(octet in _HEX_DIGITS for octet in digits):
                return None
            octets += bytes.fromhex(digits.decode())
            at += 3
        elif 33 <= value[at] <= 126:
            octets += value[at : at + 1]
            at += 1
        else:
            return None
    return octets


def _address(text: str) -> str | None:
    """Return an address in its one form: of two letters' case, without prefix, IPv4 where it stands for one."""
    prefix = text[:5].isascii() and text[:5].upper() == "IPV6:"
    bare = text[5:] if prefix else text
    if not all(letter in "0123456789abcdefABCDEF.:" for letter in bare) or (prefix and ":" not in bare):
        return None
    try:
        address = ip_address(bare)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _is_host_name(text: str) -> bool:
    letters = "-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return any(letter not in "0123456789." for letter in text) and all(
        0 < len(label) <= 63
        and not label.startswith("-")
        and not label.endswith("-")
        and all(letter in letters for letter in label)
        for label in text.split(".")
    )


class Ends(NamedTuple):
    """What a PROXY header tells: addresses and ports of both ends, all empty or 0 where it tells of nobody."""

    address: str = ""
    port: int = 0
    destination_address: str = ""
    destination_port: int = 0


def proxy_header(octets: bytes) -> tuple[Ends, bytes] | None:
    """Return what a PROXY header tells, and the octets behind it; None if there is no whole and well-formed one.

    Narrower than the specification: a block that is too short for its addresses is ill-formed in a health check too.
    """
    if octets.startswith(b"\r\n\r\n\0\r\nQUIT\n"):
        return _proxy_v2(octets)
    end = octets.find(b"\r\n")
    if not octets.startswith(b"PROXY ") or not 0 <= end <= 105 or b"\n" in octets[:end]:
        return None
    words = octets[:end].split(b" ")
    rest = octets[end + 2 :]
    if words[1] == b"UNKNOWN":
        return Ends(), rest
    if len(words) != 6 or words[1] not in {b"TCP4", b"TCP6"}:
        return None
    version = 4 if words[1] == b"TCP4" else 6
    ends: list[str] = []
    for word in words[2:4]:
        try:
            address = ip_address(word.decode("ascii"))
        except ValueError:
            return None
        if address.version != version or b"%" in word:
            return None
        ends.append(str(address))
    ports: list[int] = []
    for word in words[4:]:
        if not 0 < len(word) <= 5 or not all(octet in _DIGITS for octet in word):
            return None
        if str(int(word)).encode() != word or int(word) > 65_535:
            return None
        ports.append(int(word))
    return Ends(ends[0], ports[0], ends[1], ports[1]), rest


def _proxy_v2(octets: bytes) -> tuple[Ends, bytes] | None:
    if len(octets) < 16:
        return None
    version, command_number = octets[12] >> 4, octets[12] & 15
    family, protocol = octets[13] >> 4, octets[13] & 15
    length = octets[14] * 256 + octets[15]
    block, rest = octets[16 : 16 + length], octets[16 + length :]
    if version != 2 or command_number > 1 or family > 3 or protocol > 2 or len(block) < length:
        return None
    size = {0: 0, 1: 4, 2: 16, 3: 108}[family]
    if protocol != 0 and len(block) < 2 * size + (4 if family in {1, 2} else 0):
        return None
    if command_number == 0 or family in {0, 3}:
        return Ends(), rest
    if protocol == 0:
        return None  # an address of nobody knows what
    addresses = [str(ip_address(block[at : at + size])) for at in (0, size)]
    ports = [block[at] * 256 + block[at + 1] for at in (2 * size, 2 * size + 2)]
    return Ends(addresses[0], ports[0], addresses[1], ports[1]), rest


# ASCII letters alone have two cases.


def _upper(octets: bytes) -> bytes:
    return bytes(octet - 32 if ord("a") <= octet <= ord("z") else octet for octet in octets)


def _lower(octets: bytes) -> bytes:
    return bytes(octet + 32 if ord("A") <= octet <= ord("Z") else octet for octet in octets)
