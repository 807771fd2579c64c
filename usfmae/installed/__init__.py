"""usfmae grows one ultrasound foundation model over many hospitals without moving a scan.

The commands as calls: `usfmae.prepare`, `pretrain`, `load_encoder`, `features`, `probe`, `finetune`, `import_weights`,
`export` (documented in `usfmae.core.api`). Nothing heavy is loaded before it is used. This file is `usfmae/__init__.py` of the
installed package; in a checkout `usfmae` is a namespace over core, client and server, as import-linter needs it.
"""

from usfmae.core.api import *
from usfmae.core.api import __all__ as __all__
