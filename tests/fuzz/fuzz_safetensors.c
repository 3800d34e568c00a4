// Fuzz target of the files of a model folder: the first byte says what the rest is. `S` a whole
// safetensors file, `H` its JSON header (the length before it is right, 64 data bytes follow), `I`
// a model.safetensors.index.json beside one good file, anything else a config.json, whose model is
// then split over 2 x 3 ranks. How to build: see fuzz_tokenizer.c.
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "node/model/config.h"
#include "node/model/safetensors.h"
#include "node/model/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/tmp/hadal-fuzz-XXXXXX";

static void remove_all(void)
{
    static const char *const names[] = {"config.json", "model.safetensors", "a.safetensors",
                                        "model.safetensors.index.json"};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
}

static void remove_dir(void)
{
    remove_all();
    rmdir(dir);
}

static void write_file(const char *name, const void *data, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f))
        abort();
}

static void write_header(const char *name, const uint8_t *header, size_t n)
{
    uint8_t *file = mem_zalloc(8 + n + 64, 1);
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)((uint64_t)n >> (8 * i));
    memcpy(file + 8, header, n);
    write_file(name, file, 8 + n + 64);
    free(file);
}

// What was accepted can be read to its last byte.
static void read_all(void)
{
    struct safetensors *st = NULL;
    struct errmsg e = {0};
    if (safetensors_open_dir(dir, &st, &e) != STATUS_OK) {
        assert(e.text[0] && !st);
        return;
    }
    uint8_t sum = 0;
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const struct st_tensor *t = safetensors_at(st, i);
        assert(safetensors_find(st, t->name) == t);
        for (size_t b = 0; b < t->bytes; b++)
            sum ^= ((const uint8_t *)t->data)[b];
    }
    __asm__ volatile("" : : "r"(sum)); // the reads are not to be optimised away
    safetensors_close(st);
}

static void split_config(void)
{
    struct model_config c;
    struct errmsg e = {0};
    if (model_config_load(dir, &c, &e) != STATUS_OK) {
        assert(e.text[0]);
        return;
    }
    assert(c.heads > 0 && c.hidden > 0 && c.head_dim > 0 && c.softmax_scale > 0);
    for (int i = 0; i < 6; i++) {
        struct model_plan p = {0};
        struct model_rank rank = {i / 3, 2, i % 3, 3};
        if (model_plan_make(&c, &rank, &p, &e) == STATUS_OK)
            assert(p.hidden.n > 0 && p.vocab.n > 0 && p.heads.n > 0 && p.layers_n > 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool made;
    if (!made) {
        if (!mkdtemp(dir))
            abort();
        atexit(remove_dir);
        made = true;
    }
    if (size == 0)
        return 0;
    remove_all();
    static const char good[] = "{\"x\":{\"dtype\":\"F32\",\"shape\":[16],\"data_offsets\":[0,64]}}";
    if (data[0] == 'S') {
        write_file("model.safetensors", data + 1, size - 1);
    } else if (data[0] == 'H') {
        write_header("model.safetensors", data + 1, size - 1);
    } else if (data[0] == 'I') {
        write_header("a.safetensors", (const uint8_t *)good, sizeof good - 1);
        write_file("model.safetensors.index.json", data + 1, size - 1);
    } else {
        write_file("config.json", data, size);
        split_config();
        return 0;
    }
    read_all();
    return 0;
}
