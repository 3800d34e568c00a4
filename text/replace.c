// Owns nothing but the loop; what a character is, base/utf8 knows.
#include "text/replace.h"

#include "base/utf8.h"

size_t replace_broken(const char *s, size_t n, bool end, struct strbuf *out)
{
    if (!n)
        return 0;
    for (size_t at = 0;;) {
        size_t valid = utf8_valid_prefix(s + at, n - at);
        strbuf_add(out, s + at, valid);
        at += valid;
        if (at == n)
            return n;
        size_t part = 1; // bytes that could have begun a character
        while (part < 3 && at + part < n && utf8_incomplete(s + at, part + 1))
            part++;
        if (!end && at + part == n && utf8_incomplete(s + at, part))
            return at;
        strbuf_add(out, "\xEF\xBF\xBD", 3);
        at += part;
    }
}
