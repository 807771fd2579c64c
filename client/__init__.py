"""usfmae.client: what a hospital runs."""
