/* SPDX-License-Identifier: Apache-2.0 */
/* Owns one directory under $TMPDIR or /tmp.  A failed test leaves it behind: the logs in it are wanted then. */
#include "tests/lib/tmpdir.h"

#include <ftw.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tests/lib/must.h"

void tmpdir_make(struct tmpdir *dir)
{
	const char *top = getenv("TMPDIR");

	must(snprintf(dir->path, sizeof(dir->path), "%s/kvbm-test-XXXXXX", top && strlen(top) < 32 ? top : "/tmp") > 0);
	must(mkdtemp(dir->path));
	must(chmod(dir->path, 0755) == 0);
}

static int tmpdir_remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path);
}

void tmpdir_remove(struct tmpdir *dir)
{
	if (!dir->path[0])
		return;
	must(strstr(dir->path, "/kvbm-test-"));
	must(nftw(dir->path, tmpdir_remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
	dir->path[0] = '\0';
}

void tmpdir_path(const struct tmpdir *dir, const char *name, char *ret_path, size_t size)
{
	must((size_t)snprintf(ret_path, size, "%s/%s", dir->path, name) < size);
}

void tmpdir_write(const struct tmpdir *dir, const char *name, const char *text)
{
	char path[128];
	FILE *f;

	tmpdir_path(dir, name, path, sizeof(path));
	f = fopen(path, "w");
	must(f);
	must(fputs(text, f) >= 0);
	must(fclose(f) == 0);
}

char *tmpdir_read(const char *path)
{
	FILE *f = fopen(path, "r"), *to;
	char *text = NULL, part[4096];
	size_t size, n;

	to = open_memstream(&text, &size);
	must(to);
	while (f && (n = fread(part, 1, sizeof(part), f)) > 0)
		must(fwrite(part, 1, n, to) == n);
	if (f)
		fclose(f);
	must(fclose(to) == 0);
	return text;
}
