/* Verbs that move blocks between tiers: prefetch and drain.  Both are asked of the daemon, which does the work; drain goes on there when it is
 * no longer waited for.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "ctl.h"
#include "output.h"

#define DRAIN_PAUSE_NS (50 * CLOCK_NS_PER_MS)

/* ---- prefetch ---- */

static int prefetch_report(struct ctl *ctl, const char *ns, int there, uint32_t not_there)
{
	if (ctl->json)
		ctl_print(ctl, json_pack("{s:s, s:i, s:i, s:i}", "namespace", ns, "asked", there + (int)not_there,
		                         "in_memory", there, "not", (int)not_there));
	else
		printf("%d of %d blocks of %s are in memory%s\n", there, there + (int)not_there, ns,
		       not_there ? "; the next one is nowhere, could not be read, or found no room: kvbmctl why tells"
		                 : "");
	return not_there ? CTL_NO : CTL_DONE;
}

int verb_prefetch(struct ctl *ctl, int argc, char **argv)
{
	const char *given = NULL;
	const struct arg table[] = { { "namespace", 'n', ARG_STRING, &given, "NAME", "whose blocks" }, { 0 } };
	uint8_t *keys = NULL;
	char *ns = NULL;
	uint32_t len = 0, kept = 0;
	int r = ctl_args(ctl, table, &argc, argv, 1, (int)KVBM_MAX_KEYS);

	if (r >= 0)
		return r;
	r = ctl_keys(ctl, argc, argv, &keys, &len);
	if (r == 0)
		r = ctl_open(ctl);
	if (r == 0)
		r = ctl_namespace(ctl, given, &ns);
	if (r == 0) {
		r = kvbm_admin(ctl->kvbm, "prefetch", ns, keys, len, (uint32_t)argc, &kept);
		r = r < 0 ? ctl_failed(ctl, ns, r) : prefetch_report(ctl, ns, r, kept);
	}
	free(ns);
	free(keys);
	return r;
}

/* ---- drain ---- */

struct drain {
	const char *ns;                     /* NULL: all */
	uint64_t looking, writing, missing; /* slots and copies to go; blocks that are not below */
};

static uint64_t drain_number(const json_t *row, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(row, name));
}

/* 0, or the exit code after saying why. */
static int drain_look(struct ctl *ctl, struct drain *d)
{
	json_t *list, *row;
	size_t i;
	int r = ctl_info(ctl, "namespaces", d->ns, &list);

	if (r != 0)
		return r;
	d->looking = d->writing = d->missing = 0;
	json_array_foreach(list, i, row)
	{
		if (json_object_get(row, "device"))
			continue; /* a pool: its blocks go to host memory, and only from there on */
		d->looking += drain_number(row, "g3_draining");
		d->writing += drain_number(row, "g3_writing");
		d->missing += drain_number(row, "used") - drain_number(row, "g3_in_both");
	}
	json_decref(list);
	return 0;
}

/* Until every slot has been looked at and its copy has ended, or nothing has moved for so long. */
static int drain_wait(struct ctl *ctl, struct drain *d, uint64_t patience_ns)
{
	uint64_t started = clock_now_ns(), moved_ns = started, first = 0;
	struct timespec pause = { .tv_nsec = (long)DRAIN_PAUSE_NS };
	int r;

	for (;;) {
		struct drain before = *d;
		char text[64];

		r = drain_look(ctl, d);
		if (r != 0 || (d->looking == 0 && (d->writing == 0 || d->missing == 0)))
			return r;
		if (d->looking != before.looking || d->missing != before.missing)
			moved_ns = clock_now_ns();
		if (clock_now_ns() - moved_ns > patience_ns)
			return 0;
		first = d->missing > first ? d->missing : first;
		snprintf(text, sizeof(text), "%llu blocks to go", (unsigned long long)d->missing);
		ctl_progress("drain", first ? 1 - (double)d->missing / (double)first : 1, text);
		while (nanosleep(&pause, &pause) != 0 && errno == EINTR)
			;
		pause = (struct timespec){ .tv_nsec = (long)DRAIN_PAUSE_NS };
	}
}

/* Why something is left: what is known of it. */
static void drain_say_why(struct ctl *ctl, const struct drain *d, uint32_t cannot)
{
	json_t *tiers;
	const json_t *g3;

	if (cannot > 0)
		printf("%u of them are not for g3: g3_write is never, or their slices are no multiple of 4096 bytes\n",
		       cannot);
	if (d->missing <= cannot || ctl_info_try(ctl->kvbm, "tiers", "g3", NULL, 0, &tiers) < 0)
		return;
	g3 = json_array_get(tiers, 0);
	printf("others could not be written now, or came meanwhile; g3 is %s: %llu of %llu slots free, %llu errors\n",
	       json_string_value(json_object_get(g3, "state")), (unsigned long long)drain_number(g3, "free"),
	       (unsigned long long)drain_number(g3, "slots"), (unsigned long long)drain_number(g3, "errors"));
	json_decref(tiers);
}

static int drain_report(struct ctl *ctl, const struct drain *d, int begun, uint32_t cannot)
{
	/* What came while it ran counts neither way. */
	uint64_t left = d->missing, written = (uint64_t)begun + cannot > left ? (uint64_t)begun + cannot - left : 0;

	if (ctl->json) {
		ctl_print(ctl, json_pack("{s:s?, s:I, s:I, s:i}", "namespace", d->ns, "written", (json_int_t)written,
		                         "left", (json_int_t)left, "not_for_g3", (int)cannot));
	} else {
		printf("wrote %llu block%s down; %llu are in memory only\n", (unsigned long long)written,
		       written == 1 ? "" : "s", (unsigned long long)left);
		drain_say_why(ctl, d, cannot);
	}
	return left ? CTL_NO : CTL_DONE;
}

int verb_drain(struct ctl *ctl, int argc, char **argv)
{
	double patience = 10;
	const struct arg table[] = { { "patience", 0, ARG_REAL, &patience, "SECONDS",
		                       "give up when nothing moves for so long (10)" },
		                     { 0 } };
	struct drain d = { 0 };
	uint32_t cannot = 0;
	int r = ctl_args(ctl, table, &argc, argv, 0, 1), begun;

	if (r >= 0)
		return r;
	if (patience > 86400)
		return ctl_usage(ctl, "patience is at most 86400 seconds");
	d.ns = argc ? argv[0] : NULL;
	r = ctl_open(ctl);
	if (r != 0)
		return r;
	begun = kvbm_admin(ctl->kvbm, "drain", d.ns, NULL, 0, 0, &cannot);
	if (begun < 0)
		return ctl_failed(ctl, d.ns ? d.ns : "all namespaces", begun);
	r = drain_wait(ctl, &d, (uint64_t)(patience * 1e9));
	ctl_progress_end();
	return r != 0 ? r : drain_report(ctl, &d, begun, cannot);
}
