#!/bin/bash
# Runs test programs and adds up what they say; the last line is always "N passed, M failed, K skipped".
#
#   tests/run.sh [-n SUITE] [-l LOGDIR] [-j JOBS] [-t SECONDS] [-w WRAPPER] [-a] [-z] [-f] PROGRAM...
#   tests/run.sh -s MAKE TARGET...     each target a suite, then one total
#
# A program's output goes to LOGDIR/SUITE-NAME.log and is shown if it fails.  Counted are Check's summaries, unittest's,
# "N passed" lines, and otherwise the exit status; exit 77 is one skipped test; a program past its time has failed.
# Nothing run at all is a failure, unless -z.  -w: in front of each program.  -a: without address randomisation (TSan).
# -f: libFuzzer programs.
# $KVBM_TOTALS names a file to which "SUITE passed failed skipped" is added for whoever adds up further; then the last
# line begins with the suite's name.
set -u
export LC_ALL=C

suite=tests logdir=build/log jobs=2 seconds=${TEST_TIMEOUT:-300} wrap=() zero_ok=0 fuzzing=0 make=
while getopts n:l:j:t:s:w:azf option; do
	case $option in
	n) suite=$OPTARG ;;
	l) logdir=$OPTARG ;;
	j) jobs=$OPTARG ;;
	t) seconds=$OPTARG ;;
	s) make=$OPTARG ;;
	a) setarch "$(uname -m)" -R true 2>/dev/null && wrap=(setarch "$(uname -m)" -R) ;;
	w) read -ra wrap <<<"$OPTARG" ;;
	z) zero_ok=1 ;;
	f) fuzzing=1 ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))

# Add up the lines of a totals file; print the closing line; fail if a test failed or none ran.
total()
{
	awk -v zero_ok="$2" '{ p += $2; f += $3; k += $4 }
	     END { printf "%d passed, %d failed, %d skipped\n", p, f, k; exit f > 0 || (p == 0 && !zero_ok) }' "$1"
}

run_suites()
{
	local outer=${KVBM_TOTALS:-} rc before target

	totals=$(mktemp) || exit 1
	trap 'rm -f "$totals"' EXIT
	export KVBM_TOTALS=$totals
	for target in "$@"; do
		before=$(wc -l <"$KVBM_TOTALS")
		echo "== $target"
		$make "$target"
		rc=$?
		# A suite that could not be built, or died before it counted, is one failure.
		if [ $rc -ne 0 ] && ! tail -n "+$((before + 1))" "$KVBM_TOTALS" | awk '$3 > 0 { bad = 1 } END { exit !bad }'; then
			echo "$target 0 1 0" >>"$KVBM_TOTALS"
			echo "$target: make exited with $rc"
		fi
	done
	if [ -n "$outer" ]; then
		cat "$totals" >>"$outer"
		printf 'together: '
	fi
	total "$totals" 0
}

# The command line of one program, into the array "command".
command_of()
{
	local name corpus

	command=("$1")
	case $1 in
	tests/python/*.py) command=("${KVBM_PYTHON:-python3}" -m unittest -v "$1") ;;
	*.py) command=(python3 "$1") ;;
	*) if [ $fuzzing = 1 ]; then
		name=$(basename "$1")
		corpus=tests/fuzz/corpus/${name#fuzz_}
		mkdir -p "$logdir/../corpus/$name"
		command+=(-max_total_time="${FUZZ_SECONDS:-60}" -timeout=10 -print_final_stats=1
			"-artifact_prefix=$logdir/$name-" "$logdir/../corpus/$name")
		[ -d "$corpus" ] && command+=("$corpus")
	fi ;;
	esac
	return 0
}

# "passed failed skipped" of one log and exit status.
count()
{
	awk -v rc="$2" '
	/^[0-9]+%: Checks: [0-9]+, Failures: [0-9]+, Errors: [0-9]+/ {
		gsub(/[,:]/, " ")
		seen = 1; p += $3 - $5 - $7; f += $5 + $7
	}
	/^Ran [0-9]+ tests? in / { seen = 1; ran = $2; unittest = 1 }
	unittest && /^(OK|FAILED)( \(|$)/ {
		bad = 0; skip = 0
		n = split($0, part, /[(), ]+/)
		for (i = 1; i <= n; i++) {
			split(part[i], kv, "=")
			if (kv[1] == "failures" || kv[1] == "errors") bad += kv[2]
			if (kv[1] == "skipped") skip = kv[2]
		}
		p += ran - bad - skip; f += bad; k += skip; unittest = 0
	}
	/(^|[ =])[0-9]+ passed/ && !/%: Checks/ {
		seen = 1
		n = split($0, word, /[ ,=]+/)
		lp = lf = lk = 0
		for (i = 1; i < n; i++) {
			if (word[i + 1] == "passed") lp = word[i]
			if (word[i + 1] == "failed") lf = word[i]
			if (word[i + 1] ~ /^errors?$/) lf += word[i]
			if (word[i + 1] == "skipped") lk = word[i]
		}
	}
	END {
		p += lp; f += lf; k += lk
		if (rc == 77) { print 0, 0, 1; exit }
		if (!seen) { print rc == 0, rc != 0, 0; exit }
		if (rc != 0 && f == 0) f = 1
		if (p + f + k == 0) f = 1       # said that it ran nothing
		print p + 0, f + 0, k + 0
	}' "$1"
}

# One program: log, count, report.  Runs in the background; leaves its counts in a file of its own.
run_one()
{
	local program=$1 index=$2 name rc counts start=$SECONDS

	name=${program#"${KVBM_BUILD:-}"/}
	name=${name#*tests/}
	name=$(tr / - <<<"${name%.py}")
	case $name in "$suite"-*) ;; *) name=$suite-$name ;; esac
	local log=$logdir/$name.log
	command_of "$program"
	timeout -k 10 "$seconds" ${wrap[@]+"${wrap[@]}"} "${command[@]}" >"$log" 2>&1 </dev/null
	rc=$?
	counts=$(count "$log" $rc)
	echo "$counts" >"$work/$index"
	read -r passed failed skipped <<<"$counts"
	local verdict=ok
	[ "$skipped" -gt 0 ] && [ "$passed" -eq 0 ] && verdict=skip
	if [ "$failed" -gt 0 ]; then
		verdict=FAIL
		[ $rc -eq 124 ] && verdict="FAIL (over $seconds s)"
		{
			echo "---- $log (exit $rc)"
			tail -n 200 "$log"
			echo "----"
		} >"$work/$index.shown"
		cat "$work/$index.shown"
	fi
	printf '  %-44s %4d passed %3ds  %s\n' "$name" "$passed" $((SECONDS - start)) "$verdict"
}

run_programs()
{
	local index=0 program

	mkdir -p "$logdir"
	work=$(mktemp -d) || exit 1
	trap 'rm -rf "$work"' EXIT
	for program in "$@"; do
		while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do
			wait -n
		done
		index=$((index + 1))
		run_one "$program" $index &
	done
	wait
	find "$work" -name "[0-9]*" ! -name "*.shown" -exec cat {} + >"$work/all"
	sums=$(awk 'NF == 3 { p += $1; f += $2; k += $3 } END { print p + 0, f + 0, k + 0 }' "$work/all")
	# A runner that died without counting is a failure too.
	lost=$(($# - $(awk 'NF == 3' "$work/all" | wc -l)))
	read -r passed failed skipped <<<"$sums"
	failed=$((failed + lost))
	if [ -n "${KVBM_TOTALS:-}" ]; then
		echo "$suite $passed $failed $skipped" >>"$KVBM_TOTALS"
		printf '%s: ' "$suite"
	fi
	echo "$suite $passed $failed $skipped" >"$work/sum"
	total "$work/sum" $zero_ok
}

# Instrumented programs are slower; Check's own limits stretch with them.
export CK_DEFAULT_TIMEOUT=${CK_DEFAULT_TIMEOUT:-60}
export CK_TIMEOUT_MULTIPLIER=${CK_TIMEOUT_MULTIPLIER:-3}
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1:strict_string_checks=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1:second_deadlock_stack=1}

if [ -n "$make" ]; then
	run_suites "$@"
else
	run_programs "$@"
fi
