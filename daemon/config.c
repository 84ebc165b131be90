/* SPDX-License-Identifier: Apache-2.0 */
/* config.c: the table of keys, and what is made from it.
 *
 * Owns no state.  Invariant: a struct config that came out of here holds only values that their row allows.  It opens no socket and
 * asks the machine for nothing but its amount of memory; whether huge pages or a group exist is seen by those who use them.
 */
#include "config_key.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "base/size.h"

#define HUGE_PAGE (2 * MIB)

static const struct config_word config_log_words[] = {
	{ "error", LOG_LEVEL_ERROR, 0 },
	{ "warn", LOG_LEVEL_WARN, 0 },
	{ "info", LOG_LEVEL_INFO, 0 },
	{ "debug", LOG_LEVEL_DEBUG, 0 },
	{ NULL, 0, 0 },
};

static const struct config_word config_huge_words[] = {
	{ "auto", CONFIG_HUGE_AUTO, 0 },
	{ "require", CONFIG_HUGE_REQUIRE, 0 },
	{ "never", CONFIG_HUGE_NEVER, 'n' },
	{ NULL, 0, 0 },
};

static const struct config_word config_numa_words[] = {
	{ "auto", 1, 'y' },
	{ "off", 0, 'n' },
	{ NULL, 0, 0 },
};

static const struct config_word config_write_words[] = {
	{ "on-evict", CONFIG_WRITE_ON_EVICT, 0 },
	{ "through", CONFIG_WRITE_THROUGH, 0 },
	{ "if-hit", CONFIG_WRITE_IF_HIT, 0 },
	{ "never", CONFIG_WRITE_NEVER, 'n' },
	{ NULL, 0, 0 },
};

static const struct config_word config_ns_write_words[] = {
	{ "inherit", CONFIG_WRITE_INHERIT, 0 }, { "on-evict", CONFIG_WRITE_ON_EVICT, 0 },
	{ "through", CONFIG_WRITE_THROUGH, 0 }, { "if-hit", CONFIG_WRITE_IF_HIT, 0 },
	{ "never", CONFIG_WRITE_NEVER, 'n' },   { NULL, 0, 0 },
};

#define AT(field) offsetof(struct config, field)
#define IN_NAMESPACE(field) offsetof(struct config_namespace, field)
#define LIVE true
#define FIXED false

const struct config_key config_keys[] = {
	{ "daemon", "socket", TYPE_PATH, FIXED, AT(socket), "", 0, CONFIG_PATH_SIZE - 1, NULL,
	  "Where clients connect: an absolute path.  Empty: kvbmd.sock in $RUNTIME_DIRECTORY,\n"
	  "$XDG_RUNTIME_DIR or /run/kvbmd.  A socket given by systemd takes its place." },
	{ "daemon", "socket_mode", TYPE_MODE, FIXED, AT(socket_mode), "0660", 0600, 0777, NULL,
	  "Permissions of the socket, in octal." },
	{ "daemon", "socket_group", TYPE_GROUP, FIXED, AT(socket_group), "", 0, CONFIG_NAME_SIZE - 1, NULL,
	  "Group of the socket, by name.  Empty: the daemon's own." },
	{ "daemon", "allow_uids", TYPE_UIDS, LIVE, AT(allow_uids), "", 0, CONFIG_MAX_UIDS, NULL,
	  "Uids that may connect, separated by commas.  Empty: whoever the permissions let." },
	{ "daemon", "admin_uids", TYPE_UIDS, LIVE, AT(admin_uids), "", 0, CONFIG_MAX_UIDS, NULL,
	  "Uids that may flush and drop, separated by commas, besides root and the daemon's own." },
	{ "daemon", "log", TYPE_WORD, LIVE, AT(log), "info", 0, 0, config_log_words,
	  "What is logged: error, warn, info or debug." },
	{ "daemon", "workers", TYPE_COUNT, FIXED, AT(workers), "0", 0, 64, NULL,
	  "Threads for checksums, copies and the first touch of memory.  0: chosen from the cores." },
	{ "daemon", "max_sessions", TYPE_COUNT, LIVE, AT(max_sessions), "1024", 1, 65536, NULL,
	  "Clients connected at the same time." },
	{ "daemon", "max_sessions_per_uid", TYPE_COUNT, LIVE, AT(max_sessions_per_uid), "256", 1, 65536, NULL,
	  "Of these, how many may be one user's." },
	{ "daemon", "write_timeout", TYPE_TIME, LIVE, AT(write_timeout_ns), "30s", 100 * MS, 86400 * SEC, NULL,
	  "A reserved slot that is not committed within this time is taken back." },
	{ "daemon", "stop_timeout", TYPE_TIME, LIVE, AT(stop_timeout_ns), "10s", 0, 3600 * SEC, NULL,
	  "After SIGTERM, how long requests in progress may take to end." },
	{ "g1", "devices", TYPE_DEVICES, FIXED, AT(g1_devices), "auto", 0, CONFIG_DEVICES_SIZE - 1, NULL,
	  "GPUs whose memory engines may have copied from and to host memory: auto (all),\n"
	  "none, or UUIDs as nvidia-smi -L shows them, separated by commas." },
	{ "g1", "size", TYPE_SIZE, FIXED, AT(g1_size_bytes), "0", 0, TIB, NULL,
	  "Memory of each of these GPUs for pools, in which namespaces have blocks that engines\n"
	  "compute on where they are.  It is taken at the start.  0: none." },
	{ "g1", "region_size", TYPE_SIZE, FIXED, AT(g1_region_bytes), "0", 0, TIB, NULL,
	  "It goes to namespaces in regions of this size.  0: a sixteenth of g1.size." },
	{ "g1", "depth", TYPE_COUNT, FIXED, AT(g1_depth), "64", 1, 1024, NULL,
	  "Requests that each GPU copies for at the same time." },
	{ "g1", "timeout", TYPE_TIME, FIXED, AT(g1_timeout_ns), "10s", 100 * MS, 600 * SEC, NULL,
	  "A GPU that does not finish a copy within this time is offline until it works again." },
	{ "g2", "size", TYPE_SIZE, FIXED, AT(g2_size_bytes), "1G", 2 * MIB, 64 * TIB, NULL,
	  "Host memory for cached blocks, in bytes or with K, M, G, T; fractions are allowed." },
	{ "g2", "region_size", TYPE_SIZE, FIXED, AT(g2_region_bytes), "0", 0, TIB, NULL,
	  "Memory goes to namespaces in regions of about this size.  0: chosen from g2.size." },
	{ "g2", "huge_pages", TYPE_WORD, FIXED, AT(g2_huge_pages), "auto", 0, 0, config_huge_words,
	  "auto: huge pages where the system has them, else small ones; require: do not start\n"
	  "without them; never." },
	{ "g2", "numa", TYPE_WORD, FIXED, AT(g2_numa), "auto", 0, 0, config_numa_words,
	  "auto: regions are bound to NUMA nodes where there are several; off." },
	{ "g2", "grace", TYPE_PERCENT, FIXED, AT(g2_grace_percent), "10%", 0, 100, NULL,
	  "Part of the memory in which blocks released by hint may wait for a last touch." },
	{ "g2", "low_watermark", TYPE_PERCENT, FIXED, AT(g2_low_percent), "5%", 1, 50, NULL,
	  "Part of a full namespace's memory that is kept ready for new blocks, by writing the\n"
	  "coldest ones to g3 ahead of need." },
	{ "g3", "path", TYPE_PATHS, FIXED, AT(g3_path), "", 0, CONFIG_PATHS_SIZE - 1, NULL,
	  "Files or block devices for blocks that host memory has no room for, one a drive,\n"
	  "separated by commas.  Files are made; what is not empty and not ours is refused.\n"
	  "Empty: there is no such tier." },
	{ "g3", "size", TYPE_SIZE, FIXED, AT(g3_size_bytes), "0", 0, 1024 * TIB, NULL,
	  "Of all drives together.  0: what is there." },
	{ "g3", "write", TYPE_WORD, LIVE, AT(g3_write), "on-evict", 0, 0, config_write_words,
	  "on-evict: blocks that memory would drop; through: all, soon after commit; if-hit: as\n"
	  "on-evict, if they were used again; never." },
	{ "g3", "depth", TYPE_COUNT, FIXED, AT(g3_depth), "32", 1, 1024, NULL,
	  "Blocks that are copied at the same time, for each drive; of large ones fewer: 16M." },
	{ "g3", "wait", TYPE_TIME, LIVE, AT(g3_wait_ns), "1s", 0, 60 * SEC, NULL,
	  "How long a request for room waits for blocks to be written before they are dropped\n"
	  "unwritten." },
	{ "g3", "io_timeout", TYPE_TIME, FIXED, AT(g3_io_timeout_ns), "10s", 100 * MS, 600 * SEC, NULL,
	  "A drive that does not answer within this time is offline until it does." },
	{ "g3", "scrub", TYPE_PERCENT, LIVE, AT(g3_scrub_percent), "1%", 0, 1000000, NULL,
	  "Part of what is there that is read and compared with its checksum in an hour, while\n"
	  "the drives have nothing else to do.  0%: none." },
	{ "g3", "write_budget", TYPE_SIZE, FIXED, AT(g3_budget_bytes), "0", 0, 1024 * TIB, NULL,
	  "The most that is written in a day, to spare the drives.  0: no limit." },
	{ "limits", "leases_per_session", TYPE_COUNT, LIVE, AT(leases_per_session), "65536", 1, UINT32_MAX, NULL,
	  "Blocks that one client may hold by message." },
	{ "limits", "pins_per_session", TYPE_COUNT, LIVE, AT(pins_per_session), "1048576", 1, UINT32_MAX, NULL,
	  "Blocks that one client may pin in shared memory, in each namespace." },
	{ "limits", "slots_per_session", TYPE_COUNT, LIVE, AT(slots_per_session), "65536", 1, UINT32_MAX, NULL,
	  "Slots that one client may have reserved and not yet committed." },
	{ "limits", "slots_per_uid", TYPE_COUNT, LIVE, AT(slots_per_uid), "262144", 1, UINT32_MAX, NULL,
	  "The same for all clients of one user together." },
	{ "limits", "output_bytes", TYPE_SIZE, LIVE, AT(output_bytes), "256K", 64 * KIB, GIB, NULL,
	  "Replies that may wait for a client to read them: beyond it, it is not served, and\n"
	  "disconnected if it does not read within limits.frame_timeout." },
	{ "limits", "frame_timeout", TYPE_TIME, LIVE, AT(frame_timeout_ns), "5s", 10 * MS, 3600 * SEC, NULL,
	  "A message that was begun must be whole within this time." },
	{ "limits", "namespaces", TYPE_COUNT, FIXED, AT(namespaces_max), "64", 1, 4096, NULL,
	  "Namespaces that may exist at the same time." },
	{ "limits", "why_entries", TYPE_COUNT, FIXED, AT(why_entries), "4096", 0, 1u << 24, NULL,
	  "Misses that each namespace remembers for `kvbmctl why'." },
	{ CONFIG_NAMESPACE, "share", TYPE_AMOUNT, LIVE, IN_NAMESPACE(share), "0", 0, 64 * TIB, NULL,
	  "Guaranteed part of g2.size: a size or a percentage." },
	{ CONFIG_NAMESPACE, "max", TYPE_AMOUNT, LIVE, IN_NAMESPACE(max), "100%", 1, 64 * TIB, NULL,
	  "The most it may ever have: a size or a percentage." },
	{ CONFIG_NAMESPACE, "uids", TYPE_UIDS, LIVE, IN_NAMESPACE(uids), "", 0, CONFIG_MAX_UIDS, NULL,
	  "Uids that may attach, separated by commas.  Empty: any." },
	{ CONFIG_NAMESPACE, "g1_share", TYPE_AMOUNT, LIVE, IN_NAMESPACE(g1_share), "0", 0, TIB, NULL,
	  "Guaranteed part of g1.size, on each GPU: a size or a percentage." },
	{ CONFIG_NAMESPACE, "g1_max", TYPE_AMOUNT, LIVE, IN_NAMESPACE(g1_max), "100%", 0, TIB, NULL,
	  "The most of it that it may ever have: a size or a percentage." },
	{ CONFIG_NAMESPACE, "g3_share", TYPE_AMOUNT, LIVE, IN_NAMESPACE(g3_share), "0", 0, 1024 * TIB, NULL,
	  "Guaranteed part of g3: a size or a percentage." },
	{ CONFIG_NAMESPACE, "g3_max", TYPE_AMOUNT, LIVE, IN_NAMESPACE(g3_max), "100%", 0, 1024 * TIB, NULL,
	  "The most of g3 it may ever have: a size or a percentage." },
	{ CONFIG_NAMESPACE, "g3_write", TYPE_WORD, LIVE, IN_NAMESPACE(g3_write), "inherit", 0, 0, config_ns_write_words,
	  "As g3.write, for this namespace." },
};

#define N_KEYS (sizeof(config_keys) / sizeof(config_keys[0]))
#define N_PLAIN (N_KEYS - CONFIG_NAMESPACE_KEYS) /* the namespace's rows come last */
_Static_assert(N_PLAIN <= CONFIG_MAX_KEYS, "struct config has a place for where each key was set");

const size_t config_n_keys = N_KEYS;

bool config_is_namespace_key(const struct config_key *k)
{
	return k >= config_keys + N_PLAIN;
}

/* KVBMD_G2_SIZE, of "g2", "" and "size"; letters up, what is neither letter nor digit becomes _. */
void config_env_name(const char *section, const char *ns, const char *key, char *buf, size_t size)
{
	snprintf(buf, size, "KVBMD_%s_%s%s%s", section, ns, *ns ? "_" : "", key);
	for (char *p = buf; *p; p++)
		*p = isalnum((unsigned char)*p) ? (char)toupper((unsigned char)*p) : '_';
}

/* How messages call a key: by where it was set. */
static const char *config_place(const struct config *c, const struct config_key *k, const struct config_namespace *ns,
                                char buf[CONFIG_VALUE_SIZE])
{
	struct config_where w = ns ? ns->where[k - config_keys - N_PLAIN] : c->where[k - config_keys];
	const char *name = ns ? ns->name : "", *dot = ns ? "." : "";

	switch (w.source) {
	case CONFIG_FROM_FILE:
		snprintf(buf, CONFIG_VALUE_SIZE, "%s:%u: %s%s%s.%s", c->file, w.line, k->section, dot, name, k->name);
		break;
	case CONFIG_FROM_ENV:
		config_env_name(k->section, name, k->name, buf, CONFIG_VALUE_SIZE);
		break;
	case CONFIG_FROM_FLAG:
		snprintf(buf, CONFIG_VALUE_SIZE, "--%s%s%s.%s", k->section, dot, name, k->name);
		break;
	case CONFIG_DEFAULT:
		snprintf(buf, CONFIG_VALUE_SIZE, "%s%s%s.%s (default)", k->section, dot, name, k->name);
		break;
	}
	return buf;
}

/* Keys by name --------------------------------------------------------------------------------------------------------------- */

static unsigned config_distance(const char *a, const char *b)
{
	unsigned row[CONFIG_NAME_SIZE], diagonal, above;
	size_t nb = strlen(b);

	if (strlen(a) >= CONFIG_NAME_SIZE || nb >= CONFIG_NAME_SIZE)
		return CONFIG_NAME_SIZE;
	for (size_t j = 0; j <= nb; j++)
		row[j] = (unsigned)j;
	for (; *a; a++) {
		diagonal = row[0]++;
		for (size_t j = 1; j <= nb; j++) {
			unsigned best = diagonal + (tolower((unsigned char)*a) != b[j - 1]);

			above = row[j];
			if (above + 1 < best)
				best = above + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			diagonal = above;
			row[j] = best;
		}
	}
	return row[nb];
}

/* @e: what is unknown, and what was perhaps meant. */
int config_refuse_key(const char *section, const char *name, struct config_error *e)
{
	const struct config_key *best = NULL;
	unsigned least = 3; /* two slips of a finger at most */
	bool known = false;

	config_for_each_key(k)
	{
		unsigned d = config_distance(name, k->name) + config_distance(section, k->section);

		if (strcmp(name, k->name) == 0 && d > 1)
			d = 1; /* the right key in the wrong section */
		if (d < least) {
			least = d;
			best = k;
		}
		known |= strcmp(section, k->section) == 0;
	}
	config_refuse(e, "%s", known ? "unknown key" : "unknown section");
	if (best && config_is_namespace_key(best))
		return config_refuse_at(e, "%s.%s: did you mean namespace.NAME.%s? ", section, name, best->name);
	if (best)
		return config_refuse_at(e, "%s.%s: did you mean %s.%s? ", section, name, best->section, best->name);
	return config_refuse_at(e, "%s.%s: ", section, name);
}

int config_refuse_section(const char *section, struct config_error *e)
{
	config_for_each_key(k)
	{
		if (config_distance(section, k->section) <= 2)
			return config_refuse(e, "unknown section [%s]; did you mean [%s%s]?", section, k->section,
			                     config_is_namespace_key(k) ? " NAME" : "");
	}
	return config_refuse(e, "unknown section [%s]", section);
}

const struct config_key *config_find_key(const char *section, const char *name)
{
	config_for_each_key(k)
	{
		if (strcmp(k->section, section) == 0 && strcmp(k->name, name) == 0)
			return k;
	}
	return NULL;
}

const struct config_namespace *config_find_namespace(const struct config *c, const char *name)
{
	assert(c && name);
	for (uint32_t i = 0; i < c->n_namespaces; i++) {
		if (strcmp(c->namespaces[i].name, name) == 0)
			return &c->namespaces[i];
	}
	return NULL;
}

int config_add_namespace(struct config *c, const char *name, struct config_where place,
                         struct config_namespace **ret_ns, struct config_error *e)
{
	struct config_namespace *ns = &c->namespaces[c->n_namespaces];
	size_t n = strlen(name);

	if (n == 0 || n >= sizeof(ns->name))
		return config_refuse(e, "a namespace's name has 1 to %zu characters", sizeof(ns->name) - 1);
	for (const char *p = name; *p; p++) {
		if (!isalnum((unsigned char)*p) && !strchr("._-/:@+", *p))
			return config_refuse(e, "a namespace's name has no '%c'", *p);
	}
	if (c->n_namespaces == CONFIG_MAX_NAMESPACES)
		return config_refuse(e, "more than %d namespaces", CONFIG_MAX_NAMESPACES);
	memset(ns, 0, sizeof(*ns));
	memcpy(ns->name, name, n);
	ns->place = place;
	for (const struct config_key *k = config_keys + N_PLAIN; k < config_keys + N_KEYS; k++) {
		int r = config_parse(k, k->value, (char *)ns + k->offset, e);

		assert(r == 0);
		(void)r;
	}
	c->n_namespaces++;
	*ret_ns = ns;
	return 0;
}

/* Stores @value for @k; a key set twice in the file is refused. */
int config_put(struct config *c, const struct config_key *k, struct config_namespace *ns, const char *value,
               struct config_where where, struct config_error *e)
{
	struct config_where *w = ns ? &ns->where[k - config_keys - N_PLAIN] : &c->where[k - config_keys], before = *w;
	char place[CONFIG_VALUE_SIZE];
	int r = 0;

	assert(config_is_namespace_key(k) == (ns != NULL));
	*w = where;
	config_place(c, k, ns, place);
	if (where.source == CONFIG_FROM_FILE && before.source == CONFIG_FROM_FILE)
		r = config_refuse(e, "was set in line %u already", before.line);
	else
		r = config_parse(k, value, (ns ? (char *)ns : (char *)c) + k->offset, e);
	if (r != 0)
		*w = before;
	return r == 0 ? 0 : config_refuse_at(e, "%s: ", place);
}

int config_set(struct config *c, const char *key, const char *value, enum config_source source,
               struct config_error *ret_error)
{
	struct config_where where = { .source = source };
	struct config_namespace *ns = NULL;
	const char *first = strchr(key, '.'), *last = strrchr(key, '.');
	const struct config_key *k;
	char section[2 * CONFIG_NAME_SIZE] = "";

	assert(c && value && ret_error && source != CONFIG_FROM_FILE);
	if (!first || (size_t)(last - key) >= sizeof(section))
		return config_refuse(ret_error, "%s: a key is section.name, such as g2.size", key);
	memcpy(section, key, (size_t)(last - key));
	section[first - key] = '\0'; /* what follows, up to @last, is a namespace's name */
	k = config_find_key(section, last + 1);
	if (!k || (first == last) != !config_is_namespace_key(k)) {
		if (strcmp(section, CONFIG_NAMESPACE) == 0 && k)
			return config_refuse(ret_error, "%s: say which: namespace.NAME.%s", key, k->name);
		config_refuse_key(section, last + 1, ret_error);
		return first == last ? CONFIG_E_BAD : config_refuse(ret_error, "%s: unknown key", key);
	}
	if (config_is_namespace_key(k)) {
		const char *name = section + (first - key) + 1;
		int r;

		ns = (struct config_namespace *)config_find_namespace(c, name);
		r = ns ? 0 : config_add_namespace(c, name, where, &ns, ret_error);
		if (r != 0)
			return config_refuse_at(ret_error, "--%s: ", key);
	}
	return config_put(c, k, ns, value, where, ret_error);
}

/* The whole ------------------------------------------------------------------------------------------------------------------ */

void config_init(struct config *c)
{
	struct config_error e;

	assert(c);
	memset(c, 0, sizeof(*c));
	for (const struct config_key *k = config_keys; k < config_keys + N_PLAIN; k++) {
		int r = config_parse(k, k->value, (char *)c + k->offset, &e);

		assert(r == 0);
		(void)r;
	}
}

uint64_t config_amount_bytes(const struct config_amount *amount, uint64_t total)
{
	assert(amount);
	return amount->is_percent ? (uint64_t)((unsigned __int128)total * amount->value / 100) : amount->value;
}

bool config_uids_allow(const struct config_uids *uids, uid_t uid)
{
	assert(uids && uids->n <= CONFIG_MAX_UIDS);
	for (uint32_t i = 0; i < uids->n; i++) {
		if (uids->uid[i] == uid)
			return true;
	}
	return uids->n == 0;
}

/* @part must not be above @whole.  If only one of them was set, the other follows it. */
static int config_check_pair(struct config *c, const char *section, const char *part, const char *whole,
                             struct config_error *e)
{
	const struct config_key *kp = config_find_key(section, part), *kw = config_find_key(section, whole);
	uint64_t *p = (uint64_t *)(void *)((char *)c + kp->offset), *w = (uint64_t *)(void *)((char *)c + kw->offset);
	char place[CONFIG_VALUE_SIZE], other[CONFIG_VALUE_SIZE];

	if (*p <= *w)
		return 0;
	if (c->where[kp - config_keys].source == CONFIG_DEFAULT) {
		*p = *w;
	} else if (c->where[kw - config_keys].source == CONFIG_DEFAULT) {
		*w = *p;
	} else {
		return config_refuse(e, "%s: %" PRIu64 " is more than %" PRIu64 ", which is all of them (%s)",
		                     config_place(c, kp, NULL, place), *p, *w, config_place(c, kw, NULL, other));
	}
	return 0;
}

/* Does @k say something about the tier, but for the key that makes it? */
static bool config_is_of(const struct config_key *k, const char *tier)
{
	if (config_is_namespace_key(k))
		return strncmp(k->name, tier, 2) == 0 && k->name[2] == '_';
	if (strncmp(tier, "g1", 2) == 0)
		return strcmp(k->section, "g1") == 0 && strcmp(k->name, "region_size") == 0;
	return strcmp(k->section, "g3") == 0 ? strcmp(k->name, "path") != 0 : strcmp(k->name, "low_watermark") == 0;
}

static bool config_is_default(const struct config_key *k, const void *field)
{
	_Alignas(8) unsigned char value[CONFIG_VALUE_SIZE];
	char have[CONFIG_VALUE_SIZE], want[CONFIG_VALUE_SIZE];
	struct config_error e;
	int r = config_parse(k, k->value, value, &e);

	assert(r == 0 && config_field_size(k) <= sizeof(value));
	config_format(k, field, have);
	config_format(k, value, want);
	return strcmp(have, want) == 0;
}

static int config_refuse_without(const struct config *c, const struct config_key *k, const struct config_namespace *ns,
                                 const char *without, struct config_error *e)
{
	char place[CONFIG_VALUE_SIZE];

	if (config_is_default(k, (ns ? (const char *)ns : (const char *)c) + k->offset))
		return 0;
	return config_refuse(e, "%s: does nothing without %s", config_place(c, k, ns, place), without);
}

/* A setting of a tier that is not there would do nothing. */
static int config_check_no(const struct config *c, const char *without, struct config_error *e)
{
	config_for_each_key(k)
	{
		if (!config_is_of(k, without))
			continue;
		if (!config_is_namespace_key(k) && config_refuse_without(c, k, NULL, without, e) != 0)
			return CONFIG_E_BAD;
		for (uint32_t i = 0; config_is_namespace_key(k) && i < c->n_namespaces; i++)
			if (config_refuse_without(c, k, &c->namespaces[i], without, e) != 0)
				return CONFIG_E_BAD;
	}
	return 0;
}

/* The daemon's own files are in nobody's cache, and no drive is there twice. */
static int config_check_g3_paths(const struct config *c, struct config_error *e)
{
	char paths[CONFIG_PATHS_SIZE], place[CONFIG_VALUE_SIZE], *save = NULL;
	const char *seen[CONFIG_MAX_PATHS];
	size_t n = 0, socket = strlen(c->socket);

	config_place(c, config_find_key("g3", "path"), NULL, place);
	memcpy(paths, c->g3_path, sizeof(paths));
	for (char *p = strtok_r(paths, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
		assert(n < CONFIG_MAX_PATHS);
		for (size_t i = 0; i < n; i++)
			if (strcmp(seen[i], p) == 0)
				return config_refuse(e, "%s: %s stands there twice", place, p);
		if (socket > 0 && strncmp(p, c->socket, socket) == 0 && (!p[socket] || strcmp(p + socket, ".lock") == 0))
			return config_refuse(e, "%s: %s is the socket or its lock (daemon.socket)", place, p);
		seen[n++] = p;
	}
	return 0;
}

/* What a namespace is guaranteed of a tier and may have of it: keys @share and @max of [namespace], of @total bytes, which @whole sets; 0: not
 * known before the drives are looked at, then only percentages are compared. */
struct config_split {
	const char *share, *max;
	const struct config_key *whole;
	uint64_t total;
};

static int config_check_split(const struct config *c, const struct config_split *s, struct config_error *e)
{
	const struct config_key *share = config_find_key(CONFIG_NAMESPACE, s->share),
				*max = config_find_key(CONFIG_NAMESPACE, s->max);
	uint64_t total = s->total ? s->total : UINT64_C(100) << 48, sum = 0; /* whatever: a multiple of 100 */
	char place[CONFIG_VALUE_SIZE], other[CONFIG_VALUE_SIZE], text[SIZE_TEXT_MAX], all[SIZE_TEXT_MAX];

	for (uint32_t i = 0; i < c->n_namespaces; i++) {
		const struct config_namespace *ns = &c->namespaces[i];
		const struct config_amount *as = (const void *)((const char *)ns + share->offset),
					   *am = (const void *)((const char *)ns + max->offset);
		uint64_t bytes = config_amount_bytes(as, total), most = config_amount_bytes(am, total);
		bool same = as->is_percent == am->is_percent;

		if (bytes > most && (s->total || same))
			return config_refuse(e, "%s: is more than its maximum (%s)", config_place(c, share, ns, place),
			                     config_place(c, max, ns, other));
		if (s->total && most > total)
			return config_refuse(e, "%s: is more than all there is (%s)", config_place(c, max, ns, place),
			                     config_place(c, s->whole, NULL, other));
		sum += s->total || as->is_percent ? bytes : 0;
		if (sum > total && !s->total)
			return config_refuse(e, "%s: guaranteed shares come to more than 100%%",
			                     config_place(c, share, ns, place));
		if (sum > total)
			return config_refuse(e, "%s: guaranteed shares come to %s, of %s in all (%s)",
			                     config_place(c, share, ns, place), size_format(sum, text, sizeof(text)),
			                     size_format(total, all, sizeof(all)), config_place(c, s->whole, NULL, other));
	}
	return 0;
}

static int config_check_namespaces(struct config *c, struct config_error *e)
{
	const struct config_split g2 = { "share", "max", config_find_key("g2", "size"), c->g2_size_bytes },
				  g1 = { "g1_share", "g1_max", config_find_key("g1", "size"), c->g1_size_bytes },
				  g3 = { "g3_share", "g3_max", config_find_key("g3", "size"), c->g3_size_bytes };
	const struct config_key *limit = config_find_key("limits", "namespaces");
	char place[CONFIG_VALUE_SIZE];

	if (config_check_split(c, &g2, e) != 0 || (c->g1_size_bytes && config_check_split(c, &g1, e) != 0) ||
	    (c->g3_path[0] && config_check_split(c, &g3, e) != 0))
		return CONFIG_E_BAD;
	if (c->n_namespaces > c->namespaces_max)
		return config_refuse(e, "%s: %" PRIu64 " is less than the %u namespaces that are described",
		                     config_place(c, limit, NULL, place), c->namespaces_max, c->n_namespaces);
	return 0;
}

int config_check(struct config *c, uint64_t memory_bytes, struct config_error *ret_error)
{
	const struct config_key *size = config_find_key("g2", "size"), *region = config_find_key("g2", "region_size");
	char place[CONFIG_VALUE_SIZE], other[CONFIG_VALUE_SIZE], want[SIZE_TEXT_MAX], have[SIZE_TEXT_MAX];

	assert(c && ret_error);
	if (memory_bytes > 0 && c->g2_size_bytes > memory_bytes)
		return config_refuse(ret_error, "%s: %s, but this machine has %s of memory",
		                     config_place(c, size, NULL, place), size_format(c->g2_size_bytes, want, sizeof(want)),
		                     size_format(memory_bytes, have, sizeof(have)));
	if (c->g2_region_bytes > c->g2_size_bytes)
		return config_refuse(ret_error, "%s: a region is larger than all of them together (%s)",
		                     config_place(c, region, NULL, place), config_place(c, size, NULL, other));
	if (c->g1_region_bytes > c->g1_size_bytes && c->g1_size_bytes > 0)
		return config_refuse(ret_error, "%s: a region is larger than all of them together (%s)",
		                     config_place(c, config_find_key("g1", "region_size"), NULL, place),
		                     config_place(c, config_find_key("g1", "size"), NULL, other));
	if (c->g2_huge_pages == CONFIG_HUGE_REQUIRE && c->g2_region_bytes % HUGE_PAGE != 0)
		return config_refuse(ret_error, "%s: is not a multiple of 2M, but g2.huge_pages = require",
		                     config_place(c, region, NULL, place));
	if (config_check_pair(c, "daemon", "max_sessions_per_uid", "max_sessions", ret_error) != 0 ||
	    config_check_pair(c, "limits", "slots_per_session", "slots_per_uid", ret_error) != 0 ||
	    (c->g1_size_bytes == 0 && config_check_no(c, "g1.size", ret_error) != 0) ||
	    (c->g3_path[0] ? config_check_g3_paths(c, ret_error) : config_check_no(c, "g3.path", ret_error)) != 0)
		return CONFIG_E_BAD;
	return config_check_namespaces(c, ret_error);
}

int config_default_socket(char ret_path[CONFIG_PATH_SIZE], struct config_error *ret_error)
{
	const char *dir = getenv("RUNTIME_DIRECTORY");
	char path[CONFIG_PATH_SIZE];
	int n;

	if (!dir || !*dir)
		dir = getenv("XDG_RUNTIME_DIR");
	if (!dir || !*dir)
		dir = "/run/kvbmd";
	/* systemd separates several by colons. */
	n = snprintf(path, sizeof(path), "%.*s/kvbmd.sock", (int)strcspn(dir, ":"), dir);
	if (n < 0 || (size_t)n >= sizeof(path))
		return config_refuse(ret_error, "daemon.socket: '%s/kvbmd.sock' is too long for a socket", dir);
	memcpy(ret_path, path, sizeof(path));
	return 0;
}

static int config_load_file(const char *file, struct config *c, struct config_error *e)
{
	FILE *f = fopen(file ? file : CONFIG_FILE, "re");
	int r;

	if (!f && !file && errno == ENOENT)
		return 0;
	if (!f)
		return config_refuse(e, "%s: cannot be read: %s", file ? file : CONFIG_FILE, strerror(errno));
	r = config_read(c, f, file ? file : CONFIG_FILE, e);
	fclose(f);
	return r;
}

int config_load(const struct config_sources *sources, struct config *ret_config, struct config_error *ret_error)
{
	struct config_error e = { "" };
	struct config c;
	long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
	char key[CONFIG_VALUE_SIZE];
	int r;

	assert(sources && ret_config && ret_error);
	config_init(&c);
	r = config_load_file(sources->file, &c, &e);
	if (r == 0 && sources->env)
		r = config_read_env(&c, sources->env, &e);
	for (size_t i = 0; r == 0 && i < sources->n_flags; i++) {
		const char *flag = sources->flags[i];
		size_t n = strcspn(flag, "=");

		snprintf(key, sizeof(key), "%.*s", (int)(n < sizeof(key) ? n : sizeof(key) - 1), flag);
		r = flag[n] ? config_set(&c, key, flag + n + 1, CONFIG_FROM_FLAG, &e)
		            : config_refuse(&e, "--%s: a flag is --section.key=value", key);
	}
	if (r == 0 && !c.socket[0])
		r = config_default_socket(c.socket, &e);
	if (r == 0)
		r = config_check(&c, pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0, &e);
	if (r == 0)
		*ret_config = c;
	else
		*ret_error = e;
	return r;
}

int config_reload(const struct config *old, const struct config *next, struct config *ret_merged, char *ret_kept,
                  size_t size, struct config_error *ret_error)
{
	struct config merged = *next;
	char kept[CONFIG_VALUE_SIZE] = "", was[CONFIG_VALUE_SIZE], is[CONFIG_VALUE_SIZE];
	size_t n = 0;

	assert(old && ret_merged && ret_kept && size > 0 && ret_error);
	for (const struct config_key *k = config_keys; k < config_keys + N_PLAIN; k++) {
		config_format(k, (const char *)old + k->offset, was);
		config_format(k, (const char *)next + k->offset, is);
		if (k->reload || strcmp(was, is) == 0)
			continue;
		memcpy((char *)&merged + k->offset, (const char *)old + k->offset, config_field_size(k));
		merged.where[k - config_keys] = old->where[k - config_keys];
		n += (size_t)snprintf(kept + n, sizeof(kept) - n, "%s%s.%s", n ? ", " : "", k->section, k->name);
		assert(n < sizeof(kept));
	}
	if (config_check(&merged, 0, ret_error) != 0)
		return CONFIG_E_BAD;
	*ret_merged = merged;
	snprintf(ret_kept, size, "%s", kept);
	return 0;
}

/* Print ---------------------------------------------------------------------------------------------------------------------- */

static void config_print_key(const struct config *c, const struct config_key *k, const struct config_namespace *ns, FILE *f)
{
	struct config_where w = ns ? ns->where[k - config_keys - N_PLAIN] : c->where[k - config_keys];
	char place[CONFIG_VALUE_SIZE], value[CONFIG_VALUE_SIZE];

	config_format(k, (ns ? (const char *)ns : (const char *)c) + k->offset, value);
	if (w.source == CONFIG_FROM_FILE)
		fprintf(f, "# %s:%u\n", c->file, w.line);
	else if (w.source != CONFIG_DEFAULT)
		fprintf(f, "# %s\n", config_place(c, k, ns, place));
	fprintf(f, "%s =%s%s\n", k->name, *value ? " " : "", value);
}

void config_print(const struct config *c, FILE *f)
{
	const char *section = "";

	assert(c && f);
	for (const struct config_key *k = config_keys; k < config_keys + N_PLAIN; k++) {
		if (strcmp(section, k->section) != 0)
			fprintf(f, "%s[%s]\n", *section ? "\n" : "", k->section);
		section = k->section;
		config_print_key(c, k, NULL, f);
	}
	for (uint32_t i = 0; i < c->n_namespaces; i++) {
		fprintf(f, "\n[%s %s]\n", CONFIG_NAMESPACE, c->namespaces[i].name);
		for (const struct config_key *k = config_keys + N_PLAIN; k < config_keys + N_KEYS; k++)
			config_print_key(c, k, &c->namespaces[i], f);
	}
}

void config_write_sample(FILE *f)
{
	const char *section = "";

	assert(f);
	fputs("# kvbmd.conf: settings of kvbmd, see kvbmd.conf(5).  What is commented out is the default.\n"
	      "# The environment (KVBMD_G2_SIZE=4G) overrides this file, flags (--g2.size=4G) override both.\n"
	      "# Keys marked \"live\" are read again on SIGHUP; the others need a restart.\n",
	      f);
	config_for_each_key(k)
	{
		if (strcmp(section, k->section) != 0 && config_is_namespace_key(k))
			fprintf(f,
			        "\n# Each namespace that needs it has a section of its own, by the name its clients attach.\n"
			        "#[%s NAME]\n",
			        k->section);
		else if (strcmp(section, k->section) != 0)
			fprintf(f, "\n[%s]\n", k->section);
		section = k->section;
		fputs("\n# ", f);
		for (const char *p = k->comment; *p; p++)
			*p == '\n' ? (void)fputs("\n# ", f) : (void)fputc(*p, f);
		fprintf(f, "%s\n#%s =%s%s\n", k->reload ? "  (live)" : "", k->name, *k->value ? " " : "", k->value);
	}
}
