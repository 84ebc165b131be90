/* SPDX-License-Identifier: Apache-2.0 */
/* kvbmd: its command line.  What it says is about flags and settings; the rest is daemon.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <kvbm_version.h>

#include "config.h"
#include "daemon.h"

static const char main_help[] = "usage: kvbmd [--config FILE] [--check-config | --print-config] [--foreground] [--SECTION.KEY=VALUE]...\n\n"
				"  --config FILE          settings; default " CONFIG_FILE ", which need not be there\n"
				"  --check-config         say whether the settings are right, and exit\n"
				"  --print-config         print the settings in effect and where each is from, and exit\n"
				"  --print-sample-config  print a file of all settings with their defaults, and exit\n"
				"  --foreground           accepted for scripts: kvbmd always stays in the foreground\n"
				"  --SECTION.KEY=VALUE    a setting, over file and environment: --g2.size=4G\n"
				"  --version, --help\n\n"
				"SIGTERM ends it, SIGHUP makes it read its settings again.  Exit codes: 0 ended as told, 1 failed, 2 usage or settings.\n";

struct arguments {
	struct config_sources sources;
	bool check, print;
};

static int main_usage(const char *what, const char *which)
{
	fprintf(stderr, "kvbmd: %s%s\nkvbmd --help lists what there is\n", what, which);
	return DAEMON_REFUSED;
}

/* What only prints ends here; -1: go on. */
static int main_print(const char *arg)
{
	if (strcmp(arg, "--help") == 0)
		fputs(main_help, stdout);
	else if (strcmp(arg, "--version") == 0)
		printf("kvbmd %s, protocol %d.%d\n", KVBM_VERSION, KVBM_PROTO_MAJOR, KVBM_PROTO_MINOR);
	else if (strcmp(arg, "--print-sample-config") == 0)
		config_write_sample(stdout);
	else
		return -1;
	return fflush(stdout) == 0 ? DAEMON_OK : DAEMON_FAILED;
}

/* @flags has room for all arguments.  -1: go on, else the exit status. */
static int main_arguments(char **argv, struct arguments *a, const char **flags)
{
	int r = -1;

	for (unsigned i = 1; argv[i] && r < 0; i++) {
		const char *arg = argv[i];

		if (strncmp(arg, "--config=", 9) == 0) {
			a->sources.file = arg + 9;
		} else if (strcmp(arg, "--config") == 0) {
			if (!argv[i + 1])
				return main_usage("which file? ", arg);
			a->sources.file = argv[++i];
		} else if (strcmp(arg, "--check-config") == 0) {
			a->check = true;
		} else if (strcmp(arg, "--print-config") == 0) {
			a->print = true;
		} else if (strncmp(arg, "--", 2) == 0 && memchr(arg, '.', strcspn(arg, "="))) {
			flags[a->sources.n_flags++] = arg + 2;
		} else if (strcmp(arg, "--foreground") != 0) {
			r = main_print(arg);
			if (r < 0)
				return main_usage("unknown argument ", arg);
		}
	}
	return r;
}

int main(int argc, char **argv)
{
	static struct config config;
	struct arguments a = { .sources = { .env = environ } };
	const char **flags = calloc((size_t)argc + 1, sizeof(*flags));
	struct config_error error;
	int code;

	if (!flags)
		return DAEMON_FAILED;
	a.sources.flags = flags;
	code = main_arguments(argv, &a, flags);
	if (code < 0 && config_load(&a.sources, &config, &error) != 0) {
		fprintf(stderr, "kvbmd: %s\n", error.text);
		code = DAEMON_REFUSED;
	}
	if (code < 0 && a.print)
		config_print(&config, stdout);
	if (code < 0 && a.check && !a.print)
		printf("%s: the configuration is right\n", config.file[0] ? config.file : "kvbmd");
	if (code < 0 && (a.print || a.check))
		code = fflush(stdout) == 0 ? DAEMON_OK : DAEMON_FAILED;
	if (code < 0)
		code = (int)daemon_run(&config, &a.sources);
	free(flags);
	return code;
}
