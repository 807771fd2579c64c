"""Releases: which encoder may go out, its signed folder, its card, the results that belong to it."""
