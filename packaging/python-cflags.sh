#!/bin/sh
# What the compiler needs to build _kvbm for the Python named: prints it, or says what is missing and fails.
set -eu
include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
if ! [ -e "$include/Python.h" ]; then
	echo "python: $include/Python.h is missing (apt-get install python3-dev); the Python package is not built" >&2
	exit 1
fi
printf '%s' "-isystem $include"
# The calls of tiers below memory, where this tree has them.
if grep -q 'kvbm_onboard(' "$(dirname "$0")/../include/kvbm.h"; then
	printf ' %s' -DKVBM_HAS_ONBOARD
fi
echo
