/* ctl.h: what the verbs of kvbmctl share: where the daemon is, how to answer, and with which exit code. */
#ifndef KVBMCTL_CTL_H
#define KVBMCTL_CTL_H

#include <jansson.h>
#include <kvbm.h>
#include <stdbool.h>
#include <stdint.h>

#include "args.h"
#include "requests.h"

enum { CTL_DONE = 0, CTL_NO = 1, CTL_USAGE = 2, CTL_UNREACHABLE = 3 };

struct ctl {
	const char *socket; /* NULL: where the library looks */
	const char *output; /* "table" or "json", as given */
	bool json;
	const struct verb *verb;
	struct kvbm *kvbm; /* owns; NULL until ctl_open() */
};

/* Options and words have not been looked at when run() is called.  Returns the exit code. */
struct verb {
	const char *name, *words, *summary, *more;
	int (*run)(struct ctl *ctl, int argc, char **argv);
};

int verb_info(struct ctl *ctl, int argc, char **argv); /* status namespaces clients tiers */
int verb_metrics(struct ctl *ctl, int argc, char **argv);
int verb_top(struct ctl *ctl, int argc, char **argv);
int verb_block(struct ctl *ctl, int argc, char **argv); /* block why */
int verb_match(struct ctl *ctl, int argc, char **argv);
int verb_flush(struct ctl *ctl, int argc, char **argv);
int verb_drop(struct ctl *ctl, int argc, char **argv);
int verb_prefetch(struct ctl *ctl, int argc, char **argv);
int verb_drain(struct ctl *ctl, int argc, char **argv);
int verb_fsck(struct ctl *ctl, int argc, char **argv);
int verb_dump(struct ctl *ctl, int argc, char **argv);
int verb_doctor(struct ctl *ctl, int argc, char **argv);
int verb_replay(struct ctl *ctl, int argc, char **argv);
int verb_simulate(struct ctl *ctl, int argc, char **argv);

/* Takes the options of @table (may be NULL) and the common ones out of argv; at least @least and at most @most words must be left.
 * < 0: go on; otherwise the exit code (help was asked for, or something is wrong and said). */
int ctl_args(struct ctl *ctl, const struct arg *table, int *argc, char **argv, int least, int most);

/* "kvbmctl VERB: text" on stderr; returns CTL_USAGE. */
int ctl_usage(const struct ctl *ctl, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The path of the socket that @ctl means. */
void ctl_socket(const struct ctl *ctl, char *buf, size_t size);

/* Opens the session.  0, or the exit code after saying why. */
int ctl_open(struct ctl *ctl);

/* Says that @what failed with @r (< 0, of libkvbm); returns the exit code. */
int ctl_failed(const struct ctl *ctl, const char *what, int r);

/* A report of the daemon, parsed.  0 and *ret_json is the caller's, or the exit code after saying why.  ctl_info_try() says nothing and returns
 * what libkvbm returned. */
int ctl_info(struct ctl *ctl, const char *topic, const char *name, json_t **ret_json);
int ctl_info_try(struct kvbm *kvbm, const char *topic, const char *name, const void *key, uint32_t key_bytes,
                 json_t **ret_json);

/* Prints @value as the user wants it, and frees it. */
void ctl_print(const struct ctl *ctl, json_t *value);

/* Hex to bytes.  Returns the number of bytes (8..32), or -1 after saying what is wrong. */
int ctl_key(const struct ctl *ctl, const char *text, uint8_t ret_key[KVBM_KEY_MAX]);

/* All of argv packed; they are of one length.  0 and *ret_keys is the caller's (free), or the exit code after saying why. */
int ctl_keys(struct ctl *ctl, int argc, char **argv, uint8_t **ret_keys, uint32_t *ret_len);

/* Where there is only one namespace, it need not be named.  0 and *ret_ns is the caller's (free), or the exit code after saying why. */
int ctl_namespace(struct ctl *ctl, const char *given, char **ret_ns);

/* Reads --trace or generates --workload; exactly one must be given.  0, or the exit code after saying why. */
int ctl_requests(const struct ctl *ctl, const char *trace, const char *workload, uint32_t limit, struct requests *rs);

/* A line that is written over and over, on stderr if that is a terminal. */
void ctl_progress(const char *what, double part, const char *detail);
void ctl_progress_end(void);

#endif
