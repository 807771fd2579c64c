"""usfmae.server: what the coordinator runs."""
