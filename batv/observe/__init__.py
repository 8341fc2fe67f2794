"""What happened, as one frozen record for each event. Log lines, journal and metrics are sinks of it."""
