/* SPDX-License-Identifier: Apache-2.0 */
/* config.h: the settings of a daemon, as one plain value.
 *
 * Sources, later ones win: defaults, the INI file, the environment (KVBMD_SECTION_KEY), flags (--section.key=value).  One table
 * in config.c has a row for each key; parsing, printing and the sample file conf/kvbmd.conf come from it.  Everything that is not
 * understood is refused with a text that names the key and where it stands: no setting does nothing.
 *
 * Outcome of all functions here: CONFIG_E_BAD.  Outputs are written only on success, ret_error only then not.  Start-up thread.
 */
#ifndef KVBMD_CONFIG_H
#define KVBMD_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define CONFIG_FILE "/etc/kvbmd/kvbmd.conf"

#define CONFIG_MAX_KEYS 64
#define CONFIG_DEVICES_SIZE 700 /* 16 UUIDs */
#define CONFIG_MAX_NAMESPACES 64
#define CONFIG_MAX_UIDS 16   /* so that the list fits into a line of the file */
#define CONFIG_PATH_SIZE 108 /* what sockaddr_un holds */
#define CONFIG_NAME_SIZE 64
#define CONFIG_PATHS_SIZE 512 /* all of them, with commas */
#define CONFIG_MAX_PATHS 16

enum {
	CONFIG_E_BAD = 1, /* refused; the text says what and where */
};

struct config_error {
	char text[512];
};

enum config_source { CONFIG_DEFAULT = 0, CONFIG_FROM_FILE, CONFIG_FROM_ENV, CONFIG_FROM_FLAG };

/* Where a value was set.  @line: in the file, from 1. */
struct config_where {
	enum config_source source;
	unsigned line;
};

enum config_huge { CONFIG_HUGE_AUTO = 0, CONFIG_HUGE_REQUIRE, CONFIG_HUGE_NEVER };

enum config_write {
	CONFIG_WRITE_ON_EVICT = 0,
	CONFIG_WRITE_THROUGH,
	CONFIG_WRITE_IF_HIT,
	CONFIG_WRITE_NEVER,
	CONFIG_WRITE_INHERIT, /* in a namespace: as g3.write */
};

struct config_uids {
	uint32_t n;
	uid_t uid[CONFIG_MAX_UIDS];
};

/* "1.5G" or "25%". */
struct config_amount {
	bool is_percent;
	uint64_t value;
};

#define CONFIG_NAMESPACE_KEYS 8

struct config_namespace {
	char name[CONFIG_NAME_SIZE];
	struct config_amount share, max; /* of g2.size; see config_amount_bytes */
	struct config_uids uids;
	struct config_amount g1_share, g1_max; /* of g1.size, on each GPU */
	struct config_amount g3_share, g3_max; /* of the tier's size */
	unsigned g3_write;                     /* enum config_write */
	struct config_where place, where[CONFIG_NAMESPACE_KEYS];
};

struct config {
	/* [daemon] */
	char socket[CONFIG_PATH_SIZE];
	unsigned log;     /* enum log_level */
	uint64_t workers; /* 0: as many as the machine suggests */
	uint64_t stop_timeout_ns;
	uint64_t socket_mode;
	char socket_group[CONFIG_NAME_SIZE]; /* empty: leave the group alone */
	struct config_uids allow_uids;       /* n 0: all */
	struct config_uids admin_uids;       /* n 0: nobody else */
	uint64_t max_sessions, max_sessions_per_uid;
	uint64_t write_timeout_ns;
	/* [g1] */
	char g1_devices[CONFIG_DEVICES_SIZE]; /* "auto", "none" or UUIDs */
	uint64_t g1_depth, g1_timeout_ns;
	uint64_t g1_size_bytes;   /* on each; 0: no pools */
	uint64_t g1_region_bytes; /* 0: chosen by the daemon */
	/* [g2] */
	uint64_t g2_size_bytes;
	uint64_t g2_region_bytes; /* 0: chosen by the daemon */
	unsigned g2_huge_pages;   /* enum config_huge */
	uint64_t g2_grace_percent;
	unsigned g2_numa; /* 0 or 1 */
	uint64_t g2_low_percent;
	/* [g3] */
	char g3_path[CONFIG_PATHS_SIZE]; /* empty: there is no such tier */
	uint64_t g3_size_bytes;          /* 0: what is there */
	unsigned g3_write;               /* enum config_write */
	uint64_t g3_depth, g3_wait_ns, g3_io_timeout_ns, g3_scrub_percent, g3_budget_bytes;
	/* [limits] */
	uint64_t leases_per_session, slots_per_session, slots_per_uid, pins_per_session;
	uint64_t output_bytes, frame_timeout_ns, namespaces_max, why_entries;
	/* [namespace NAME] */
	uint32_t n_namespaces;
	struct config_namespace namespaces[CONFIG_MAX_NAMESPACES];
	/* where it all comes from */
	struct config_where where[CONFIG_MAX_KEYS];
	char file[256];
};

/* What config_load() reads.  All pointers are borrowed for the call. */
struct config_sources {
	const char *file;         /* NULL: CONFIG_FILE, which may be absent */
	char *const *env;         /* NULL: none; else as in environ */
	const char *const *flags; /* "section.key=value" each, without the dashes */
	size_t n_flags;
};

/* Everything in order: defaults, file, environment, flags, the default socket if none is named, config_check() against this
 * machine's memory.  For a reload call it again with the same sources. */
int config_load(const struct config_sources *sources, struct config *ret_config, struct config_error *ret_error);

/* The steps, for tests and tools.  config_read() takes @name for its messages.  config_set() takes "g2.size" or
 * "namespace.NAME.share"; a flag may make a namespace, the environment may not. */
void config_init(struct config *c);
int config_read(struct config *c, FILE *f, const char *name, struct config_error *ret_error);
int config_read_env(struct config *c, char *const *env, struct config_error *ret_error);
int config_set(struct config *c, const char *key, const char *value, enum config_source source,
               struct config_error *ret_error);

/* Refuses contradictions and impossible sizes.  Limits left to their default follow the ones that were set (max_sessions = 100
 * alone makes max_sessions_per_uid 100).  @memory_bytes 0: unknown. */
int config_check(struct config *c, uint64_t memory_bytes, struct config_error *ret_error);

/* What a running daemon takes over of @next: ret_merged is @next with the value @old had for each key that cannot change live.
 * ret_kept lists those ("g2.size, daemon.socket"), and is empty if there are none.  The merged whole is checked too. */
int config_reload(const struct config *old, const struct config *next, struct config *ret_merged, char *ret_kept,
                  size_t size, struct config_error *ret_error);

/* Effective values with where each was set, in a form that config_read() takes. */
void config_print(const struct config *c, FILE *f);

/* conf/kvbmd.conf. */
void config_write_sample(FILE *f);

/* kvbmd.sock in $RUNTIME_DIRECTORY (its first), $XDG_RUNTIME_DIR or /run/kvbmd.  Refused if longer than a socket's path. */
int config_default_socket(char ret_path[CONFIG_PATH_SIZE], struct config_error *ret_error);

/* Bytes of @amount, of @total. */
uint64_t config_amount_bytes(const struct config_amount *amount, uint64_t total);

/* The section of that name, or NULL. */
const struct config_namespace *config_find_namespace(const struct config *c, const char *name);

/* Whether @uid is in the list, or the list is empty. */
bool config_uids_allow(const struct config_uids *uids, uid_t uid);

#endif
