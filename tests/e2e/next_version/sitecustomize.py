"""Loaded by the programs of a fault test (through PYTHONPATH): makes them neighbours, one version of the protocol apart.

FEDERATION_VERSION is "next" or "this". Fields that this release has for sealed rounds alone, one of a request and two of a reply,
play what the next version brings: a program of "this" version neither knows nor signs them, one of the "next" speaks both.
Nothing else differs, so that what an open round comes to must be the same bits.
"""

import os
import runpy
from pathlib import Path

if version := os.environ.get("FEDERATION_VERSION"):
    from usfmae.core.federated import messages

    messages.SINCE = dict.fromkeys(("custodian", "mask", "task"), messages.VERSION + 1)
    if version == "next":
        messages.SPOKEN = (messages.VERSION + 1, messages.VERSION)
        messages.VERSION += 1

if "FEDERATION_HOLD" in os.environ:  # Python loads one module of this name: the other one's points are wanted too
    runpy.run_path(str(Path(__file__).parents[1] / "hold" / "sitecustomize.py"))
