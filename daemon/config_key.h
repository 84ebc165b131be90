/* SPDX-License-Identifier: Apache-2.0 */
/* config_key.h: what the three files of the configuration share: the row of a key, how its value is read and written
 * (config_value.c), where it is found and stored (config.c).  config_read.c brings file and environment.  Nobody else includes it.
 */
#ifndef KVBMD_CONFIG_KEY_H
#define KVBMD_CONFIG_KEY_H

#include <stddef.h>

#include "config.h"

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)
#define MS UINT64_C(1000000)
#define SEC UINT64_C(1000000000)

#define CONFIG_NAMESPACE "namespace"
#define CONFIG_VALUE_SIZE 1024 /* of any value as text, and of any place */

enum config_type {
	TYPE_PATH,
	TYPE_PATHS,
	TYPE_GROUP,
	TYPE_DEVICES,
	TYPE_WORD,
	TYPE_COUNT,
	TYPE_MODE,
	TYPE_SIZE,
	TYPE_TIME,
	TYPE_PERCENT,
	TYPE_AMOUNT,
	TYPE_UIDS,
};

/* One of a few words; where one means yes or no, all spellings of that are taken too. */
struct config_word {
	const char *text;
	unsigned value;
	char truth; /* 'y', 'n' or 0 */
};

struct config_key {
	const char *section, *name;
	enum config_type type;
	bool reload;       /* can change while the daemon runs */
	size_t offset;     /* in struct config; in struct config_namespace for its section */
	const char *value; /* default */
	uint64_t min, max;
	const struct config_word *words;
	const char *comment; /* for the sample file */
};

/* Puts a text into @e and returns CONFIG_E_BAD.  The second puts what it is given in front of the text that is there. */
int __attribute__((format(printf, 2, 3))) config_refuse(struct config_error *e, const char *format, ...);
int __attribute__((format(printf, 2, 3))) config_refuse_at(struct config_error *e, const char *format, ...);

/* Text to field and back.  config_parse() checks the row's limits; its text in @e has the reason without the place. */
int config_parse(const struct config_key *k, const char *text, void *field, struct config_error *e);
void config_format(const struct config_key *k, const void *field, char buf[CONFIG_VALUE_SIZE]);
size_t config_field_size(const struct config_key *k);

/* The table. */
extern const struct config_key config_keys[];
extern const size_t config_n_keys;
#define config_for_each_key(k) for (const struct config_key *k = config_keys; k < config_keys + config_n_keys; k++)

bool config_is_namespace_key(const struct config_key *k);
const struct config_key *config_find_key(const char *section, const char *name);
/* @e: that there is no such key, and which was perhaps meant; the same for a section. */
int config_refuse_key(const char *section, const char *name, struct config_error *e);
int config_refuse_section(const char *section, struct config_error *e);
/* KVBMD_G2_SIZE, of "g2", "" and "size". */
void config_env_name(const char *section, const char *ns, const char *key, char *buf, size_t size);

/* A new section, all defaults; and a value into it (@ns) or into an ordinary one (NULL).  A key that the file sets twice is refused. */
int config_add_namespace(struct config *c, const char *name, struct config_where place,
                         struct config_namespace **ret_ns, struct config_error *e);
int config_put(struct config *c, const struct config_key *k, struct config_namespace *ns, const char *value,
               struct config_where where, struct config_error *e);

#endif
