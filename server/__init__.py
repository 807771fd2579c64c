"""usfmae.server: what the coordinator runs. Flower's calls home are off before Flower is ever imported."""

import logging
import os

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1"
)
logging.getLogger("alembic").setLevel("WARNING")  # announces each of its plugins when Flower imports it
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy works beside the network here, not on every core
