#!/bin/bash
# The unit files as systemd-analyze reads them, without installing anything: nothing to complain about, and little exposure.
#
#   tests/systemd/test_units.sh     $KVBM_BUILD is the build whose kvbmd they are to start (default build/)
#
# Exit status: 0 passed, 1 failed, 77 cannot be done here.
set -u
export LC_ALL=C

source_dir=${KVBM_SOURCE:-$(cd "$(dirname "$0")/../.." && pwd)}
build=$(realpath -m "${KVBM_BUILD:-$source_dir/build}")

skip()
{
	echo "1..0 # skipped: $*"
	exit 77
}

command -v systemd-analyze >/dev/null || skip "needs systemd-analyze"
[ -x "$build/kvbmd" ] || skip "$build/kvbmd is not built"
dir=$(mktemp -d) || skip "cannot make a directory"
trap 'rm -rf "$dir"' EXIT

passed=0 failed=0

# silent TEXT COMMAND...: passes if it succeeds and says nothing.
silent()
{
	local text=$1 said rc

	shift
	said=$("$@" 2>&1)
	rc=$?
	if [ $rc -eq 0 ] && [ -z "$said" ]; then
		passed=$((passed + 1))
		echo "ok - $text"
	else
		failed=$((failed + 1))
		echo "not ok - $text (exit $rc)"
		sed 's/^/# /' <<<"$said"
	fi
}

# What it says of units that are not ours is not ours to mend.
verify()
{
	systemd-analyze --man=no verify "$dir/kvbmd.service" "$dir/kvbmd.socket" 2>&1 | grep kvbmd
	[ "${PIPESTATUS[0]}" -eq 0 ]
}

exposure()
{
	systemd-analyze security --offline=true --threshold=10 --no-pager "$dir/kvbmd.service" >"$dir/exposure" 2>&1 || cat "$dir/exposure"
}

for unit in kvbmd.service kvbmd.socket; do
	sed "s|/usr/bin/kvbmd|$build/kvbmd|" "$source_dir/systemd/$unit" >"$dir/$unit"
done
silent "systemd-analyze verify has nothing to say" verify
if systemd-analyze security --help 2>&1 | grep -q -e --offline; then
	silent "exposure is at most 1.0" exposure
fi
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
