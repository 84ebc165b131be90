#!/bin/bash
# Shows, in about a minute, several processes sharing one KV cache: a private kvbmd in a temporary directory, four client
# processes replaying chats and checking every byte, one of them killed in the middle; blocks that go to a file and come back
# from it, also after the daemon itself is killed; and nothing left at the end.
# Needs no root, no configuration and no file from elsewhere.  make demo builds first.
#
#   packaging/demo.sh [BUILD]          BUILD: where kvbmd and kvbmctl are (default: build)
#   DEMO_SIZE=64M DEMO_G3_SIZE=256M DEMO_REQUESTS=4000   memory of the cache, its file, requests of a replay
set -u
build=$(cd "${1:-build}" 2>/dev/null && pwd) || { echo "demo: no folder ${1:-build}; run make first" >&2; exit 1; }
size=${DEMO_SIZE:-64M}
g3_size=${DEMO_G3_SIZE:-256M}
requests=${DEMO_REQUESTS:-4000}
block=16K
namespace=demo

for program in kvbmd kvbmctl; do
	[ -x "$build/$program" ] || { echo "demo: $build/$program is not there; run make first" >&2; exit 1; }
done
dir=$(mktemp -d "${TMPDIR:-/tmp}/kvbmd-demo.XXXXXX") || exit 1
socket=$dir/kvbmd.sock
daemon=
replay=
failures=0
started=$SECONDS

# ---- what ends with the script ----

cleanup()
{
	[ -n "$replay" ] && kill -KILL "$replay" 2>/dev/null
	[ -n "$daemon" ] && kill -KILL "$daemon" 2>/dev/null
	wait 2>/dev/null
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- telling ----

if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold= plain=; fi
step=0
title() { step=$((step + 1)); printf '\n%s%d. %s%s\n' "$bold" "$step" "$1" "$plain"; }
say() { printf '   %s\n' "$@"; }
show() { sed 's/^/   | /'; }
verdict() # right|wrong TEXT
{
	if [ "$1" = right ]; then
		printf '   ok: %s\n' "$2"
	else
		printf '   NOT AS IT SHOULD BE: %s\n' "$2"
		failures=$((failures + 1))
	fi
}
expect() # TEXT COMMAND...
{
	local text=$1
	shift
	if "$@"; then verdict right "$text"; else verdict wrong "$text"; fi
}

# ---- asking ----

ctl() { timeout 60 "$build/kvbmctl" -S "$socket" "$@"; }
# A gauge or counter of the running daemon.
metric() { ctl metrics 2>/dev/null | awk -v name="kvbmd_$1" '$1 == name || $1 == name "_total" { print $2; found = 1 } END { exit !found }'; }
# A number in a file of JSON: the last one of that name.
number() { grep -o "\"$2\" *: *-\{0,1\}[0-9.eE+-]*" "$1" | tail -n 1 | sed 's/.*: *//'; }
percent() { awk -v part="$1" 'BEGIN { printf "%.1f %%", part * 100 }'; }
# Waits for a condition, up to so many seconds.
within()
{
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -ge $end ] && return 1
		sleep 0.05
	done
}
ready() { ! kill -0 "$daemon" 2>/dev/null || ctl status >/dev/null 2>&1; }
# A child of process $1.
child_of()
{
	local stat fields
	for stat in /proc/[0-9]*/stat; do
		read -r fields 2>/dev/null <"$stat" || continue
		# after the name, which may contain anything: state, parent
		set -- "$1" ${fields##*) }
		[ "$3" = "$1" ] && stat=${stat#/proc/} && echo "${stat%/stat}" && return 0
	done
	return 1
}
shared_kib() { awk '$1 == "Shmem:" { print $2 }' /proc/meminfo; }
# Descriptors that a process has open.
descriptors() { ls "/proc/$1/fd" | wc -l; }
same() { [ "$1" = "$2" ]; }
nobody_left() { same "$(metric leases)" 0 && same "$(metric pins)" 0 && same "$(metric sessions)" 1; }
slots_add_up()
{
	local tier
	for tier in g2 g3; do
		same "$(metric ${tier}_slots)" $(($(metric ${tier}_slots_free) + $(metric ${tier}_slots_used) + $(metric ${tier}_slots_quarantined))) || return
	done
}
more() { [ "$1" -gt "$2" ]; }
online() { ctl tiers g3 2>/dev/null | grep -q '^state  *online'; }
start_daemon()
{
	"$build/kvbmd" --daemon.socket="$socket" --g2.size="$size" --g3.path="$dir/g3.img" --g3.size="$g3_size" >>"$dir/kvbmd.log" 2>&1 &
	daemon=$!
	within 20 ready
	if ! kill -0 "$daemon" 2>/dev/null || ! ctl status >/dev/null 2>&1; then
		show <"$dir/kvbmd.log"
		echo "demo: kvbmd does not serve; its log is above" >&2
		exit 1
	fi
	if ! within 20 online; then
		ctl tiers | show
		echo "demo: the file in $dir cannot be used; name another folder in TMPDIR" >&2
		exit 1
	fi
}
# The first so many requests of the stream again; into $hits.
replay_again() # REQUESTS NAME
{
	ctl -o json replay --workload chat --clients 1 --requests "$1" --block-bytes $block --namespace $namespace >"$dir/$2.json" 2>"$dir/$2.err" ||
		tail -n 20 "$dir/$2.err" | show
	hits=$(number "$dir/$2.json" blocks_hit)
	expect "wrong bytes: $(number "$dir/$2.json" wrong_bytes), errors: $(number "$dir/$2.json" errors)" \
		same "$(number "$dir/$2.json" wrong_bytes) $(number "$dir/$2.json" errors)" "0 0"
}
replay_args=(replay --workload chat --clients 4 --requests "$requests" --block-bytes $block --namespace $namespace)

# ---- the demonstration ----

printf '%skvbmd: one KV cache for all inference processes of a machine%s\n' "$bold" "$plain"
printf '   Engines compute the KV data of a prompt once; others with the same prefix find it here and do not compute it again.\n'

export COLUMNS=76
title "A daemon with $size of host memory (G2), and a file of $g3_size below it (G3)"
shared_before=$(shared_kib)
start_daemon
show <"$dir/kvbmd.log"
say "Process $daemon; socket $socket."
descriptors_before=$(descriptors "$daemon")

title "Four client processes replay $requests chat requests"
say "Each request looks its prefix up, checks the bytes of every hit, writes the blocks that are missing and publishes them." \
	"The chats need more memory than there is: the coldest blocks are written to the file, and read back when they are asked for." \
	"\$ kvbmctl ${replay_args[*]}"
ctl -o json "${replay_args[@]}" >"$dir/first.json" 2>"$dir/first.err"
code=$?
if [ $code -ne 0 ]; then tail -n 20 "$dir/first.err" | show; fi
looked=$(number "$dir/first.json" blocks_looked_up) hit=$(number "$dir/first.json" blocks_hit)
rate=$(percent "$(number "$dir/first.json" hit_rate)") stored=$(number "$dir/first.json" blocks_stored)
verified=$(number "$dir/first.json" blocks_verified) wrong=$(number "$dir/first.json" wrong_bytes)
errors=$(number "$dir/first.json" errors) took=$(printf %.1f "$(number "$dir/first.json" seconds)")
say "looked up $looked blocks, found $hit of them in the cache: hit rate $rate" \
	"stored $stored new ones; compared $verified blocks byte by byte; $took s"
expect "wrong bytes: ${wrong:-?}" same "$wrong" 0
expect "errors: ${errors:-?}" same "$errors" 0

title "Down and up"
down=$(metric blocks_offloaded) up=$(metric blocks_onboarded)
ctl tiers 2>&1 | show
expect "blocks written to the file: $down" more "$down" 0
expect "blocks read back, each compared with its checksum: $up" more "$up" 0
say "Everything that is in memory only, written down as well:" "\$ kvbmctl drain"
ctl drain 2>&1 | show

title "What the daemon says about itself"
ctl status 2>&1 | show
say "" "\$ kvbmctl namespaces"
ctl namespaces 2>&1 | show

title "The same again, and one of the four clients is killed in the middle"
say "Whatever it held or was writing must come back, and nothing half-written may ever be found."
committed=$(metric blocks_stored)
"$build/kvbmctl" -S "$socket" -o json "${replay_args[@]}" >"$dir/second.json" 2>"$dir/second.err" &
replay=$!
working() { ! kill -0 "$replay" 2>/dev/null || { [ "$(metric sessions)" -ge 5 ] && [ "$(metric blocks_stored)" -gt "$committed" ]; }; }
within 20 working
if victim=$(child_of "$replay") && kill -KILL "$victim"; then
	verdict right "killed client $victim (SIGKILL)"
else
	verdict wrong "found a client to kill"
fi
done_replaying() { ! kill -0 "$replay" 2>/dev/null; }
within 60 done_replaying || kill -KILL "$replay"
wait "$replay" 2>/dev/null
replay=
within 5 nobody_left
expect "leases held: $(metric leases), pins: $(metric pins), sessions: $(metric sessions) (this question's own)" nobody_left
expect "slots of memory: $(metric g2_slots_free) free + $(metric g2_slots_used) used + $(metric g2_slots_quarantined) in quarantine = $(metric g2_slots); of the file: the same" \
	slots_add_up
wrong_again=$(number "$dir/second.json" wrong_bytes)
expect "wrong bytes seen by the other three: ${wrong_again:-?}" same "$wrong_again" 0

title "Why was that a miss?"
key=ffffffffffffffffffffffffffffffff
say "The daemon remembers its last misses.  A key that nobody ever stored:" "\$ kvbmctl why $key --namespace $namespace"
ctl match --namespace $namespace $key >/dev/null 2>&1
ctl why --namespace $namespace $key 2>&1 | show

title "The daemon itself is killed: SIGKILL"
again=$((requests < 1000 ? requests : 1000))
say "What the first $again requests find before, and after a new daemon has read from the file what the old one had written:"
replay_again $again before
before=$hits
kill -KILL "$daemon"
wait "$daemon" 2>/dev/null
start_daemon
recovered=$(metric blocks_recovered)
tail -n 3 "$dir/kvbmd.log" | show
expect "blocks recovered: $recovered" more "$recovered" 0
replay_again $again after
expect "found before: $before blocks, after: $hits, of which from the file: $(number "$dir/after.json" g3)" \
	more "$((hits * 10))" "$((before * 9))"
expect "slots add up in both tiers" slots_add_up
descriptors_before=$(descriptors "$daemon")

title "Is this machine set up well?"
say "\$ kvbmctl doctor"
ctl doctor 2>&1 | show
say "(What it warns about costs speed on this machine; it is no fault of the cache.)"

title "The end: SIGTERM"
descriptors_after=$(descriptors "$daemon")
shared_during=$(shared_kib)
kill -TERM "$daemon"
gone() { ! kill -0 "$daemon" 2>/dev/null; }
within 15 gone || verdict wrong "ends within 15 s"
wait "$daemon"
code=$?
tail -n 2 "$dir/kvbmd.log" | show
daemon=
expect "exit status $code" same "$code" 0
expect "the socket is gone" test ! -e "$socket"
say "\$ kvbmctl fsck --data $dir/g3.img"
"$build/kvbmctl" fsck --data "$dir/g3.img" >"$dir/fsck" 2>&1
grep -E '^(state|clean|blocks|payloads_)' "$dir/fsck" | show
"$build/kvbmctl" -o json fsck --data "$dir/g3.img" >"$dir/fsck.json" 2>/dev/null
blocks_wrong=$(number "$dir/fsck.json" payloads_wrong)
expect "blocks in the file that do not fit their checksum: ${blocks_wrong:-?}, although the daemon was killed while it wrote" \
	same "${blocks_wrong:-?}" 0
shared_after=$(shared_kib)
say "shared memory of this machine: $((shared_before / 1024)) MiB before, $((shared_during / 1024)) MiB with kvbmd, $((shared_after / 1024)) MiB now" \
	"descriptors of the daemon: $descriptors_before at the start, $descriptors_after before the end (more regions are in use by then)"

printf '\n%sSummary%s\n' "$bold" "$plain"
say "4 processes shared one cache of $size: of $looked blocks they looked for, $hit were already there ($rate)." \
	"$verified of them were compared whole: ${wrong:-?} wrong bytes.  A killed client left nothing behind; what a killed daemon had written was there." \
	"$((SECONDS - started)) s in all."
if [ $failures -ne 0 ]; then
	say "$failures of the checks above failed."
	exit 1
fi
say "Next: README.md has a program of 40 lines that uses the cache; conf/kvbmd.conf has all settings."
