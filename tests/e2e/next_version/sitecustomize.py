"""Loaded by a program of a fault test (through PYTHONPATH): makes it one of the next version, as far as the wire goes.

It speaks protocol N + 1 and N, as every release speaks its own and the one before. Two fields that this release has are the
ones that N + 1 brings: in a message of version N they are neither carried nor signed. Nothing else differs, so that what a
round comes to must be the same bits.
"""

import os

if "FEDERATION_NEXT" in os.environ:
    from usfmae.core.federated import messages

    messages.SPOKEN = (messages.VERSION + 1, messages.VERSION)
    messages.SINCE = {"min_new": messages.VERSION + 1, "seconds": messages.VERSION + 1}
    messages.VERSION += 1
