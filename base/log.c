#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char who_name[48];
static atomic_int min_level = -1; // -1: not yet read from the environment

static const char *const level_names[] = {"DEBUG", "INFO ", "WARN ", "ERROR"};

void log_set_who(const char *who)
{
    snprintf(who_name, sizeof who_name, "%s", who);
}

void log_set_level(enum log_level level)
{
    atomic_store(&min_level, (int)level);
}

static int level_from_env(void)
{
    static const char *const words[] = {"debug", "info", "warn", "error", "off"};
    const char *env = getenv("HADAL_LOG");
    for (int i = 0; env && i < 5; i++)
        if (!strcmp(env, words[i]))
            return i;
    return LOG_INFO;
}

enum log_level log_level(void)
{
    int level = atomic_load(&min_level);
    if (level < 0) {
        level = level_from_env();
        atomic_store(&min_level, level);
    }
    return (enum log_level)level;
}

void log_write(enum log_level level, const char *fmt, ...)
{
    if (level < log_level() || level >= LOG_OFF)
        return;

    char line[2048];
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    int n = snprintf(line, sizeof line, "%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ %s %s | ",
                     tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
                     ts.tv_nsec / 1000000, level_names[level], who_name);

    va_list ap;
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    va_end(ap);
    size_t len = (size_t)n + (m < 0 ? 0 : (size_t)m);
    if (len > sizeof line - 2)
        len = sizeof line - 2; // cut, never dropped
    line[len++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, len);
    (void)written; // a closed stderr must not stop the server
}
