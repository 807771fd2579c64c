"""The coordinator's page."""
