#include "base/utf8.h"

// Length of a sequence from its first byte, and the bounds of its second byte (table 3-7 of the
// Unicode standard); 0 when the byte cannot start a character.
static size_t lead(unsigned char c, unsigned char *lo, unsigned char *hi)
{
    *lo = 0x80;
    *hi = 0xBF;
    if (c < 0x80)
        return 1;
    if (c < 0xC2 || c > 0xF4)
        return 0;
    if (c < 0xE0)
        return 2;
    if (c < 0xF0) {
        if (c == 0xE0)
            *lo = 0xA0;
        if (c == 0xED)
            *hi = 0x9F;
        return 3;
    }
    if (c == 0xF0)
        *lo = 0x90;
    if (c == 0xF4)
        *hi = 0x8F;
    return 4;
}

// Bytes of s[0..n) that agree with a character of length `len`; stops at the first that does not.
static size_t agreeing(const unsigned char *s, size_t n, size_t len, unsigned char lo,
                       unsigned char hi)
{
    size_t i = 1;
    for (; i < n && i < len; i++) {
        unsigned char min = i == 1 ? lo : 0x80, max = i == 1 ? hi : 0xBF;
        if (s[i] < min || s[i] > max)
            break;
    }
    return i;
}

size_t utf8_valid_prefix(const char *str, size_t n)
{
    const unsigned char *s = (const unsigned char *)str;
    size_t i = 0;
    while (i < n) {
        unsigned char lo, hi;
        size_t len = lead(s[i], &lo, &hi);
        if (!len || agreeing(s + i, n - i, len, lo, hi) != len)
            break;
        i += len;
    }
    return i;
}

bool utf8_incomplete(const char *str, size_t n)
{
    const unsigned char *s = (const unsigned char *)str;
    unsigned char lo, hi;
    if (!n)
        return false;
    size_t len = lead(s[0], &lo, &hi);
    return len > n && agreeing(s, n, len, lo, hi) == n;
}
