// Leadership as an advisory lock on a file; the file's text is the leader's addresses.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "coordinator/state_file.h"
#include "coordinator/store_body.h"

enum { TEXT_BYTES = LIMIT_NAME + 2 * STORE_ADDRESS + 8 };

struct file {
    int fd;
    struct store_member me;
    char *kept; // owned; path of what is kept for the next leader
};

static void *file_open(const struct store_args *args, const char *rest, struct errmsg *err)
{
    int fd = open(rest, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        (void)errmsg_set(err, STATUS_BAD_CONFIG, "store: %s: %s", rest, strerror(errno));
        return NULL;
    }
    struct file *f = mem_zalloc(1, sizeof *f);
    f->fd = fd;
    f->me = args->me;
    f->kept = mem_zalloc(1, strlen(rest) + sizeof ".state");
    sprintf(f->kept, "%s.state", rest);
    return f;
}

static void say_who(const struct file *f, struct store_view *next)
{
    char text[TEXT_BYTES];
    store_member_write(&f->me, text, sizeof text);
    next->leads = true;
    next->leader = f->me;
    if (ftruncate(f->fd, 0) || pwrite(f->fd, text, strlen(text), 0) < 0) {
        next->reachable = false; // it leads, but nobody can learn where it is
        snprintf(next->error, sizeof next->error, "%s", strerror(errno));
    }
}

static void file_tick(void *body, struct store_view *next)
{
    struct file *f = body;
    if (next->leads)
        return;
    next->reachable = true;
    if (!flock(f->fd, LOCK_EX | LOCK_NB)) {
        say_who(f, next);
        return;
    }
    char text[TEXT_BYTES + 1];
    ssize_t n = pread(f->fd, text, TEXT_BYTES, 0);
    text[n > 0 ? n : 0] = 0;
    store_member_read(text, &next->leader); // "" while it is being written
}

static void file_yield(void *body, struct store_view *next)
{
    struct file *f = body;
    if (next->leads)
        flock(f->fd, LOCK_UN);
}

static char *file_load(void *body, struct store_view *next)
{
    struct errmsg err = {0};
    char *text = state_file_read(((struct file *)body)->kept, &err);
    if (err.text[0])
        log_error("coordinator: %s", err.text);
    return text;
}

static bool file_save(void *body, const char *text, struct store_view *next)
{
    struct errmsg err = {0};
    if (!state_file_write(((struct file *)body)->kept, text, &err))
        return true;
    next->reachable = false;
    snprintf(next->error, sizeof next->error, "%.190s", err.text);
    return false;
}

static void file_close(void *body)
{
    struct file *f = body;
    close(f->fd); // and with it the lock
    free(f->kept);
    free(f);
}

const struct store_body store_file_body = {"file",     50,        file_open, file_tick,
                                           file_yield, file_load, file_save, file_close};
