"""usfmae grows one ultrasound foundation model over many hospitals without moving a scan.

The commands as calls: `usfmae.prepare`, `pretrain`, `load_encoder`, `features`, `probe`, `finetune`, `import_weights`,
`export` (documented in `usfmae.core.api`). Nothing is loaded before it is used. This file is `usfmae/__init__.py` of the
installed package; in a checkout `usfmae` is a namespace over core, client and server, as import-linter needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usfmae.core.api import (
        __version__,
        export,
        features,
        finetune,
        import_weights,
        load_encoder,
        prepare,
        pretrain,
        probe,
    )

__all__ = [
    "__version__",
    "export",
    "features",
    "finetune",
    "import_weights",
    "load_encoder",
    "prepare",
    "pretrain",
    "probe",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'usfmae' has no attribute '{name}'")
    if name == "__version__":
        return import_module("usfmae.core").__version__
    return getattr(import_module("usfmae.core.api"), name)


def __dir__() -> list[str]:
    return __all__
