/* SPDX-License-Identifier: Apache-2.0 */
/* Owns the Python process that does it, and the two pipes to it. */
#include "tests/bench/lmcache.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/bench/bench.h"

struct lmcache {
	pid_t pid;
	FILE *to, *from; /* owns */
	char version[64];
};

static void run_it(const char *path, uint64_t size, int in, int out)
{
	const char *python = getenv("KVBM_LMCACHE_PYTHON"), *source = getenv("KVBM_SOURCE");
	char script[512], bytes[32];

	(void)snprintf(script, sizeof(script), "%s/tests/bench/lmcache_io.py", source ? source : ".");
	(void)snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)size);
	if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0)
		_exit(127);
	execlp(python ? python : "python3", "python3", script, path, bytes, (char *)NULL);
	_exit(127);
}

static bool begin(struct lmcache *l, const char *path, uint64_t size)
{
	int to[2], from[2];

	must(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
	l->pid = fork();
	must(l->pid >= 0);
	if (l->pid == 0)
		run_it(path, size, to[0], from[1]);
	must(close(to[0]) == 0 && close(from[1]) == 0);
	l->to = fdopen(to[1], "w");
	l->from = fdopen(from[0], "r");
	return l->to && l->from;
}

struct lmcache *lmcache_start(const char *path, uint64_t size)
{
	struct lmcache *l = calloc(1, sizeof(*l));
	char line[256] = "no python3";

	must(l && begin(l, path, size));
	if (fgets(line, sizeof(line), l->from) && strncmp(line, "ready ", 6) == 0) {
		line[strcspn(line, "\n")] = '\0';
		(void)snprintf(l->version, sizeof(l->version), "%.60s", line + 6);
		return l;
	}
	line[strcspn(line, "\n")] = '\0';
	bench_say("P7", "LMCache is left out, it is not installed%s%.150s", strncmp(line, "no ", 3) == 0 ? ": " : "",
	          strncmp(line, "no ", 3) == 0 ? line + 3 : "");
	lmcache_stop(l);
	return NULL;
}

void lmcache_stop(struct lmcache *l)
{
	if (!l)
		return;
	must(fclose(l->to) == 0); /* which it ends on */
	must(fclose(l->from) == 0);
	must(waitpid(l->pid, NULL, 0) == l->pid);
	free(l);
}

const char *lmcache_version(const struct lmcache *l)
{
	return l->version;
}

struct fio_result lmcache_round(struct lmcache *l, bool store, uint64_t block, unsigned depth, unsigned ms)
{
	struct fio_result r;

	must(fprintf(l->to, "%s %llu %u %u\n", store ? "store" : "load", (unsigned long long)block, depth, ms) > 0);
	must(fflush(l->to) == 0);
	must(fscanf(l->from, "%lf %lf", &r.gb_per_s, &r.cpu_us) == 2);
	return r;
}
