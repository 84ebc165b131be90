#!/bin/sh
# tests/python/numpy.sh PYTHON BUILD: sees to it that the tests have numpy: this Python's own, or one in a virtual environment in the build folder, installed
# from the package index.  Where neither can be had it says so, and the tests that need it are skipped.
set -eu
python=$1 venv=$2/venv

if "$python" -c 'import numpy' 2>/dev/null; then
	rm -rf "$venv"
	exit 0
fi
[ -x "$venv/bin/python3" ] && "$venv/bin/python3" -c 'import numpy' 2>/dev/null && exit 0
echo "python: numpy is missing; installing it into $venv"
if "$python" -m venv "$venv" >"$2/venv.log" 2>&1 &&
	"$venv/bin/python3" -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 30 numpy >>"$2/venv.log" 2>&1; then
	exit 0
fi
tail -n 3 "$2/venv.log"
echo "python: numpy cannot be installed; the tests that need it are skipped"
rm -rf "$venv"
