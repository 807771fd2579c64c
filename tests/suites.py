"""Suites one after the other, and one table at the end: `make test-all`, all of them, or SUITES="test-unit docs".

Exit code 1 where one of them failed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

SUITES = ("test", "coverage", "test-slow", "test-faults", "test-attacks", "test-system", "docs")


def run(suite: str) -> tuple[int, str, float]:
    """Exit code, pytest's summary (else the last line), seconds. The suite's own output is shown as it comes."""
    began, summary, last = time.monotonic(), "", ""
    process = subprocess.Popen(["make", suite], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.strip() and not re.match(r"make\[\d+\]: (Entering|Leaving)", line):
            last = line.strip()
        if re.search(r"\d+ (passed|failed|error)", line):
            summary = line.strip(" =\n")
    code = process.wait()
    return code, summary or last[:100], time.monotonic() - began


def main() -> int:
    results = {suite: run(suite) for suite in sys.argv[1:] or SUITES}
    print(f"\n{'suite':14}{'result':8}{'seconds':>9}  last line")
    for suite, (code, last, seconds) in results.items():
        print(f"{suite:14}{'passed' if code == 0 else 'FAILED':8}{seconds:9.0f}  {last}")
    return int(any(code for code, _, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
