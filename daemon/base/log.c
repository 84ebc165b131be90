/* log.c: formats a line and writes it at once.  Owns the level and the name; keeps no buffer between calls and takes no
 * lock.  It does not rotate, filter or speak the journal's native protocol: systemd reads the priority from stderr. */
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"

static _Atomic int log_level = LOG_LEVEL_INFO;
static const char *_Atomic log_name = "kvbmd";

static const struct {
	const char *name;
	int priority; /* syslog's, which journald reads from "<n>" */
} log_levels[] = {
	[LOG_LEVEL_ERROR] = { "error", 3 },
	[LOG_LEVEL_WARN] = { "warn", 4 },
	[LOG_LEVEL_INFO] = { "info", 6 },
	[LOG_LEVEL_DEBUG] = { "debug", 7 },
};

int log_set_level(const char *name)
{
	assert(name);
	for (size_t i = 0; i < sizeof(log_levels) / sizeof(log_levels[0]); i++) {
		if (strcmp(name, log_levels[i].name) == 0) {
			atomic_store_explicit(&log_level, (int)i, memory_order_relaxed);
			return 0;
		}
	}
	return -EINVAL;
}

enum log_level log_get_level(void)
{
	return (enum log_level)atomic_load_explicit(&log_level, memory_order_relaxed);
}

const char *log_level_name(enum log_level level)
{
	assert(level <= LOG_LEVEL_DEBUG);
	return log_levels[level].name;
}

void log_set_name(const char *name)
{
	assert(name);
	atomic_store_explicit(&log_name, name, memory_order_relaxed);
}

/* JOURNAL_STREAM is inherited by whatever a service starts; only if it names this very stderr is journald reading. */
static bool log_to_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	uintmax_t dev, ino;
	struct stat st;

	if (!stream || sscanf(stream, "%ju:%ju", &dev, &ino) != 2)
		return false;
	if (fstat(STDERR_FILENO, &st) < 0)
		return false;
	return st.st_dev == dev && st.st_ino == ino;
}

static int log_prefix(enum log_level level, char *line, size_t size)
{
	struct timespec now;
	struct tm tm;

	if (log_to_journal())
		return snprintf(line, size, "<%d>", log_levels[level].priority);
	clock_gettime(CLOCK_REALTIME, &now);
	localtime_r(&now.tv_sec, &tm);
	return snprintf(line, size, "%02d:%02d:%02d.%03ld %s: %s: ", tm.tm_hour, tm.tm_min, tm.tm_sec,
	                now.tv_nsec / 1000000, atomic_load_explicit(&log_name, memory_order_relaxed),
	                log_levels[level].name);
}

void log_write(enum log_level level, const char *format, ...)
{
	char line[LOG_LINE_MAX];
	int saved = errno;
	size_t start, length;
	va_list args;
	int n;

	assert(level <= LOG_LEVEL_DEBUG);
	n = log_prefix(level, line, sizeof(line));
	start = n > 0 && (size_t)n < sizeof(line) - 2 ? (size_t)n : 0;

	errno = saved; /* for %m */
	va_start(args, format);
	n = vsnprintf(line + start, sizeof(line) - 1 - start, format, args);
	va_end(args);
	length = start + (n > 0 ? (size_t)n : 0);
	if (length > sizeof(line) - 2)
		length = sizeof(line) - 2;

	for (size_t i = start; i < length; i++) {
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	}
	line[length] = '\n';
	/* Nowhere to report that the log cannot be written. */
	if (write(STDERR_FILENO, line, length + 1) < 0) {
	}
	errno = saved;
}
