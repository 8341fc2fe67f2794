"""What is fuzzed: one module a target.

Each has `checking`, which returns a context; in it, one stands ready that takes any octets, and raises if the product
does with them what it must not.
"""

from __future__ import annotations

from typing import Final

__all__ = ["NAMES"]

NAMES: Final = (
    "commands",
    "data",
    "origin",
    "parameters",
    "path",
    "proxy_header",
    "reply",
    "status_field",
    "tag",
    "unstuffing",
)
