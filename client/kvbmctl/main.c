/* kvbmctl: the command line of kvbmd.  This file knows the verbs; what they do is in the files named after them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvbm_version.h>

#include "base/log.h"
#include "ctl.h"

static const struct verb verbs[] = {
	{ "doctor", "", "Check the machine and say what to mend",
	  "Each line is ok, warn or fail; a failure makes the exit code 1.  Works without a daemon too.", verb_doctor },
	{ "status", "", "Health, sizes and hit rates of the whole daemon", NULL, verb_info },
	{ "top", "[--interval SECONDS] [--count N]", "status and rates per namespace, live", NULL, verb_top },
	{ "namespaces", "[NAME]", "The namespaces, or everything about one", NULL, verb_info },
	{ "clients", "[NAME]", "The sessions and what they hold", NULL, verb_info },
	{ "tiers", "[NAME]", "The tiers, their sizes and their state", NULL, verb_info },
	{ "block", "[--namespace NAME] KEY", "Where a block is, who holds it, its parent and children",
	  "KEY is 8 to 32 bytes in hex digits.  NAME may be left out where there is only one.", verb_block },
	{ "why", "[--namespace NAME] KEY", "Why a look-up of a block misses",
	  "KEY is 8 to 32 bytes in hex digits.  NAME may be left out where there is only one.", verb_block },
	{ "match", "[--namespace NAME] KEY...", "How long a prefix of these keys the node has",
	  "Looks without holding or touching.  Exit code 1 unless all are there.  NAME may be left out where there is only one.",
	  verb_match },
	{ "flush", "[NAMESPACE]", "Drop every block that is not in use, of one namespace or of all", NULL, verb_flush },
	{ "drop", "--namespace NAME [KEY...]", "Drop these blocks; without keys the namespace itself",
	  "Blocks in use are kept and counted; a namespace somebody is attached to is not dropped.", verb_drop },
	{ "prefetch", "[--namespace NAME] KEY...", "Bring the leading ones of these blocks into memory",
	  "Waits for up to 4 seconds.  Exit code 1 unless all are there then.  NAME may be left out where there is only one.",
	  verb_prefetch },
	{ "drain", "[NAMESPACE]", "Write everything to g3 that is not there yet, and wait for it",
	  "Blocks stay in memory as well.  When g3 is full its coldest blocks go.  Exit code 1 if something is in memory only.",
	  verb_drain },
	{ "fsck", "FILE...", "Check the files or devices of g3 while the daemon is down",
	  "Damaged is what cannot be told any more; stale is what a restart leaves behind, and normal.  Either is a miss for\n"
	  "the daemon, never a wrong byte.  Exit code 1 if something is damaged, or a file is in use or not kvbmd's.",
	  verb_fsck },
	{ "dump", "FILE...", "List the blocks in files or devices of g3 while the daemon is down", NULL, verb_dump },
	{ "metrics", "", "All counters, in Prometheus' text form (or JSON)", NULL, verb_metrics },
	{ "replay", "--trace FILE | --workload KIND",
	  "Drive the daemon with client processes from a request stream and check every byte",
	  "A request matches its blocks, checks the bytes of every hit, writes and commits the others, and releases.\n"
	  "KIND is chat, agent or document, with options: chat:requests=1000,users=50,seed=7 (see simulate --help).\n"
	  "Exit code 1 if a byte was wrong or a request failed.",
	  verb_replay },
	{ "simulate", "--trace FILE | --workload KIND",
	  "Hit rates of a request stream at several capacities, by the daemon's own policy, without a daemon",
	  "KIND is chat, agent or document, then :key=value,... with the keys requests, users, seed, turns (mean), prompts\n"
	  "(shared system prompts), zipf (skew of their popularity), system, first, input, output (tokens), block (tokens a\n"
	  "block), max (tokens of context), burst (percent).",
	  verb_simulate },
	{ 0 },
};

static void main_help(void)
{
	printf("kvbmctl [-S SOCKET] [-o table|json] VERB ...\n\n");
	for (const struct verb *v = verbs; v->name; v++)
		printf("  %-11s %s\n", v->name, v->summary);
	printf("\nkvbmctl VERB --help says more.  Exit codes: 0 done, 1 no, 2 usage, 3 daemon unreachable.\n");
}

static int main_usage(const char *what, const char *which)
{
	fprintf(stderr,
	        "kvbmctl: %s%s\nusage: kvbmctl [-S SOCKET] [-o table|json] VERB ...   (kvbmctl --help lists the verbs)\n",
	        what, which);
	return CTL_USAGE;
}

/* Takes what stands before the verb.  Returns the index of the verb, or -1 - exit code. */
static int main_options(struct ctl *ctl, int argc, char **argv)
{
	int i = 1;

	for (; i < argc && argv[i][0] == '-'; i++) {
		const char **to = NULL;

		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
			main_help();
			return -1 - CTL_DONE;
		}
		if (strcmp(argv[i], "--version") == 0 || strcmp(argv[i], "-V") == 0) {
			printf("kvbmctl %s\n", KVBM_VERSION);
			return -1 - CTL_DONE;
		}
		if (strncmp(argv[i], "-S", 2) == 0 || strncmp(argv[i], "--socket", 8) == 0)
			to = &ctl->socket;
		else if (strncmp(argv[i], "-o", 2) == 0 || strncmp(argv[i], "--output", 8) == 0)
			to = &ctl->output;
		if (!to)
			return -1 - main_usage("unknown option ", argv[i]);
		if (argv[i][1] != '-' && argv[i][2])
			*to = argv[i] + 2;
		else if (argv[i][1] == '-' && argv[i][8] == '=')
			*to = argv[i] + 9;
		else if (argv[i][1] == '-' && argv[i][8])
			return -1 - main_usage("unknown option ", argv[i]);
		else if (i + 1 < argc)
			*to = argv[++i];
		else
			return -1 - main_usage("a value is missing after ", argv[i]);
	}
	return i;
}

int main(int argc, char **argv)
{
	struct ctl ctl = { .output = "table" };
	int at = main_options(&ctl, argc, argv), code;

	if (at < 0)
		return -1 - at;
	if (at == argc)
		return main_usage("no verb", "");
	if (strcmp(argv[at], "help") == 0) {
		main_help();
		return CTL_DONE;
	}
	log_set_name("kvbmctl");
	if (log_set_level("warn") != 0)
		return CTL_NO;
	for (const struct verb *v = verbs; v->name; v++)
		if (strcmp(argv[at], v->name) == 0)
			ctl.verb = v;
	if (!ctl.verb)
		return main_usage("no such verb: ", argv[at]);
	code = ctl.verb->run(&ctl, argc - at - 1, argv + at + 1);
	kvbm_close(ctl.kvbm);
	if (fflush(stdout) != 0 && code == CTL_DONE)
		code = CTL_NO;
	return code;
}
