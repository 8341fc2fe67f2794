"""Client <-> stage <-> next hop: the session of a relay, and the service that runs both proxies."""
