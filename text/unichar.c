// What utf8proc has no direct answer to.
#include "text/unichar.h"

#include <utf8proc.h>

int32_t unichar_at(const char *s, size_t n)
{
    utf8proc_int32_t c = -1;
    (void)utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &c);
    return c;
}

size_t unichar_before(const char *text, size_t at)
{
    do
        at--;
    while (at && ((unsigned char)text[at] & 0xC0) == 0x80);
    return at;
}

bool unichar_is_space(int32_t c)
{
    switch (c) {
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
        return true;
    default:
        return (c >= 9 && c <= 13) || (c >= 0x2000 && c <= 0x200A);
    }
}

// Python counts the four information separators as blanks too.
static bool python_space(int32_t c)
{
    return unichar_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

void unichar_strip_left(const char **s, size_t *n)
{
    while (*n && python_space(unichar_at(*s, *n))) {
        size_t len = (size_t)utf8proc_utf8class[(unsigned char)**s];
        *s += len;
        *n -= len;
    }
}

void unichar_strip_right(const char **s, size_t *n)
{
    while (*n) {
        size_t before = unichar_before(*s, *n);
        if (!python_space(unichar_at(*s + before, *n - before)))
            break;
        *n = before;
    }
}
