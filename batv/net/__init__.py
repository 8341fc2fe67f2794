"""Moves octets: the listener, the client of the next hop. Knows no tags and no policy."""
