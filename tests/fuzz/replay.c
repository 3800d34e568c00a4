// Stands in for libFuzzer: gives a fuzz target every file of a corpus, and for each file a number
// of seeded mutations of it, as one test per file. argv: the folder of the corpus.
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "base/prng.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FILES_MAX = 256, FILE_MAX = 64 << 10, MUTATIONS = 40 };

// Flips, repeats, cuts: one to four small changes.
static size_t mutate(struct prng *rng, uint8_t *data, size_t n)
{
    for (uint64_t k = 1 + prng_below(rng, 4); k && n > 1; k--) {
        size_t at = 1 + prng_below(rng, n - 1), len = 1 + prng_below(rng, n - at);
        switch (prng_below(rng, 4)) {
        case 0:
            data[at] ^= (uint8_t)(1 << prng_below(rng, 8));
            break;
        case 1:
            data[at] = (uint8_t)prng_below(rng, 256);
            break;
        case 2:
            memmove(data + at, data + at + len, n - at - len);
            n -= len;
            break;
        case 3:
            len = len > FILE_MAX - n ? FILE_MAX - n : len;
            memmove(data + at + len, data + at, n - at);
            n += len;
            break;
        }
    }
    return n;
}

static void test_file(void **state)
{
    const char *path = *state;
    static uint8_t original[FILE_MAX], data[FILE_MAX];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t n = fread(original, 1, sizeof original, f);
    fclose(f);
    struct prng rng;
    prng_seed(&rng, n);
    memcpy(data, original, n);
    (void)LLVMFuzzerTestOneInput(data, n);
    for (int i = 0; i < MUTATIONS; i++) {
        memcpy(data, original, n);
        size_t m = mutate(&rng, data, n);
        uint8_t *exact = mem_dup(data, m); // so that a sanitizer sees a read beyond the end
        (void)LLVMFuzzerTestOneInput(exact, m);
        free(exact);
    }
}

int main(int argc, char **argv)
{
    static struct CMUnitTest tests[FILES_MAX];
    static char paths[FILES_MAX][512];
    size_t n = 0;
    DIR *dir = argc == 2 ? opendir(argv[1]) : NULL;
    if (!dir) {
        fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
        return 1;
    }
    for (struct dirent *e; (e = readdir(dir)) && n < FILES_MAX;) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(paths[n], sizeof paths[n], "%s/%s", argv[1], e->d_name);
        tests[n] = (struct CMUnitTest){
            .name = strrchr(paths[n], '/') + 1, .test_func = test_file, .initial_state = paths[n]};
        n++;
    }
    closedir(dir);
    return n ? _cmocka_run_group_tests(argv[1], tests, n, NULL, NULL) : 1;
}
