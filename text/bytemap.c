// The alphabet as Radford et al. published it (gpt-2, encoder.py): the printable Latin-1 bytes are
// themselves, the other 68 are U+0100 onward in the order of their value.
#include "text/bytemap.h"

#include <stdint.h>

enum { ALPHABET_END = 256 + 68 };

static bool printable(unsigned c)
{
    return (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255);
}

// The byte of a character, -1 when it has none.
static int byte_of(uint32_t c)
{
    if (c < 256)
        return printable(c) ? (int)c : -1;
    if (c >= ALPHABET_END)
        return -1;
    unsigned left = c - 256;
    for (unsigned b = 0; b < 256; b++)
        if (!printable(b) && left-- == 0)
            return (int)b;
    return -1;
}

bool bytemap_decode(const char *str, size_t n, struct strbuf *out)
{
    const unsigned char *s = (const unsigned char *)str;
    size_t before = out->n;
    for (size_t i = 0; i < n;) {
        uint32_t c = s[i++];
        if (c >= 0xC2 && c <= 0xDF && i < n) // the alphabet needs no longer characters
            c = (c & 0x1F) << 6 | (s[i++] & 0x3F);
        else if (c >= 0x80)
            c = ALPHABET_END;
        int b = byte_of(c);
        if (b < 0) {
            out->n = before;
            return false;
        }
        strbuf_add(out, &(char){(char)b}, 1);
    }
    return true;
}
