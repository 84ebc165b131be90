/* The verb doctor: looks at the machine and the daemon, and says what to mend.  Each check is a function that adds one line or more; none
 * changes anything.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "ctl.h"
#include "output.h"

enum finding { FINDING_OK, FINDING_WARN, FINDING_FAIL };

struct doctor {
	struct ctl *ctl;
	json_t *lines; /* owns */
	bool failed;
};

/* @advice: what to do; "" when nothing. */
static void doctor_say(struct doctor *d, enum finding finding, const char *check, const char *advice, const char *fmt,
                       ...) __attribute__((format(printf, 5, 6)));

static void doctor_say(struct doctor *d, enum finding finding, const char *check, const char *advice, const char *fmt, ...)
{
	static const char *const words[] = { "ok", "warn", "fail" };
	char detail[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(detail, sizeof(detail), fmt, ap);
	va_end(ap);
	d->failed |= finding == FINDING_FAIL;
	json_array_append_new(d->lines, json_pack("{s:s, s:s, s:s, s:s}", "check", check, "result", words[finding],
	                                          "detail", detail, "advice", advice));
}

/* First line of a small file without its end; false: it cannot be read. */
static bool doctor_read(const char *path, char *buf, int size)
{
	FILE *file = fopen(path, "re");
	bool ok = file && fgets(buf, size, file);

	if (file)
		fclose(file);
	if (ok)
		buf[strcspn(buf, "\n")] = '\0';
	return ok;
}

/* ---- the daemon ---- */

static bool doctor_socket(struct doctor *d)
{
	char path[512];
	struct stat st;

	ctl_socket(d->ctl, path, sizeof(path));
	if (stat(path, &st) != 0) {
		doctor_say(d, FINDING_FAIL, "socket",
		           errno == EACCES
		                   ? "the directory is closed to this uid"
		                   : "start kvbmd (systemctl start kvbmd), or name its socket with -S or KVBM_SOCKET",
		           "%s: %s", path, strerror(errno));
		return false;
	}
	if (!S_ISSOCK(st.st_mode)) {
		doctor_say(d, FINDING_FAIL, "socket", "remove it and start kvbmd", "%s is not a socket", path);
		return false;
	}
	if (access(path, R_OK | W_OK) != 0) {
		doctor_say(d, FINDING_FAIL, "socket",
		           "let this user into the socket's group, or see socket_mode in kvbmd.conf",
		           "%s belongs to uid %u gid %u, mode %03o; this is uid %u", path, st.st_uid, st.st_gid,
		           st.st_mode & 0777, geteuid());
		return false;
	}
	doctor_say(d, FINDING_OK, "socket", "", "%s, uid %u, mode %03o", path, st.st_uid, st.st_mode & 0777);
	return true;
}

static void doctor_daemon(struct doctor *d)
{
	struct kvbm_options options = { .socket = d->ctl->socket, .name = "kvbmctl doctor" };
	int r = kvbm_open(&options, &d->ctl->kvbm);

	if (r < 0) {
		d->ctl->kvbm = NULL;
		doctor_say(d, FINDING_FAIL, "daemon",
		           r == -KVBM_E_VERSION ? "install the same version of kvbmd and libkvbm"
		           : r == -KVBM_E_PERM  ? "this uid is not allowed; see kvbmd.conf"
		                                : "it does not answer: see its log (journalctl -u kvbmd)",
		           "%s", kvbm_strerror(r));
		return;
	}
	r = kvbm_ping(d->ctl->kvbm);
	if (r < 0)
		doctor_say(d, FINDING_FAIL, "daemon", "see its log (journalctl -u kvbmd)", "does not answer: %s",
		           kvbm_strerror(r));
	else
		doctor_say(d, FINDING_OK, "daemon", "", "answers");
}

/* A file or device of g3, as far as this uid may look. */
static void doctor_path(struct doctor *d, const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	struct statfs fs;
	char size[64], there[64];

	if (stat(path, &st) != 0) {
		doctor_say(d, FINDING_WARN, "g3 path", "run doctor as the daemon's user or root to see more", "%s: %s",
		           path, strerror(errno));
	} else if (fd < 0 && errno == EINVAL) {
		doctor_say(d, FINDING_WARN, "g3 path",
		           "its filesystem refuses O_DIRECT: copies go through the page cache; use ext4, xfs or a device",
		           "%s: no O_DIRECT", path);
	} else if (S_ISREG(st.st_mode) && (uint64_t)st.st_blocks * 512 < (uint64_t)st.st_size / 100 * 99) {
		bool fits = statfs(path, &fs) == 0 && (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize >=
		                                              (uint64_t)st.st_size - (uint64_t)st.st_blocks * 512;

		doctor_say(d, FINDING_WARN, "g3 path",
		           fits ? "its filesystem has no fallocate: nobody else may fill it up"
		                : "make room on its filesystem, or it will run full under the daemon",
		           "%s: %s are allocated of %s", path,
		           output_bytes((double)st.st_blocks * 512, there, sizeof(there)),
		           output_bytes((double)st.st_size, size, sizeof(size)));
	} else {
		doctor_say(d, FINDING_OK, "g3 path", "", "%s: %s%s", path,
		           S_ISBLK(st.st_mode) ? "a device" : "a file, allocated", fd >= 0 ? ", O_DIRECT" : "");
	}
	if (fd >= 0)
		close(fd);
}

static void doctor_paths(struct doctor *d, const json_t *paths)
{
	const json_t *path;
	size_t i;

	json_array_foreach(paths, i, path) doctor_path(d, json_string_value(path));
}

/* What the tiers say about themselves. */
static void doctor_tiers(struct doctor *d)
{
	json_t *tiers, *tier;
	size_t i;

	if (ctl_info_try(d->ctl->kvbm, "tiers", NULL, NULL, 0, &tiers) < 0) {
		doctor_say(d, FINDING_FAIL, "tiers", "see the daemon's log", "no report: %s", kvbm_error(d->ctl->kvbm));
		return;
	}
	json_array_foreach(tiers, i, tier)
	{
		const char *name = json_string_value(json_object_get(tier, "name"));
		const char *note = json_string_value(json_object_get(tier, "note"));
		const char *state = json_string_value(json_object_get(tier, "state"));
		bool fine = !state || strcmp(state, "ok") == 0 || strcmp(state, "online") == 0 ||
		            strcmp(state, "growing") == 0 || strcmp(state, "recovering") == 0 ||
		            strcmp(state, "new") == 0;
		char size[OUTPUT_TEXT];

		output_value("size_bytes",
		             json_object_get(tier, "size_bytes") ? json_object_get(tier, "size_bytes") : json_null(),
		             size);
		doctor_say(d,
		           !fine           ? FINDING_FAIL
		           : note && *note ? FINDING_WARN
		                           : FINDING_OK,
		           "tier", fine ? "" : "the others serve on; it comes back by itself when the device does",
		           "%s: %s%s%s%s%s", name ? name : "?", size, state ? ", " : "", state ? state : "",
		           note && *note ? ", " : "", note ? note : "");
		doctor_paths(d, json_object_get(tier, "paths"));
	}
	json_decref(tiers);
}

static void doctor_namespaces(struct doctor *d)
{
	json_t *list, *one;
	size_t i;

	if (ctl_info_try(d->ctl->kvbm, "namespaces", NULL, NULL, 0, &list) < 0)
		return;
	json_array_foreach(list, i, one)
	{
		const char *name = json_string_value(json_object_get(one, "name"));
		const char *fingerprint = json_string_value(json_object_get(one, "fingerprint"));

		doctor_say(d, FINDING_OK, "namespace", "", "%s, fingerprint %s", name ? name : "?",
		           fingerprint ? fingerprint : "?");
	}
	json_decref(list);
}

/* ---- the machine ---- */

static void doctor_limits(struct doctor *d)
{
	struct rlimit lock, files;
	char text[64];

	if (getrlimit(RLIMIT_MEMLOCK, &lock) == 0) {
		bool enough = lock.rlim_cur == RLIM_INFINITY || lock.rlim_cur >= UINT64_C(1) << 30 || geteuid() == 0;

		doctor_say(d, enough ? FINDING_OK : FINDING_WARN, "memlock",
		           enough ? "" : "engines that pin host memory for their GPU need LimitMEMLOCK=infinity (or ulimit -l unlimited)",
		           "%s%s",
		           lock.rlim_cur == RLIM_INFINITY ? "unlimited"
		                                          : output_bytes((double)lock.rlim_cur, text, sizeof(text)),
		           geteuid() == 0 ? " (root is not bound by it)" : "");
	}
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		bool enough = files.rlim_cur >= 1024;

		doctor_say(d, enough ? FINDING_OK : FINDING_WARN, "descriptors", enough ? "" : "ulimit -n 4096 or more",
		           "%llu", (unsigned long long)files.rlim_cur);
	}
}

static void doctor_huge_pages(struct doctor *d)
{
	char total[64] = "0", shmem[128] = "";
	const char *chosen;

	doctor_read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", total, sizeof(total));
	doctor_read("/sys/kernel/mm/transparent_hugepage/shmem_enabled", shmem, sizeof(shmem));
	chosen = strchr(shmem, '[');
	if (atoi(total) > 0)
		doctor_say(d, FINDING_OK, "huge pages", "", "%s reserved of 2 MiB", total);
	else if (chosen && (strncmp(chosen, "[advise", 7) == 0 || strncmp(chosen, "[always", 7) == 0 ||
	                    strncmp(chosen, "[within", 7) == 0 || strncmp(chosen, "[force", 6) == 0))
		doctor_say(d, FINDING_OK, "huge pages", "", "transparent ones for shared memory: %s", shmem);
	else
		doctor_say(d, FINDING_WARN, "huge pages",
		           "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, or reserve some in vm.nr_hugepages",
		           "none reserved, and none for shared memory (%s): look-ups and copies run with 4 KiB pages",
		           *shmem ? shmem : "shmem_enabled is not readable");
}

static void doctor_memory(struct doctor *d)
{
	int fd = memfd_create("kvbmctl-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct statfs fs;
	char text[64];

	if (fd < 0 || ftruncate(fd, 4096) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) != 0)
		doctor_say(d, FINDING_FAIL, "memfd",
		           "a kernel since 3.17 with CONFIG_MEMFD_CREATE, and a seccomp profile that allows it",
		           "sealed memory files do not work: %s", strerror(errno));
	else
		doctor_say(d, FINDING_OK, "memfd", "", "sealed memory files work");
	if (fd >= 0)
		close(fd);
	if (statfs("/dev/shm", &fs) != 0)
		doctor_say(d, FINDING_WARN, "/dev/shm", "mount a tmpfs there; it is needed only for [g2] path", "%s",
		           strerror(errno));
	else
		doctor_say(d, FINDING_OK, "/dev/shm", "", "%s free",
		           output_bytes((double)fs.f_bavail * (double)fs.f_bsize, text, sizeof(text)));
}

static void doctor_io_uring(struct doctor *d)
{
	char params[256] = { 0 }, disabled[32] = "0";
	long fd = syscall(SYS_io_uring_setup, 1, params);

	doctor_read("/proc/sys/kernel/io_uring_disabled", disabled, sizeof(disabled));
	if (fd >= 0) {
		close((int)fd);
		doctor_say(d, FINDING_OK, "io_uring", "", "available");
		return;
	}
	doctor_say(d, FINDING_WARN, "io_uring",
	           errno == ENOSYS
	                   ? "a kernel since 5.10; without it there is no NVMe tier"
	                   : "sysctl kernel.io_uring_disabled=0, and a seccomp profile that allows it; without it there is no NVMe tier",
	           "%s (kernel.io_uring_disabled is %s)", strerror(errno), disabled);
}

static void doctor_nodes(struct doctor *d)
{
	char nodes[128] = "0", driver[256];
	bool several;

	doctor_read("/sys/devices/system/node/online", nodes, sizeof(nodes));
	several = strpbrk(nodes, ",-") != NULL;
	doctor_say(d, FINDING_OK, "NUMA", "",
	           several ? "nodes %s: each lane's memory is bound to one" : "one node (%s)", nodes);
	if (doctor_read("/proc/driver/nvidia/version", driver, sizeof(driver)))
		doctor_say(d, access("/dev/nvidiactl", R_OK | W_OK) == 0 ? FINDING_OK : FINDING_WARN, "GPU driver",
		           access("/dev/nvidiactl", R_OK | W_OK) == 0 ? "" : "/dev/nvidiactl is not there for this uid",
		           "%s", driver);
	else
		doctor_say(d, FINDING_OK, "GPU driver", "", "none: host memory and below work without");
}

static int doctor_print(struct doctor *d)
{
	json_t *line;
	size_t i;

	if (d->ctl->json) {
		ctl_print(d->ctl, json_pack("{s:b, s:o}", "ok", !d->failed, "checks", d->lines));
		return d->failed ? CTL_NO : CTL_DONE;
	}
	json_array_foreach(d->lines, i, line)
	{
		const char *advice = json_string_value(json_object_get(line, "advice"));

		printf("%-4s  %-12s %s\n", json_string_value(json_object_get(line, "result")),
		       json_string_value(json_object_get(line, "check")),
		       json_string_value(json_object_get(line, "detail")));
		if (*advice)
			printf("      %-12s -> %s\n", "", advice);
	}
	json_decref(d->lines);
	return d->failed ? CTL_NO : CTL_DONE;
}

int verb_doctor(struct ctl *ctl, int argc, char **argv)
{
	struct doctor d = { .ctl = ctl };
	int r = ctl_args(ctl, NULL, &argc, argv, 0, 0);

	if (r >= 0)
		return r;
	d.lines = json_array();
	if (doctor_socket(&d))
		doctor_daemon(&d);
	if (ctl->kvbm) {
		doctor_tiers(&d);
		doctor_namespaces(&d);
	}
	doctor_limits(&d);
	doctor_huge_pages(&d);
	doctor_memory(&d);
	doctor_io_uring(&d);
	doctor_nodes(&d);
	return doctor_print(&d);
}
