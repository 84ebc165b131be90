#!/bin/sh
# Builds the Debian packages of the last commit: packaging/build-deb.sh [OUTDIR].  Needs dpkg-dev and debhelper.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "${1:-$here/build/deb}" && cd "${1:-$here/build/deb}" && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/kvbmd"
git -C "$here" archive HEAD | tar -x -C "$work/kvbmd"
mv "$work/kvbmd/packaging/debian" "$work/kvbmd/debian"
(cd "$work/kvbmd" && env -u MAKEFLAGS -u MAKELEVEL dpkg-buildpackage -us -uc -b)
cp "$work"/*.deb "$out"
ls "$out"/*.deb
