"""What a site can find out about its mail before it enforces: from others' reports, the DNS and its journal."""
