// Files are read with pread, not through their mapping: it copies without a page fault per 4 KiB,
// and a file that was cut short since it was opened is an error, not a signal.
#include "node/model/tensor.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

static enum status read_file(const struct st_tensor *st, size_t at, size_t n, char *out,
                             struct errmsg *e)
{
    while (n > 0) {
        ssize_t got = pread(st->fd, out, n, (off_t)(st->file_at + at));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errmsg_set(e, status_from_errno(errno), "%s: tensor '%s': %s", st->file,
                              st->name, strerror(errno));
        if (got == 0)
            return errmsg_set(e, STATUS_BAD_FILE, "%s: tensor '%s': the file was cut short",
                              st->file, st->name);
        at += (size_t)got;
        out += got;
        n -= (size_t)got;
    }
    return STATUS_OK;
}

static void make_row(enum st_dtype dtype, const struct noise *s, size_t n, void *out)
{
    switch (dtype) {
    case ST_F32:
        noise_f32(s, n, out);
        return;
    case ST_BF16:
        noise_bf16(s, n, out);
        return;
    case ST_F8_E4M3:
        noise_e4m3(s, n, out);
        return;
    case ST_I8:
        noise_int8(s, n, out);
        return;
    default:
        assert(!"random tensors have no such dtype");
    }
}

enum status tensor_read(const struct tensor *t, int64_t first, int64_t n, void *out,
                        struct errmsg *e)
{
    const size_t row = (size_t)t->cols * st_dtype_size(t->dtype);
    assert(first >= 0 && n >= 0 && n <= t->rows - first);
    if (t->st)
        return read_file(t->st, (size_t)first * row, (size_t)n * row, out, e);
    struct noise s = t->noise;
    for (int64_t i = 0; i < n; i++) {
        s.row = (uint64_t)(first + i);
        make_row(t->dtype, &s, (size_t)t->cols, (char *)out + (size_t)i * row);
    }
    return STATUS_OK;
}
