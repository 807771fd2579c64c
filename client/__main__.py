"""`python -m usfmae.client`: the command `usfmae-client`."""

from usfmae.client.cli import main

main()
