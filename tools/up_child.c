// Starting and watching the processes of a cluster on one host.
#include "tools/up_child.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "tools/cmdline.h"

enum { SOON_MS = 3000, BACKOFF_MS = 100, BACKOFF_MAX_MS = 5000 };

void child_init(struct child *c, const char *name)
{
    *c = (struct child){0};
    snprintf(c->name, sizeof c->name, "%s", name);
}

void child_finish(struct child *c)
{
    for (int i = 0; i < c->argv_n; i++)
        free(c->argv[i]);
    *c = (struct child){0};
}

void child_arg(struct child *c, const char *arg)
{
    assert(c->argv_n + 1 < CHILD_ARGS_MAX);
    c->argv[c->argv_n++] = mem_strdup(arg);
    c->argv[c->argv_n] = NULL;
}

void child_option(struct child *c, const char *name, const char *value)
{
    child_arg(c, name);
    child_arg(c, value);
}

void child_option_int(struct child *c, const char *name, int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    child_option(c, name, text);
}

// Between fork and exec: only calls that are safe there.
static void become(const struct child *c, pid_t parent, int out)
{
    sigset_t none;
    sigemptyset(&none);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(126); // it died before it could be said
    setpgid(0, 0);  // ctrl-C goes to `up`, which stops its children in order
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    int null = open("/dev/null", O_RDWR);
    if (null >= 0)
        dup2(null, STDIN_FILENO);
    // Our own stdout says nothing but "ready"; what they print there is for a script of their own.
    dup2(out == STDERR_FILENO && null >= 0 ? null : out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execv("/proc/self/exe", c->argv);
    _exit(127);
}

static int open_log(const struct child *c)
{
    char path[LIMIT_PATH + LIMIT_NAME];
    if (!c->log_dir)
        return STDERR_FILENO;
    snprintf(path, sizeof path, "%s/%s.log", c->log_dir, c->name);
    return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

enum status child_start(struct child *c)
{
    assert(c->pid == 0);
    int out = open_log(c);
    if (out < 0) {
        log_error("%s/%s.log: %s", c->log_dir, c->name, strerror(errno));
        return STATUS_IO;
    }
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become(c, parent, out);
    int err = errno;
    if (out != STDERR_FILENO)
        close(out);
    if (pid < 0) {
        log_error("cannot start %s: fork: %s", c->name, strerror(err));
        return STATUS_IO;
    }
    c->pid = pid;
    c->started_ms = cmdline_now_ms();
    c->restart_at_ms = 0;
    c->ill_since_ms = 0;
    return STATUS_OK;
}

bool child_reap(struct child *c, struct child_end *end)
{
    int status;
    if (c->pid == 0 || waitpid(c->pid, &status, WNOHANG) != c->pid)
        return false;
    int64_t now = cmdline_now_ms();
    end->by_signal = WIFSIGNALED(status);
    end->code = end->by_signal ? WTERMSIG(status) : WEXITSTATUS(status);
    c->quick_ends = now - c->started_ms < SOON_MS ? c->quick_ends + 1 : 0;
    int doublings = c->quick_ends > 8 ? 8 : c->quick_ends;
    int64_t pause = doublings < 2 ? 0 : (int64_t)BACKOFF_MS << (doublings - 2);
    c->restart_at_ms = now + (pause < BACKOFF_MAX_MS ? pause : BACKOFF_MAX_MS);
    c->pid = 0;
    return true;
}

void child_signal(const struct child *c, int sig)
{
    if (c->pid > 0)
        kill(c->pid, sig);
}
