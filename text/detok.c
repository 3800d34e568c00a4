// The held bytes are an unfinished character, so a push joins them with its token, gives out what
// is whole, and holds what is left: never more than three bytes.
#include "text/detok.h"

#include <string.h>

#include "text/replace.h"

void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special)
{
    *d = (struct detok){.tokenizer = t, .skip_special = skip_special};
}

static void hold(struct detok *d, const char *bytes, size_t n)
{
    memmove(d->held, bytes, n);
    d->held_n = (unsigned char)n;
}

void detok_push(struct detok *d, int32_t id, struct strbuf *out)
{
    const char *bytes;
    size_t n;
    if (d->skip_special && tokenizer_is_special(d->tokenizer, id))
        return;
    if (!tokenizer_token_bytes(d->tokenizer, id, &bytes, &n) || !n)
        return;
    // Finish the held character first: byte by byte, at most three of them.
    while (d->held_n && n) {
        d->held[d->held_n++] = *bytes++;
        n--;
        size_t used = replace_broken(d->held, d->held_n, false, out);
        hold(d, d->held + used, d->held_n - used);
    }
    if (n) {
        size_t used = replace_broken(bytes, n, false, out);
        hold(d, bytes + used, n - used);
    }
}

void detok_flush(struct detok *d, struct strbuf *out)
{
    (void)replace_broken(d->held, d->held_n, true, out);
    d->held_n = 0;
}
