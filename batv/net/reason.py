"""Why an address cannot be connected to or listened on, in the words of the system alone.

asyncio puts the address before them, and where a name has several addresses, all of them with their numbers of errors.
The address stands beside the reason wherever it is told, and once is enough.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Final

__all__ = ["reason"]

_NUMBER: Final = re.compile(r"\[Errno ([0-9]+)\]")


def reason(error: OSError | UnicodeError) -> str:
    """Return why there is no connection, or no listener; each reason once."""
    if not isinstance(error, OSError):  # for what no host can be called
        return str(error)
    if isinstance(error, socket.gaierror):  # what resolves names has numbers of its own
        return error.strerror or str(error)
    if error.errno is not None:
        return os.strerror(error.errno)
    numbers = dict.fromkeys(int(number) for number in _NUMBER.findall(str(error)))
    return "; ".join(map(os.strerror, numbers)) or str(error)
