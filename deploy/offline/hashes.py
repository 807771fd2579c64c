"""`name==version --hash=sha256:...` of every wheel in a folder, for `pip install --require-hashes`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path


def lines(wheels: Path) -> Iterator[str]:
    """One requirement per wheel, sorted. ValueError where a file is no wheel."""
    for file in sorted(wheels.iterdir()):
        if file.suffix != ".whl":
            raise ValueError(f"{file.name} is no wheel: it could not be installed without building")
        name, version = file.name.split("-")[:2]
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        yield f"{name}=={version} --hash=sha256:{digest}"


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]))))
