/* args.h: options of a verb, as a table that is both parser and help.
 *
 * "--name value" and "--name=value"; one-letter names are given as "-n value".  Options and other words may be mixed; after "--"
 * everything is a word.  Sizes as base/size.h reads them.
 */
#ifndef KVBMCTL_ARGS_H
#define KVBMCTL_ARGS_H

#include <stdbool.h>
#include <stdint.h>

enum arg_kind {
	ARG_STRING, /* const char *; borrowed from argv */
	ARG_U32,
	ARG_U64,
	ARG_SIZE, /* uint64_t */
	ARG_REAL, /* double, >= 0 */
	ARG_FLAG, /* bool; takes no value */
};

struct arg {
	const char *name; /* NULL ends the table */
	char letter;      /* 0: none */
	enum arg_kind kind;
	void *to;
	const char *value, *help;
};

enum { ARGS_E_USAGE = 1, ARGS_E_HELP };

/* Takes the options out of argv[0..*argc), which becomes the other words.  @more (may be NULL) is a second table.
 * Outcomes: USAGE (said on stderr, beginning with @program), HELP (--help or -h was there). */
int args_parse(const struct arg *table, const struct arg *more, const char *program, int *argc, char **argv);

/* One line an option, on stdout. */
void args_help(const struct arg *table);

#endif
