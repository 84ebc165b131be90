/* SPDX-License-Identifier: Apache-2.0 */
/* config_read.c: settings out of a file and out of the environment.
 *
 * libinih splits lines into keys and values.  It neither tells line numbers (as Debian builds it) nor reports empty sections,
 * joins indented lines to the value before and cuts long names; so it is fed one checked line at a time.
 */
#include "config_key.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <ini.h>

#include "base/assert.h"

struct config_reader {
	struct config *c;
	FILE *f; /* borrows */
	struct config_error *error;
	bool failed;
	int fault; /* errno of the read that failed */
	unsigned line;
	const char *section;         /* "" before the first; one of the table's, or NAMESPACE */
	struct config_namespace *ns; /* borrows: the section's */
	char *text;                  /* owns; the line */
	size_t room;
};

static int config_reader_fail(struct config_reader *in)
{
	in->failed = true;
	return config_refuse_at(in->error, "%s:%u: ", in->c->file, in->line);
}

/* "[g2]" or "[namespace NAME]", with perhaps a comment after it. */
static int config_reader_enter(struct config_reader *in, const char *text)
{
	char name[2 * CONFIG_NAME_SIZE];
	const char *end = strchr(text, ']');
	size_t n;

	if (!end || (size_t)(end - text) > sizeof(name))
		return config_refuse(in->error, "a section is [name]");
	n = strspn(end + 1, " \t");
	if (end[1 + n] && (end[1 + n] != ';' && end[1 + n] != '#'))
		return config_refuse(in->error, "there is something after the section");
	snprintf(name, sizeof(name), "%.*s", (int)(end - text - 1), text + 1);
	in->ns = NULL;
	config_for_each_key(k)
	{
		if (!config_is_namespace_key(k) && strcmp(k->section, name) == 0) {
			in->section = k->section;
			return 0;
		}
	}
	n = strlen(CONFIG_NAMESPACE);
	if (strncmp(name, CONFIG_NAMESPACE, n) == 0 && (name[n] == ' ' || name[n] == '\t' || name[n] == '\0')) {
		const char *which = name + n + strspn(name + n, " \t");
		const struct config_namespace *before = config_find_namespace(in->c, which);

		if (before)
			return config_refuse(in->error, "[%s] stands in line %u already", name, before->place.line);
		in->section = CONFIG_NAMESPACE;
		return config_add_namespace(in->c, which, (struct config_where){ CONFIG_FROM_FILE, in->line }, &in->ns,
		                            in->error);
	}
	return config_refuse_section(name, in->error);
}

/* What inih calls for each line, with room for @size bytes; it acts on a line before it asks for the next, so in->line is right
 * in config_reader_on_value().  Lines come without indentation, because inih would take an indented one for more of the last. */
static char *config_reader_next(char *buf, int size, void *ctx)
{
	struct config_reader *in = ctx;
	ssize_t n = in->failed ? -1 : getline(&in->text, &in->room, in->f);
	char *text = in->text;
	int r = 0;

	if (n < 0) {
		in->fault = errno;
		return NULL;
	}
	in->line++;
	if (memchr(text, '\0', (size_t)n))
		r = config_refuse(in->error, "has a NUL byte: this is not text");
	if (in->line == 1 && strncmp(text, "\xEF\xBB\xBF", 3) == 0)
		text += 3;
	text += strspn(text, " \t\r\n\v\f");
	for (size_t len = strlen(text); len > 0 && isspace((unsigned char)text[len - 1]); len--)
		text[len - 1] = '\0';
	if (text[0] == '#' || text[0] == ';')
		text[0] = '\0';
	if (r == 0 && strlen(text) + 2 > (size_t)size)
		r = config_refuse(in->error, "a line has at most %d characters", size - 2);
	if (r == 0 && text[0] == '[') {
		r = config_reader_enter(in, text);
		text[0] = '\0';
	}
	if (r == 0 && text[0] && text[strcspn(text, "=:")] != '=')
		r = config_refuse(in->error, "this is neither [section] nor key = value");
	if (r != 0) {
		config_reader_fail(in);
		return NULL;
	}
	snprintf(buf, (size_t)size, "%s\n", text);
	return buf;
}

static int config_reader_on_value(void *ctx, const char *section, const char *name, const char *value)
{
	struct config_reader *in = ctx;
	const struct config_key *k;

	(void)section;
	if (in->failed)
		return 0;
	if (!in->section[0]) {
		config_refuse(in->error, "%s stands before the first [section]", name);
		config_reader_fail(in);
		return 0;
	}
	k = config_find_key(in->section, name);
	if (!k) {
		config_refuse_key(in->section, name, in->error);
		config_reader_fail(in);
		return 0;
	}
	if (strstr(value, " #") || strstr(value, "\t#")) {
		config_refuse(in->error, "%s.%s: a comment behind a value begins with ;", k->section, k->name);
		config_reader_fail(in);
		return 0;
	}
	in->failed = config_put(in->c, k, in->ns, value, (struct config_where){ CONFIG_FROM_FILE, in->line },
	                        in->error) != 0;
	return !in->failed;
}

int config_read(struct config *c, FILE *f, const char *name, struct config_error *ret_error)
{
	struct config_reader in = { .c = c, .f = f, .error = ret_error, .section = "" };
	int r;

	assert(c && f && name && ret_error);
	snprintf(c->file, sizeof(c->file), "%s", name);
	r = ini_parse_stream(config_reader_next, &in, config_reader_on_value, &in);
	free(in.text);
	if (in.failed)
		return CONFIG_E_BAD;
	if (ferror(f))
		return config_refuse(ret_error, "%s: cannot be read: %s", name, strerror(in.fault));
	if (r != 0)
		return config_refuse(ret_error, "%s:%d: cannot be understood", name, r);
	return 0;
}

/* What Kubernetes sets in every container for a service that is called kvbmd. */
static bool config_env_is_service_link(const char *name)
{
	return strncmp(name, "KVBMD_SERVICE_", 14) == 0 || strncmp(name, "KVBMD_PORT", 10) == 0;
}

/* The key that is called @name in the environment; two namespaces may be called the same there. */
static int config_env_find(struct config *c, const char *name, const struct config_key **ret_key,
                           struct config_namespace **ret_ns, struct config_error *e)
{
	unsigned found = 0;
	char candidate[CONFIG_VALUE_SIZE];

	config_for_each_key(k)
	{
		bool of_namespace = config_is_namespace_key(k);

		for (uint32_t i = 0; i < (of_namespace ? c->n_namespaces : 1); i++) {
			struct config_namespace *ns = of_namespace ? &c->namespaces[i] : NULL;

			config_env_name(k->section, ns ? ns->name : "", k->name, candidate, sizeof(candidate));
			if (strcmp(candidate, name) != 0)
				continue;
			*ret_key = k;
			*ret_ns = ns;
			found++;
		}
	}
	if (found == 0 && strncmp(name, "KVBMD_NAMESPACE_", 16) == 0)
		return config_refuse(e, "%s: no [namespace NAME] of the file has such a key", name);
	if (found == 0)
		return config_refuse(e, "%s: unknown key: it is KVBMD_SECTION_KEY, such as KVBMD_G2_SIZE", name);
	if (found > 1)
		return config_refuse(e, "%s: could be meant for more than one namespace", name);
	return 0;
}

int config_read_env(struct config *c, char *const *env, struct config_error *ret_error)
{
	struct config_namespace *ns = NULL;
	const struct config_key *k = NULL;
	char name[CONFIG_VALUE_SIZE];

	assert(c && env && ret_error);
	for (; *env; env++) {
		size_t n = strcspn(*env, "=");

		if (strncmp(*env, "KVBMD_", 6) != 0 || config_env_is_service_link(*env) || (*env)[n] != '=')
			continue;
		snprintf(name, sizeof(name), "%.*s", (int)(n < sizeof(name) ? n : sizeof(name) - 1), *env);
		if (config_env_find(c, name, &k, &ns, ret_error) != 0 ||
		    config_put(c, k, ns, *env + n + 1, (struct config_where){ CONFIG_FROM_ENV, 0 }, ret_error) != 0)
			return CONFIG_E_BAD;
	}
	return 0;
}
