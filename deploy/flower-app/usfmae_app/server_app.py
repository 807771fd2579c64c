"""Names the round loop of the installed package."""

from usfmae.server.flower.serverapp import app

__all__ = ["app"]
