"""Names the site app of the installed package; a site runs its own copy and compares this bundle's hash."""

from usfmae.client.flower.supernode_app import app

__all__ = ["app"]
