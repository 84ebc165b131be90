/* SPDX-License-Identifier: Apache-2.0 */
/* Reads /proc/PID/fd, maps and status.  Owns nothing. */
#include "tests/lib/fdcount.h"

#include <dirent.h>
#include <stdlib.h>

#include "tests/lib/must.h"

#define REGION_NAME "memfd:kvbmd-g2"
#define PAGE_NAME "memfd:kvbmd-page"

static void fdcount_one(struct fdcount *c, const char *target)
{
	c->total++;
	if (strncmp(target, "socket:", 7) == 0)
		c->sockets++;
	else if (strstr(target, "pidfd"))
		c->pidfds++;
	else if (strstr(target, REGION_NAME))
		c->regions++;
	else if (strstr(target, PAGE_NAME))
		c->pages++;
	else if (strstr(target, "memfd:"))
		c->memfds++;
	else
		c->other++;
}

static void fdcount_fds(pid_t pid, struct fdcount *c)
{
	char path[64], link[320], target[256];
	struct dirent *e;
	ssize_t n;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	must(d);
	while ((e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(link, sizeof(link), "%s/%s", path, e->d_name);
		n = readlink(link, target, sizeof(target) - 1);
		if (n < 0)
			continue; /* closed meanwhile */
		target[n] = '\0';
		fdcount_one(c, target);
	}
	closedir(d);
}

void fdcount_take(pid_t pid, struct fdcount *ret_count)
{
	struct fdcount c = { 0 };
	char path[64], line[512];
	unsigned long kib;
	FILE *f;

	fdcount_fds(pid, &c);
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "r");
	must(f);
	while (fgets(line, sizeof(line), f)) {
		if (strstr(line, PAGE_NAME))
			c.page_maps++;
		else if (strstr(line, "memfd:") && !strstr(line, REGION_NAME))
			c.memfd_maps++;
	}
	fclose(f);
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "r");
	must(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %lu", &kib) == 1)
			c.resident_kib = kib;
	fclose(f);
	*ret_count = c;
}
