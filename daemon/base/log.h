/* log.h: one line an event, to stderr.
 *
 * Under journald (JOURNAL_STREAM names our stderr) lines carry a <priority>; otherwise the time and the level:
 *	14:03:59.120 kvbmd: info: serving on /run/kvbmd/kvbmd.sock
 * Any thread: a line is one write(2) and is never torn.  Text is cut at LOG_LINE_MAX; control characters, which may
 * come from a client's name, become '?', so that no peer can forge a line.
 *
 * Modules below server/ do not log except through error_origin() and at debug.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

#define LOG_LINE_MAX 2048

enum log_level {
	LOG_LEVEL_ERROR = 0,
	LOG_LEVEL_WARN,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG,
};

/* "error", "warn", "info" or "debug"; anything else is -EINVAL and changes nothing.  The default is info. */
int log_set_level(const char *name);
enum log_level log_get_level(void);
const char *log_level_name(enum log_level level);

/* The word before the level; borrowed for ever.  The default is "kvbmd". */
void log_set_name(const char *name);

void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_enabled(level) ((level) <= log_get_level())
#define log_at_(level, ...) (log_enabled(level) ? log_write((level), __VA_ARGS__) : (void)0)

#define log_error(...) log_at_(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_at_(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_at_(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_at_(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
