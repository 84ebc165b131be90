#!/bin/bash
# kvbmd under a real systemd: socket activation, readiness, watchdog, stop, a refused configuration.
#
#   tests/systemd/test_systemd.sh     as root; $KVBM_BUILD is the build to install (default build/)
#
# systemd is PID 1 of namespaces of its own, its root an overlay of this machine's whose changes go to a tmpfs; /tmp, /run and
# /dev are its own too, because its first steps empty and fill them.  All mounts are made in a mount namespace that ends with this
# script, and all processes are in one cgroup, which is killed at the end: nothing outside is touched.
#
# Exit status: 0 passed, 1 failed, 77 cannot be done here.
set -u
export LC_ALL=C

source_dir=${KVBM_SOURCE:-$(cd "$(dirname "$0")/../.." && pwd)}
build=$(realpath -m "${KVBM_BUILD:-$source_dir/build}")
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
bound=240 # seconds for everything

skip()
{
	echo "1..0 # skipped: $*"
	exit 77
}

# Before anything is mounted -----------------------------------------------------------------------------------------------------

# Our mount namespace, and a child that is ended when time is up.
enter()
{
	local base rc

	[ "$(id -u)" -eq 0 ] || skip "needs root"
	for program in unshare nsenter timeout make; do
		command -v $program >/dev/null || skip "needs $program"
	done
	[ -x /lib/systemd/systemd ] || skip "needs systemd"
	for file in kvbmd kvbmctl libkvbm.so; do
		[ -e "$build/$file" ] || skip "$build/$file is not built"
	done
	grep -q -e __asan_init -e __tsan_init "$build/kvbmd" && skip "sanitizers do not run inside the unit's sandbox"
	unshare --mount --propagation private --pid --fork --uts --ipc --net --cgroup true 2>/dev/null ||
		skip "namespaces cannot be made here"
	base=$(mktemp -d "$build/systemd.XXXXXX") || skip "cannot write to $build"
	timeout -k 5 $bound unshare --mount --propagation private "$0" --inside "$base"
	rc=$?
	if [ $rc -eq 124 ] || [ $rc -eq 137 ]; then
		echo "not ok - ended after $bound seconds"
		echo "0 passed, 1 failed, 0 skipped"
		rc=1
	fi
	# The mounts went with the namespace; if the script was killed, its cgroup is still there.
	unshare --mount --propagation private "$0" --sweep "$base"
	rmdir "$base"
	exit $rc
}

cgroup_of()
{
	echo "$1/cgroup/kvbmd-$(basename "$1")"
}

# Kill what is in the cgroup, and remove it.
sweep()
{
	local base=$1 group i

	group=$(cgroup_of "$base")
	if [ ! -d "$base/cgroup" ]; then
		mount -t tmpfs -o mode=0700 kvbmd-test "$base" && mkdir "$base/cgroup" &&
			mount -t cgroup2 none "$base/cgroup" || return 0
	fi
	[ -d "$group" ] || return 0
	echo $$ >"$base/cgroup/cgroup.procs"
	for ((i = 0; i < 50; i++)); do
		[ -e "$group/cgroup.kill" ] && echo 1 >"$group/cgroup.kill" 2>/dev/null
		find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
		[ -d "$group" ] || return 0
		# Kernels before 5.14 have no cgroup.kill.
		find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null | while read -r pid; do
			[ "$pid" -gt 1 ] && [ "$pid" -ne $$ ] && kill -KILL "$pid" 2>/dev/null
		done
		sleep 0.1
	done
	echo "# $group could not be removed"
}

# A small machine -----------------------------------------------------------------------------------------------------------------

build_root()
{
	local base=$1 node

	mount -t tmpfs -o mode=0755 kvbmd-test "$base" || skip "cannot mount a tmpfs"
	mkdir "$base"/{upper,work,root,cgroup}
	mount -t cgroup2 none "$base/cgroup" 2>/dev/null || skip "no cgroup2 here"
	mkdir "$(cgroup_of "$base")" 2>/dev/null || skip "cannot make a cgroup"
	mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root" 2>/dev/null ||
		skip "cannot mount an overlay of /"
	root=$base/root
	mount -t tmpfs -o mode=0755 run "$root/run"
	mount -t tmpfs -o mode=1777 tmp "$root/tmp"
	mount -t tmpfs -o mode=0755 dev "$root/dev"
	for node in null zero full random urandom tty; do
		touch "$root/dev/$node" && mount --bind "/dev/$node" "$root/dev/$node"
	done
	mkdir "$root/dev/"{shm,pts}
	mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
	mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts" && ln -s pts/ptmx "$root/dev/ptmx"
	ln -s /proc/self/fd "$root/dev/fd"
}

# What is to be tested, and nothing of the machine's own services.
fill_root()
{
	: >"$root/etc/fstab"
	rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/*.requires "$root/var/log/journal" \
		"$root/etc/kvbmd"
	mkdir -p "$root/etc/systemd/journald.conf.d" "$root/etc/systemd/system/kvbmd.service.d"
	printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' >"$root/etc/systemd/journald.conf.d/test.conf"
	printf '[Service]\nWatchdogSec=2\n' >"$root/etc/systemd/system/kvbmd.service.d/test.conf"
	printf '[Unit]\nRequires=systemd-journald.service\nAfter=systemd-journald.service\n' \
		>"$root/etc/systemd/system/kvbmd-test.target"
	# -o all: install what is there; it was built with flags that we do not know.
	env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS make -C "$source_dir" -s -o all install BUILD="$build" SAN= prefix=/usr \
		sysconfdir=/etc DESTDIR="$root" >"$root/../install.log" 2>&1
}

boot()
{
	local i

	# shellcheck disable=SC2016  # expanded by the inner shell
	unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --net --cgroup \
		sh -c 'cd / && mount -t proc proc "$1/proc" && mount --bind "$1/proc/sys" "$1/proc/sys" &&
			mount -o remount,bind,ro "$1/proc/sys" && mount -t sysfs -o ro sysfs "$1/sys" &&
			mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup" && hostname kvbmd-test &&
			exec chroot "$1" env -i container=nspawn PATH="$2" /lib/systemd/systemd --unit=kvbmd-test.target' \
		sh "$root" "$path" >"$root/../boot.log" 2>&1 </dev/null &
	unshare_pid=$!
	disown
	for ((i = 0; i < 600; i++)); do
		init_pid=$(awk -v parent=$unshare_pid '/^Pid:/ { pid = $2 } /^PPid:/ && $2 == parent { print pid }' \
			/proc/[0-9]*/status 2>/dev/null)
		[ -n "$init_pid" ] && [ "$(inside systemctl is-active kvbmd-test.target 2>/dev/null)" = active ] && return 0
		kill -0 $unshare_pid 2>/dev/null || return 1
		sleep 0.1
	done
	return 1
}

# Run a command on the small machine.
inside()
{
	timeout -k 2 20 nsenter -t "$init_pid" -m -u -i -n -p -C -r -w env -i PATH="$path" SYSTEMD_PAGER= LC_ALL=C "$@" </dev/null
}

# Checks --------------------------------------------------------------------------------------------------------------------------

passed=0 failed=0 skipped=0

ok()
{
	passed=$((passed + 1))
	echo "ok $((passed + failed)) - $1"
}

not_ok()
{
	failed=$((failed + 1))
	echo "not ok $((passed + failed)) - $1"
	[ -z "${2:-}" ] || printf '%s\n' "$2" | sed 's/^/# /'
}

# check TEXT COMMAND...: what the command said is shown if it fails.
check()
{
	local text=$1 said

	shift
	if said=$("$@" 2>&1); then ok "$text"; else not_ok "$text" "$said"; fi
}

show()
{
	inside systemctl show -P "$2" "$1"
}

# is UNIT PROPERTY VALUE
is()
{
	local value

	value=$(show "$1" "$2")
	[ "$value" = "$3" ] || { echo "$2 of $1 is '$value', not '$3'"; return 1; }
}

# soon TENTHS COMMAND...: until it succeeds.
soon()
{
	local tenths=$1 said='' i

	shift
	for ((i = 0; i < tenths; i++)); do
		said=$("$@" 2>&1) && return 0
		sleep 0.1
	done
	echo "$said"
	return 1
}

journal()
{
	inside journalctl -b --no-pager -o cat "$@"
}

# Active again, by another process.
was_restarted()
{
	is kvbmd.service ActiveState active && [ "$(show kvbmd.service MainPID)" != "$1" ]
}

no_process()
{
	! inside pgrep -x kvbmd
}

# A line for each descriptor of kvbmd's memory that any process of the machine holds, systemd with its store included.
memory_left()
{
	# shellcheck disable=SC2016
	inside find /proc -maxdepth 4 -path '/proc/[0-9]*/fd/*' -lname '/memfd:kvbm*' 2>/dev/null
	inside find /dev/shm /tmp -mindepth 1 -name '*kvbm*'
}

leaves_nothing()
{
	local left

	left=$(memory_left; inside find /run/kvbmd 2>/dev/null)
	[ -z "$left" ] || { echo "left: $left"; return 1; }
}

check_offline()
{
	check "make install fills a root" test -x "$root/usr/bin/kvbmd" -a -x "$root/usr/bin/kvbmctl" \
		-a -e "$root/usr/lib/systemd/system/kvbmd.service" -a -e "$root/usr/lib/systemd/system/kvbmd.socket"
	check "sysusers makes the user" chroot "$root" sh -c 'systemd-sysusers && getent passwd kvbmd && getent group kvbmd'
	rm -rf "$root/run/systemd"
}

verified()
{
	local said

	said=$(inside systemd-analyze --man=no verify kvbmd.service kvbmd.socket 2>&1) && [ -z "$said" ] && return 0
	echo "$said"
	return 1
}

check_start()
{
	check "systemd-analyze verify is clean" verified
	check "exposure of the unit is at most 1.0" inside systemd-analyze security --threshold=10 --no-pager kvbmd.service
	check "the socket starts" inside systemctl start kvbmd.socket
	check "it listens, mode 0660, group kvbmd" test "$(inside stat -c '%F %a %G' /run/kvbmd/kvbmd.sock 2>&1)" = "socket 660 kvbmd"
	check "the service waits for a client" is kvbmd.service ActiveState inactive
	check "the first kvbmctl status starts it and gets its answer" inside kvbmctl status
	check "the service is active" is kvbmd.service ActiveState active
	check "its shared memory is seen while it runs" fails leaves_nothing
	check "it says what it does" test -n "$(show kvbmd.service StatusText)"
	check "it runs as kvbmd" test "$(inside stat -c %U "/proc/$(show kvbmd.service MainPID)" 2>&1)" = kvbmd
	check "whoever is not in the group cannot connect" not_for_others
}

not_for_others()
{
	local said rc

	said=$(inside setpriv --reuid 65534 --regid 65534 --clear-groups kvbmctl status 2>&1)
	rc=$?
	[ $rc -eq 3 ] || { echo "exit $rc: $said"; return 1; }
}

# start returns with READY=1, not before.
check_ready()
{
	check "the service stops" inside systemctl stop kvbmd.service
	check "the socket goes on listening" is kvbmd.socket ActiveState active
	check "systemctl start waits for READY=1" inside systemctl start kvbmd.service
	check "and then it answers" inside timeout 10 kvbmctl status
}

check_restart()
{
	local pid

	pid=$(show kvbmd.service MainPID)
	# kill 0 and kill 1 mean something else.
	[ "${pid:-0}" -gt 1 ] || { not_ok "there is a process to kill"; return; }
	check "SIGHUP keeps the process" inside systemctl reload kvbmd.service
	check "it is the same one" is kvbmd.service MainPID "$pid"
	check "kill -9 of the daemon" inside kill -KILL "$pid"
	check "it is started again" soon 200 was_restarted "$pid"
	check "and answers" inside kvbmctl status
	pid=$(show kvbmd.service MainPID)
	[ "${pid:-0}" -gt 1 ] || { not_ok "there is a process to stop"; return; }
	check "kill -STOP of the daemon" inside kill -STOP "$pid"
	check "the watchdog starts it again" soon 300 was_restarted "$pid"
	check "the journal says why" soon 100 journal_has "Watchdog timeout"
	check "and it answers" inside kvbmctl status
}

journal_has()
{
	journal -u kvbmd.service | grep -q -e "$1" || { journal -u kvbmd.service | tail -5; return 1; }
}

check_stop()
{
	check "systemctl stop of both" inside systemctl stop kvbmd.service kvbmd.socket
	check "exit status 0" is kvbmd.service ExecMainStatus 0
	check "result: success" is kvbmd.service Result success
	check "no process is left" no_process
	check "no socket and no shared memory are left" leaves_nothing
}

check_bad_config()
{
	mkdir -p "$root/etc/kvbmd"
	mv "$root/etc/kvbmd/kvbmd.conf" "$root/../kvbmd.conf"
	inside sh -c 'printf "[g2]\nszie = 1G\n" >/etc/kvbmd/kvbmd.conf && chmod 644 /etc/kvbmd/kvbmd.conf'
	check "a wrong key makes the start fail" fails inside systemctl start kvbmd.service
	check "the journal names line and key" soon 100 journal_has "kvbmd.conf:2: g2.szie"
	check "it is not tried again and again" is kvbmd.service ActiveState failed
	mv "$root/../kvbmd.conf" "$root/etc/kvbmd/kvbmd.conf"
	check "mended, it starts" inside systemctl start kvbmd.service
	check "and answers" inside kvbmctl status
	check "stopping the socket stops both" inside systemctl stop kvbmd.socket
	check "with nothing left" soon 100 all_gone
}

g3_online()
{
	local said

	said=$(inside kvbmctl tiers g3 2>&1)
	grep -q '^state  *online' <<<"$said" || { echo "$said"; return 1; }
}

# The sandbox lets it have a file in its own directory, and io_uring.
check_g3()
{
	local pid

	inside sh -c 'printf "[g2]\nsize = 8M\n[g3]\npath = /var/lib/kvbmd/g3\nsize = 33M\n" >/etc/kvbmd/kvbmd.conf && chmod 644 /etc/kvbmd/kvbmd.conf'
	check "it starts with a file of its own" inside systemctl start kvbmd.service
	check "and uses it" soon 100 g3_online
	check "blocks go down and come up" inside kvbmctl replay --workload chat --requests 100 --block-bytes 16K
	check "all of them" inside kvbmctl drain
	pid=$(show kvbmd.service MainPID)
	[ "${pid:-0}" -gt 1 ] || { not_ok "there is a process to kill"; return; }
	check "kill -9 of it" inside kill -KILL "$pid"
	check "another one takes over" soon 200 was_restarted "$pid"
	check "with what the first one had written" soon 100 recovered
	check "both stop" inside systemctl stop kvbmd.service kvbmd.socket
	check "exit status 0 again" is kvbmd.service ExecMainStatus 0
	check "the file says so" inside sh -c 'kvbmctl fsck --data /var/lib/kvbmd/g3 | grep -q "^clean  *yes"'
}

recovered()
{
	inside kvbmctl metrics | grep -q '^kvbmd_blocks_recovered_total [1-9]'
}

all_gone()
{
	no_process && leaves_nothing
}

fails()
{
	! "$@"
}

run_inside()
{
	local base=$1

	# shellcheck disable=SC2064  # the value of now: the function's locals are gone by then
	trap "sweep '$base'" EXIT
	build_root "$base"
	# Before systemd's own cgroup namespace is made, so that this becomes its root.
	echo $$ >"$(cgroup_of "$base")/cgroup.procs" || skip "cannot enter a cgroup"
	if ! fill_root; then
		not_ok "make install" "$(cat "$root/../install.log")"
	fi
	check_offline
	if ! boot; then
		cat "$root/../boot.log"
		[ "$failed" -gt 0 ] || skip "systemd does not start in namespaces here"
	else
		ok "systemd runs"
		check_start
		check_ready
		check_restart
		check_stop
		check_bad_config
		check_g3
		[ "$failed" -eq 0 ] || journal -n 60 | sed 's/^/# journal: /'
		kill -s RTMIN+4 "$init_pid"
		check "it ends when told" soon 100 fails kill -0 $unshare_pid
	fi
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" -eq 0 ]
}

case ${1:-} in
--inside) run_inside "$2" ;;
--sweep) sweep "$2" ;;
*) enter ;;
esac
