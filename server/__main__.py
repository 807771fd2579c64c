"""`python -m usfmae.server`: the same as the command `usfmae-server`."""

from usfmae.server.cli import main

main()
