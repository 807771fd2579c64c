#!/usr/bin/env bash
# Makes the offline bundle: wheels with hashes, SBOM, checksums, install script.
#   deploy/offline/bundle.sh OUT [PYTHON]      (needs pip's index once; the result needs none)
#   VARIANT=cpu takes torch from PyTorch's CPU index (or from INDEX_URL) and leaves NVIDIA's libraries out.
#   SIGNING_KEY=FILE signs the checksum with this SSH key (ssh-keygen -Y sign).
#   EXTRAS=cstore,onnx,bench adds what the exports and benchmarks need.
set -euo pipefail

out=${1:?"usage: bundle.sh OUT [PYTHON]"}
python=${2:-python3.11}
variant=${VARIANT:-cuda}
root=$(cd "$(dirname "$0")/../.." && pwd)
version=$("$python" -c "import tomllib; print(tomllib.load(open('$root/pyproject.toml','rb'))['project']['version'])")
folder="$out/usfmae-$version"

fail() { # what - why - do
  echo "error: $1 - $2 - $3" >&2
  exit "$4"
}

case $variant in
  cuda) index=() ;;
  cpu) index=(--extra-index-url "${INDEX_URL:-https://download.pytorch.org/whl/cpu}") ;;
  *) fail "variant $variant" "is neither cuda nor cpu" "set VARIANT" 2 ;;
esac
rm -rf "$folder" "$root/build/lib" # setuptools would put modules of an earlier version into the wheel
mkdir -p "$folder/wheels" "$folder/deploy"
pip=("$python" -m pip --quiet --disable-pip-version-check)

# What the program needs, at the versions of the tested environment; nothing of what only its developers need.
"${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$folder/wheels" "$root"
wheel=$(cd "$folder/wheels" && echo "$PWD"/usfmae-*.whl)
"${pip[@]}" download --only-binary :all: "${index[@]}" --constraint "$root/requirements.lock" --dest "$folder/wheels" \
  "usfmae[${EXTRAS:-cstore}] @ file://$wheel"
if [ "$variant" = cpu ] && ls "$folder"/wheels/nvidia_* >/dev/null 2>&1; then
  fail "VARIANT=cpu" "the index gave a torch that needs NVIDIA's libraries" "set INDEX_URL to an index of CPU builds" 4
fi

"$python" "$root/deploy/offline/hashes.py" "$folder/wheels" > "$folder/requirements.txt"
"$python" -m cyclonedx_py requirements "$folder/requirements.txt" --pyproject "$root/pyproject.toml" \
  --output-reproducible --of JSON -o "$folder/sbom.cdx.json"
cp "$root/deploy/offline/install.sh" "$root/LICENSE" "$folder/"
cp -R "$root/deploy/." "$folder/deploy/"
[ ! -d "$root/docs/_build/html" ] || cp -R "$root/docs/_build/html" "$folder/docs"
(cd "$folder" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS)
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$out" -cf "$out/usfmae-$version.tar" "usfmae-$version"
(cd "$out" && sha256sum "usfmae-$version.tar" > "usfmae-$version.tar.sha256")
if [ -n "${SIGNING_KEY:-}" ]; then # an SSH key of the maintainers; docs/air-gapped.md says how it is verified
  ssh-keygen -q -Y sign -n usfmae -f "$SIGNING_KEY" "$out/usfmae-$version.tar.sha256"
fi
du -sh "$out/usfmae-$version.tar"
