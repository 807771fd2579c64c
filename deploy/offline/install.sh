#!/bin/sh
# Installs usfmae from this folder alone; nothing is fetched.   ./install.sh [TARGET]     (default /opt/usfmae)
set -eu

target=${1:-/opt/usfmae}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3.11}

fail() { # what - why - do
  echo "error: $1 - $2 - $3" >&2
  exit "$4"
}

command -v "$python" >/dev/null 2>&1 || fail "$python" "not found" "install Python 3.11 with venv, or set PYTHON" 7
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  fail "$python" "is not Python 3.11, for which these wheels are" "set PYTHON to a Python 3.11" 7
[ ! -e "$target" ] || [ -x "$target/bin/python" ] ||
  fail "$target" "exists and is no earlier installation" "give another folder" 2
(cd "$here" && sha256sum --quiet --check SHA256SUMS) ||
  fail "the bundle" "a file is damaged or was changed" "fetch the bundle again and compare its checksum" 4
command -v tesseract >/dev/null 2>&1 ||
  echo "note: tesseract is not installed; prepare needs it (Debian: tesseract-ocr, RHEL: tesseract)" >&2

# An update goes into the same folder: keys, settings and data lie elsewhere and are not touched.
"$python" -m venv "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$here/wheels" \
  --require-hashes -r "$here/requirements.txt"
"$target/bin/python" -c 'import cv2' 2>/dev/null ||
  echo "note: OpenCV does not load; it links to libGL and GLib (Debian: libgl1 libglib2.0-0, RHEL: mesa-libGL glib2)" >&2
mkdir -p "$target/share/doc/usfmae" "$target/share/usfmae"
[ ! -d "$here/docs" ] || cp -R "$here/docs/." "$target/share/doc/usfmae/"
cp -R "$here/deploy/." "$target/share/usfmae/"
cp "$here/sbom.cdx.json" "$target/share/usfmae/"
"$target/bin/usfmae" --version
echo "installed in $target; next: $target/bin/usfmae-client init --help"
