"""aiosmtpd's own Proxy handler as a relay, with the event loop it comes with.

Usage: python -m scripts.bench.aiosmtpd_proxy PORT NEXT-PORT
"""

from __future__ import annotations

import asyncio
import sys

from aiosmtpd.handlers import Proxy
from aiosmtpd.smtp import SMTP

_HOST = "127.0.0.1"


async def _serve(port: int, next_port: int) -> None:
    def session() -> SMTP:
        # With a name given, it asks the DNS for none at each connection.
        return SMTP(Proxy(_HOST, next_port), hostname="relay.example", loop=loop)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(session, _HOST, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
