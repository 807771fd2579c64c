"""Every name of Flower's that a site uses and Flower does not publish: the pin is flwr 1.41.

tests/client/flower/test_flower_contract.py holds them against the installed Flower; another version begins here.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.proto import fleet_pb2 as fleet
from flwr.proto import heartbeat_pb2 as beat
from flwr.proto import message_pb2 as wire
from flwr.proto import recorddict_pb2 as records
from flwr.proto.node_pb2 import Node

__all__ = ["Node", "beat", "fleet", "records", "run_clientapp", "wire"]


def run_clientapp(install: Callable[..., None], loader: Callable[..., object]) -> None:
    """Flower's `flwr-clientapp`, with these in place of its two steps that unpack and import a FAB."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp as runtime

    runtime.install_from_fab = install  # type: ignore[assignment,attr-defined]
    runtime.get_load_client_app_fn = loader  # type: ignore[assignment,attr-defined]
    flwr_clientapp()
