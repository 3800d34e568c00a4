// Log lines to stderr: `2026-11-22T03:00:00.123Z INFO  node 3 | text`. One line per call, written
// by one write(2), so lines of several processes sharing a terminal do not mix. Thread-safe.
// The function that first knows the cause of a failure logs it, once, with ids.
#pragma once

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };

// Name of this process in every line ("coordinator", "node 3"); copied, at most 47 bytes.
void log_set_who(const char *who);
// Lines below `level` are dropped. Default: LOG_INFO, or the HADAL_LOG environment variable
// (debug, info, warn, error, off).
void log_set_level(enum log_level level);
enum log_level log_level(void);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
