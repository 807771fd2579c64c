"""What both pages share: access, middleware, looks, charts, the thread a page runs in. No web server here."""
