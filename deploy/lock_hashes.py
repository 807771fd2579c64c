"""`requirements.hashes.lock` on stdout, from the report of `pip install --dry-run --report`: version and SHA-256 of each file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

print("# requirements.lock with the SHA-256 of each package's file (Python 3.11, Linux x86-64). Made by 'make lock'.")
for package in sorted(
    json.loads(Path(sys.argv[1]).read_text())["install"], key=lambda p: p["metadata"]["name"].lower()
):
    name, version = package["metadata"]["name"], package["metadata"]["version"]
    print(f"{name}=={version} --hash=sha256:{package['download_info']['archive_info']['hashes']['sha256']}")
