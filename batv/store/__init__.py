"""What batv keeps on disk: files written whole, key rings, records."""
