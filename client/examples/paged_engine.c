/* SPDX-License-Identifier: Apache-2.0 */
/* Two engines share the KV cache of a common prompt on one GPU, in blocks that kvbmd grants: nothing is copied, the second engine reads where the first
 * one wrote.
 *
 *     kvbmd --g1.size=64M &
 *     paged_engine            (or paged_engine ORDINAL)
 *
 * Here "to compute" a page is to write a pattern that follows from its tokens, and "to attend" is to read it; an engine would have its kernels do both, at
 * the addresses that kvbm_cuda_data() gives.  An engine that has the CUDA runtime calls cudaSetDevice() instead of what cuda_open() does.
 */
#include <dlfcn.h>
#include <kvbm_cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGES 8
#define TOKENS 16 /* a page */
#define KEY 16

/* ---- just enough CUDA ---- */

static int (*copy_to_device)(unsigned long long to, const void *from, size_t bytes);
static int (*copy_to_host)(void *to, unsigned long long from, size_t bytes);

static int cuda_open(int ordinal)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW), *context;
	int (*find)(const char *, void *, int, unsigned long long, void *) = NULL;
	int (*init)(unsigned), (*retain)(void *, int), (*use)(void *);

	if (library)
		*(void **)&find = dlsym(library, "cuGetProcAddress_v2");
	return find && !find("cuInit", &init, 2000, 0, NULL) && !find("cuDevicePrimaryCtxRetain", &retain, 7000, 0, NULL) &&
	       !find("cuCtxSetCurrent", &use, 4000, 0, NULL) && !find("cuMemcpyHtoD", &copy_to_device, 3020, 0, NULL) &&
	       !find("cuMemcpyDtoH", &copy_to_host, 3020, 0, NULL) && !init(0) && !retain(&context, ordinal) &&
	       !use(context);
}

/* ---- an engine ---- */

struct engine {
	const char *name;
	struct kvbm *kvbm;
	struct kvbm_ns *ns;
	int tokens[PAGES * TOKENS];
	unsigned char keys[PAGES][KEY];
	struct kvbm_span pages[PAGES]; /* its block table */
	unsigned char *scratch;
};

static int fail(const struct engine *e, const char *what, int r)
{
	fprintf(stderr, "%s: %s: %s: %s\n", e->name, what, kvbm_strerror(r),
	        e->kvbm ? kvbm_error(e->kvbm) : "is kvbmd running?");
	return 1;
}

/* A page's key says which tokens it is of, and all before it. */
static void hash_pages(struct engine *e)
{
	unsigned long long h = 0xcbf29ce484222325;

	for (int i = 0; i < PAGES * TOKENS; i++) {
		h = (h ^ (unsigned)e->tokens[i]) * 0x100000001b3;
		if (i % TOKENS == TOKENS - 1) {
			memcpy(e->keys[i / TOKENS], &h, 8);
			memcpy(e->keys[i / TOKENS] + 8, "paged kv", 8);
		}
	}
}

static void pattern(const struct engine *e, int page)
{
	for (size_t i = 0; i < kvbm_lane_bytes(e->ns); i++)
		e->scratch[i] = (unsigned char)(e->keys[page][i % 8] + i / 8);
}

static int compute(struct engine *e, int page)
{
	unsigned long long at;

	pattern(e, page);
	return kvbm_cuda_data(e->ns, &e->pages[page], 0, &at) == 0 &&
	       copy_to_device(at, e->scratch, kvbm_lane_bytes(e->ns)) == 0; /* waits: it is written before it is committed */
}

static int attend(struct engine *e, int page)
{
	size_t bytes = kvbm_lane_bytes(e->ns);
	unsigned char *read = e->scratch + bytes;
	unsigned long long at;

	pattern(e, page);
	return kvbm_cuda_data(e->ns, &e->pages[page], 0, &at) == 0 && copy_to_host(read, at, bytes) == 0 &&
	       memcmp(read, e->scratch, bytes) == 0;
}

/* In the GPU's memory, or in the host's, or below that: held, at the beginning of the block table. */
static int find(struct engine *e)
{
	struct kvbm_onboard_options hold = { .flags = KVBM_HOLD };
	int hits = kvbm_match(e->ns, e->keys, PAGES, 0, e->pages), more = 0;

	if (hits >= 0 && hits < PAGES)
		more = kvbm_onboard(e->ns, e->keys[hits], (unsigned)(PAGES - hits), &hold, NULL, e->pages + hits);
	return hits < 0 ? hits : more < 0 ? more : hits + more;
}

static int run(struct engine *e)
{
	int found = find(e), n = PAGES - found, r;

	if (found < 0)
		return fail(e, "find", found);
	if (n > 0) {
		r = kvbm_reserve(e->ns, 0, e->keys[found], (unsigned)n, e->pages + found, NULL);
		if (r != n)
			return fail(e, "reserve", r);
		for (int i = found; i < PAGES; i++)
			if (!compute(e, i))
				return fail(e, "compute", -KVBM_E_SYS);
		r = kvbm_commit(e->ns, 0, e->pages + found, e->keys[found], (unsigned)n,
		                found ? e->keys[found - 1] : NULL, KVBM_HOLD);
		if (r < 0)
			return fail(e, "commit", r);
	}
	for (int i = 0; i < PAGES; i++)
		if (!attend(e, i))
			return fail(e, "attend", -KVBM_E_SYS);
	printf("%s: %d pages: %d found, %d computed\n", e->name, PAGES, found, n);
	r = kvbm_release(e->ns, e->pages, PAGES);
	return r < 0 ? fail(e, "release", r) : 0;
}

/* @own: the page from which on its prompt is its own. */
static int engine(const char *name, int ordinal, int own)
{
	struct engine e = { .name = name };
	char uuid[KVBM_CUDA_UUID_CHARS];
	struct kvbm_model model = { .name = "paged", .num_layers = 4, .page_size = TOKENS, .inner_dim = 256, .device = uuid };
	int r, tries = 0;

	if (!cuda_open(ordinal) || kvbm_cuda_uuid(ordinal, uuid) < 0) {
		fprintf(stderr, "no driver, or no device %d\n", ordinal);
		return 77;
	}
	for (int i = 0; i < PAGES * TOKENS; i++)
		e.tokens[i] = i / TOKENS < own ? i : i + name[0] * 1000;
	hash_pages(&e);
	r = kvbm_open(&(struct kvbm_options){ .name = name }, &e.kvbm);
	if (r < 0)
		return fail(&e, "open", r);
	/* A daemon that has just started is still asking the driver. */
	while ((r = kvbm_attach(e.kvbm, &model, &e.ns)) == -KVBM_E_BUSY && tries++ < 100)
		usleep(50000);
	if (r < 0)
		return fail(&e, "attach", r);
	e.scratch = malloc(2 * kvbm_lane_bytes(e.ns));
	r = e.scratch ? run(&e) : 1;
	free(e.scratch);
	kvbm_close(e.kvbm);
	return r;
}

/* CUDA does not survive fork(): each engine is a program of its own. */
static int spawn(char *self, char *name, char *ordinal, char *own)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		execv("/proc/self/exe", (char *[]){ self, ordinal, name, own, NULL });
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int main(int argc, char **argv)
{
	char zero[] = "0", first[] = "alice", second[] = "bob", all[] = "8", most[] = "6";
	char *ordinal = argc > 1 ? argv[1] : zero;
	int r;

	if (argc == 4)
		return engine(argv[2], atoi(ordinal), atoi(argv[3]));
	r = spawn(argv[0], first, ordinal, all);
	return r ? r : spawn(argv[0], second, ordinal, most);
}
