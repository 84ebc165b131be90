#!/bin/sh
# Installs the packages of packages.debian that are missing, as root or through sudo.  Quick and silent if none is;
# without the right or the network it says which are missing and fails.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

if ! command -v dpkg-query >/dev/null 2>&1; then
	echo "deps: not a Debian system; packages wanted: $(sed 's/#.*//' "$here/packages.debian" | xargs)" >&2
	exit 0
fi

missing=
for package in $(sed 's/#.*//' "$here/packages.debian"); do
	state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	case $state in
	*installed*) case $state in *not-installed*) missing="$missing $package" ;; esac ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "deps: please install, as root:$missing" >&2
		exit 1
	fi
	as_root=sudo
fi

echo "deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of words is meant
install_missing()
{
	$as_root apt-get install -y -q --no-install-recommends -o Dpkg::Use-Pty=0 $missing
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Lists may be absent on a minimal machine, or so old that their versions are gone from the mirror.
$as_root apt-get update -q >"$log" 2>&1 || cat "$log" >&2
if ! install_missing >"$log" 2>&1; then
	cat "$log" >&2
	echo "deps: could not install:$missing" >&2
	exit 1
fi
