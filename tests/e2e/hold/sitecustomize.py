"""Loaded by every Python program of a fault test (through PYTHONPATH): stops a program at an exact point of its code.

A test arms a point by writing a file; the first program that comes by takes it, writes its process id into it and
waits there until the test removes the file. What the test does meanwhile (kill -9 of this program or of another one,
an outage) happens in exactly that phase. FEDERATION_HOLD names the directory of these files.
"""

import functools
import importlib
import os
import sys
import time
from pathlib import Path

AGGREGATOR, AGENT, WORKER = "usfmae.server", "usfmae.client.cli", "usfmae.client.rounds.trainer"
CUSTODIAN = " custodian run "

# name -> (program, function, before or after it, the arguments that count, how many such calls to let pass)
POINTS = {
    "idle": (AGGREGATOR, "usfmae.server.ledger:Ledger.open_round", "after", lambda a, wanted: str(a[1]) == wanted, 0),
    "request half sent": (AGGREGATOR, "usfmae.server.flower.object_store:DiskObjectStore.get", "before", None, 8),
    "download": (
        AGENT,
        "usfmae.client.flower.fleet_client:FleetClient._call",
        "before",
        lambda a, _: a[1] == "pull-object",
        5,
    ),
    "half way to the base": (AGENT, "usfmae.core.federated.codec:stepped", "before", None, 5),
    "training": (WORKER, "usfmae.core.mae.optimizer_step:Stepper.update", "before", None, 6),
    "training checkpoint": (WORKER, "usfmae.core.mae.resume_state:ResumeState.save", "before", None, 0),
    "packed, result not written": (
        WORKER,
        "usfmae.core.files:flush",
        "before",
        lambda a, _: a[0].name.startswith(".result.json"),
        0,
    ),
    "staged, not sent": (AGENT, "usfmae.client.rounds.participation:stage", "after", None, 0),
    "upload": (
        AGENT,
        "usfmae.client.flower.fleet_client:FleetClient._call",
        "before",
        lambda a, _: a[1] == "push-object",
        10,
    ),
    "spooled, not noted": (AGGREGATOR, "usfmae.server.rounds.loop:Loop._verdict", "before", None, 0),
    "one of two noted": (AGGREGATOR, "usfmae.server.rounds.loop:Loop._verdict", "after", None, 0),
    "merging": (AGGREGATOR, "usfmae.core.federated.rules.fedavg:Rule.merge", "before", None, 20),
    "checkpoint write": (
        AGGREGATOR,
        "usfmae.core.files:flush",
        "before",
        lambda a, _: a[0].name.startswith(".round-"),
        0,
    ),
    "custodian asked": (
        AGGREGATOR,
        "usfmae.server.rounds.custodian_link:CustodianLink.send",
        "before",
        lambda a, wanted: a[1]["kind"] == wanted,
        0,
    ),
    "custodian answers": (
        CUSTODIAN,
        "usfmae.core.federated.sealed.custody:Custodian.answer",
        "before",
        lambda a, wanted: a[1]["kind"] == wanted,
        0,
    ),
    "custodian answered": (
        CUSTODIAN,
        "usfmae.core.federated.sealed.custody:Custodian.answer",
        "after",
        lambda a, wanted: a[1]["kind"] == wanted,
        0,
    ),
    "sum is sent": (CUSTODIAN, "usfmae.core.federated.sealed.custody:Custodian.share", "before", None, 0),
    "masks fetched": (AGGREGATOR, "usfmae.server.rounds.sealing:Sealing._unmask", "before", None, 0),
    "sum written": (AGGREGATOR, "usfmae.server.rounds.sealing:check_length", "before", None, 0),
    "masking": (AGENT, "usfmae.client.rounds.sealing:sealed", "before", None, 0),
    "written, not committed": (AGGREGATOR, "usfmae.server.ledger:Ledger.commit_round", "before", None, 0),
    "committed, spool not cleared": (AGGREGATOR, "usfmae.server.rounds.spool:clear", "before", None, 0),
}


def hold(folder, name, passed, counts, skip, arguments):
    armed = folder / name
    try:
        wanted = armed.read_text()
    except OSError:
        passed[0] = 0
        return
    if counts is not None and not counts(arguments, wanted):
        return
    passed[0] += 1
    if passed[0] <= skip:
        return
    taken = folder / f"{name}.taken"
    try:
        armed.rename(folder / f".{os.getpid()}")
        (folder / f".{os.getpid()}").write_text(str(os.getpid()))
        (folder / f".{os.getpid()}").rename(taken)
    except OSError:  # another program was faster
        return
    while taken.exists():
        time.sleep(0.01)


def found(where):
    """What holds a function, and its name there; AttributeError where there is no such function any more."""
    module, _, path = where.partition(":")
    holder = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    getattr(holder, last)
    return holder, last


def wrap(folder, name, where, when, counts, skip):
    holder, last = found(where)
    real, passed = getattr(holder, last), [0]

    @functools.wraps(real)
    def wrapped(*a, **k):
        if when == "before":
            hold(folder, name, passed, counts, skip, a)
        value = real(*a, **k)
        if when == "after":
            hold(folder, name, passed, counts, skip, a)
        return value

    setattr(holder, last, wrapped)


def main():
    words = " ".join(sys.orig_argv)
    # The words of a command line tell them apart; the custodian is a command of the server's program.
    kinds = (WORKER, AGENT, CUSTODIAN, AGGREGATOR)
    program = next((kind for kind in kinds if kind in words), None)
    for name, (owner, where, when, counts, skip) in POINTS.items():
        if owner == program:
            wrap(Path(os.environ["FEDERATION_HOLD"]), name, where, when, counts, skip)


if "FEDERATION_HOLD" in os.environ:
    try:
        main()
    except (ImportError, AttributeError) as error:  # Python would go on without the points, and the test would wait
        sys.stderr.write(f"hold: {error}: no such function any more, correct POINTS\n")
        os._exit(70)
