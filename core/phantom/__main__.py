"""`python -m usfmae.core.phantom FOLDER`: a few simulated scans, fake names burnt in, for trying things."""

from __future__ import annotations

import sys
from pathlib import Path

from usfmae.core.phantom import Tissue, write_still

STILLS = 6


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    for number in range(STILLS):
        write_still(Path(sys.argv[1]) / f"{number}.dcm", Tissue(number, "linear" if number % 2 else "sector"))


if __name__ == "__main__":
    main()
