"""Names the round loop of the installed package."""

from usfmae.server.app import app

__all__ = ["app"]
