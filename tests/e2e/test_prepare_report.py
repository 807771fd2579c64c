"""`usfmae prepare` as a person runs it: counts on stdout, a page that renders, nothing that names anyone."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usfmae.core.phantom import Tissue, write_still

pytestmark = pytest.mark.e2e
KEYS = {
    "scans", "frames", "kept", "quarantined", "refused", "failed", "duplicates", "reasons", "seconds",
    "images_per_second",
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, wheel_dicoms: list[Path]) -> tuple[Path, dict[str, object], str]:
    """A folder with a source, a corpus and a report; the printed object; what stood on stderr."""
    root = tmp_path_factory.mktemp("prepare")
    source = root / "source" / "Doe^Jane"
    source.mkdir(parents=True)
    with zipfile.ZipFile(source / "export.zip", "w") as archive:
        for path in wheel_dicoms:
            archive.write(path, f"DICOM/{path.stem}")
    write_still(source / "still.dcm", Tissue(63, "sector"))
    (source / "broken.dcm").write_bytes(wheel_dicoms[0].read_bytes()[:3000])
    (source / "report.txt").write_text("no scan")
    run, shown = on_terminal(
        [
            Path(sys.executable).parent / "usfmae", "prepare", root / "source", "--corpus", root / "corpus",
            "--workers", "2", "--report", root / "report.html", "--json",
        ],
        {**os.environ, "XDG_CONFIG_HOME": str(root / "config"), "TERM": "xterm"},
    )  # fmt: skip
    assert run.returncode == 0, shown
    return root, json.loads(run.stdout), shown


def on_terminal(command: list[object], environment: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], str]:
    """The command with a terminal as its stderr, and what it wrote there."""
    screen, terminal = os.openpty()
    shown: list[bytes] = []

    def watch() -> None:
        with contextlib.suppress(OSError):  # the last writer is gone
            while data := os.read(screen, 65536):
                shown.append(data)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run = subprocess.run(
            [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=terminal, text=True,
            timeout=300,
        )  # fmt: skip
    finally:
        os.close(terminal)
        watcher.join()
        os.close(screen)
    return run, b"".join(shown).decode(errors="replace")


def test_stdout_is_one_object_that_adds_up(prepared: tuple[Path, dict[str, object], str]) -> None:
    _, counts, _ = prepared
    assert set(counts) >= KEYS
    assert counts["scans"] == 5
    assert counts["kept"] and counts["failed"] == 0
    reasons = counts["reasons"]
    assert isinstance(reasons, dict)
    assert sum(reasons.values()) == counts["quarantined"] + counts["refused"] + counts["duplicates"]  # type: ignore[operator]


def test_a_person_at_a_terminal_sees_the_rate_and_what_became_of_frames(
    prepared: tuple[Path, dict[str, object], str],
) -> None:
    _, counts, shown = prepared
    assert re.search(r"cleaning .*\d+\.\d images/s  kept \d+  quarantined \d+", shown)
    assert f"kept {counts['kept']}  quarantined {counts['quarantined']}" in shown


def test_nothing_written_or_said_names_anyone(prepared: tuple[Path, dict[str, object], str]) -> None:
    root, counts, stderr = prepared
    written = b"".join(p.read_bytes() for p in (root / "corpus").rglob("*") if p.is_file())
    page = re.sub(r"base64,[\w+/=]+", "", (root / "report.html").read_text())
    for text in (stderr, json.dumps(counts), page, written.decode("latin-1")):
        for word in ("Doe", "Jane", "Anonymized", str(root), "export.zip", "broken"):
            assert word not in text
    assert (root / "config" / "usfmae" / "secret").stat().st_mode & 0o077 == 0


def test_the_page_is_self_contained_and_its_pictures_are_sound(prepared: tuple[Path, dict[str, object], str]) -> None:
    root, _, _ = prepared
    page = (root / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|url\(", page)
    pictures = re.findall(r'src="data:image/png;base64,([\w+/=]+)"', page)
    assert len(pictures) >= 3
    assert page.count("<img") == len(pictures)
    for text in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert not image.info  # pixels only
        assert np.asarray(image).size


@pytest.mark.system
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium (Debian package of that name)")
def test_the_page_renders_in_chromium(prepared: tuple[Path, dict[str, object], str], tmp_path: Path) -> None:
    root, counts, _ = prepared
    shot = tmp_path / "page.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    page = f"file://{root / 'report.html'}"
    subprocess.run(
        [*command, "--window-size=1200,3000", f"--screenshot={shot}", page],
        check=True,
        capture_output=True,
        timeout=120,
    )
    dom = subprocess.run([*command, "--dump-dom", page], check=True, capture_output=True, text=True, timeout=120).stdout
    assert f"What became of {counts['scans']} scans" in dom
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (3000, 1200)
    # The page's light ground, dark pictures of scans, and the red of what was removed are all to be seen.
    assert (pixels.min(2) > 230).mean() > 0.2
    assert (pixels.max(2) < 40).mean() > 0.02
    assert ((pixels[..., 0] > 100) & (pixels[..., 0] > 1.8 * pixels[..., 1])).mean() > 0.001
    phone = ["--window-size=390,3000", "--hide-scrollbars", f"--screenshot={shot}", page]
    subprocess.run([*command, *phone], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == 390
    assert pixels[:, -6:].min() > 200  # nothing runs over the page's edge
