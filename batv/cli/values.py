"""What options of commands take besides words and numbers: networks, addresses, endpoints."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Generic, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from batv.config import Endpoint

__all__ = ["ADDRESS", "ENDPOINT", "NETWORK"]

Value = TypeVar("Value")


class _Parsed(click.ParamType[Value], Generic[Value]):
    """What a function makes of a word.

    Args:
        name: what the help calls it.
        parse: returns the value; raises ValueError where the word has another form.
        remedy: what to write instead; empty where the error says so itself.
    """

    def __init__(self, name: str, parse: Callable[[str], Value], remedy: str = "") -> None:
        self.name = name
        self._parse = parse
        self._remedy = remedy

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        """Return the value."""
        try:
            return self._parse(str(value))
        except ValueError as error:
            self.fail(f"{error}: {self._remedy}" if self._remedy else str(error), param, ctx)


def _endpoint(text: str) -> Endpoint:
    from batv.config import Endpoint  # noqa: PLC0415 -- pydantic is not for commands without settings

    return Endpoint.parse(text)


NETWORK = _Parsed("network", ip_network, "write a network such as 192.0.2.0/24 or 2001:db8::/32")
"""A network or an address."""

ADDRESS = _Parsed("address", ip_address, "write an address such as 192.0.2.1 or 2001:db8::1")
"""An IP address."""

ENDPOINT = _Parsed("host:port", _endpoint)
"""Where somebody listens, as the settings write it."""
