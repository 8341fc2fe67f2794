"""The tour: real proxies, a real next hop, real sockets, and a table of what became of each message."""
