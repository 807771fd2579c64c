"""What both pages share: looks, charts, the guard and the door in front, the thread they run in. No web server here."""
