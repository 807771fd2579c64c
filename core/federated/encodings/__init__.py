"""How differences are packed: one file an encoding, one row here. `codec.py` is what the rest of the program calls.

n values, float32, C order, little-endian. A packed tensor is a head (one entry a block) and a body, so that the packing
of a stretch that begins at a block is cut out of both. Lossy encodings only; fp32, which needs the base, is in `codec`.
"""

from __future__ import annotations

from usfmae.core.federated.encodings.base import Encoding, Exact, Floats
from usfmae.core.federated.encodings.bf16 import Bf16
from usfmae.core.federated.encodings.int4 import Int4
from usfmae.core.federated.encodings.int8 import Int8
from usfmae.core.federated.encodings.sparse import Sparse

__all__ = ["ENCODINGS", "Encoding", "Exact", "Floats"]

ENCODINGS: dict[str, Encoding] = {"int8": Int8(), "int4": Int4(), "bf16": Bf16(), "sparse": Sparse()}
