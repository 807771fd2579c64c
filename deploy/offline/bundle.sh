#!/usr/bin/env bash
# Makes the offline bundle: wheels with hashes, SBOM, checksums, install script.
#   deploy/offline/bundle.sh OUT [PYTHON]      (needs pip's index once; the result needs none)
set -euo pipefail

out=${1:?"usage: bundle.sh OUT [PYTHON]"}
python=${2:-python3.11}
root=$(cd "$(dirname "$0")/../.." && pwd)
version=$("$python" -c "import tomllib; print(tomllib.load(open('$root/pyproject.toml','rb'))['project']['version'])")
folder="$out/usfmae-$version"
rm -rf "$folder"
mkdir -p "$folder/wheels"

# VARIANT=cpu takes torch from PyTorch's CPU index and leaves NVIDIA's libraries out: a tenth of the size.
"$python" "$root/deploy/offline/variant.py" "${VARIANT:-cuda}" "$root/requirements.lock" "$folder/pinned.txt"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --wheel-dir "$folder/wheels" "$root"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  ${INDEX_URL:+--extra-index-url "$INDEX_URL"} --dest "$folder/wheels" -r "$folder/pinned.txt"
"$python" "$root/deploy/offline/hashes.py" "$folder/wheels" > "$folder/requirements.txt"
"$python" -m cyclonedx_py requirements "$folder/requirements.txt" --pyproject "$root/pyproject.toml" \
  --output-reproducible --of JSON -o "$folder/sbom.cdx.json"
cp "$root/deploy/offline/install.sh" "$root/LICENSE" "$folder/"
mkdir -p "$folder/deploy"
cp -R "$root/deploy/." "$folder/deploy/"
[ ! -d "$root/docs/_build/html" ] || cp -R "$root/docs/_build/html" "$folder/docs"
rm "$folder/pinned.txt"
(cd "$folder" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS)
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$out" -cf "$out/usfmae-$version.tar" "usfmae-$version"
(cd "$out" && sha256sum "usfmae-$version.tar" > "usfmae-$version.tar.sha256")
du -sh "$out/usfmae-$version.tar"
