"""The site's page: what came in, what waits for a person, what left."""
