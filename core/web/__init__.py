"""What the coordinator's page and a site's page share: looks, sessions, the guard in front. No web server here."""
