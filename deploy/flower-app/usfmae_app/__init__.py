"""usfmae under Flower's own programs."""
