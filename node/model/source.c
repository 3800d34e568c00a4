#include "node/model/source.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/minifloat.h"

static const char *const words[] = {"as published", "bf16", "fp8", "int8"};

enum status model_precision_of(const char *word, enum model_precision *out, struct errmsg *e)
{
    for (int i = MODEL_BF16; i <= MODEL_INT8; i++)
        if (!strcmp(word, words[i])) {
            *out = (enum model_precision)i;
            return STATUS_OK;
        }
    return errmsg_set(e, STATUS_BAD_CONFIG, "precision '%s': bf16, fp8 and int8 are known", word);
}

enum status model_source_config(const struct model_source *s, struct model_config *out,
                                struct errmsg *e)
{
    struct model_config c;
    enum status st =
        s->config ? model_config_load_file(s->config, &c, e) : model_config_load(s->dir, &c, e);
    if (st != STATUS_OK)
        return st;
    if (s->layers < 0 || s->layers > c.layers)
        return errmsg_set(e, STATUS_BAD_CONFIG, "%d layers: the model has %d", s->layers, c.layers);
    if (s->layers)
        c.layers = s->layers;
    if (s->random && s->precision != MODEL_AS_PUBLISHED) {
        const int block = s->precision == MODEL_FP8 ? 128 : 0;
        c.fp8_block[0] = c.fp8_block[1] = block;
        c.int8 = s->precision == MODEL_INT8;
    }
    *out = c;
    return STATUS_OK;
}

enum status model_source_open(const struct model_source *s, struct safetensors **out,
                              struct errmsg *e)
{
    *out = NULL;
    if (s->random)
        return STATUS_OK;
    return s->folder ? safetensors_open_folder(s->folder, out, e)
                     : safetensors_open_dir(s->dir, out, e);
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

bool model_quantizes(const char *name)
{
    return (ends_with(name, "_proj.weight") && !ends_with(name, ".kv_b_proj.weight")) ||
           ends_with(name, ".kv_a_proj_with_mqa.weight");
}

// The suffix after which a tensor's scales are named.
static bool is_scales(const char *name, bool fp8)
{
    return ends_with(name, fp8 ? ".weight_scale_inv" : ".weight_scale");
}

// Standard deviation of a matrix's elements: outputs are as large as inputs; what is added to the
// residual stream is smaller the more layers add to it.
static double deviation(const struct model_config *c, const char *name, int64_t cols)
{
    if (strstr(name, "embed_tokens"))
        return 1;
    bool adds = strstr(name, ".o_proj.") || strstr(name, ".down_proj.");
    return 1 / sqrt((double)cols * (adds ? 2 * c->layers : 1));
}

struct noise model_random_tensor(const struct model_source *s, const struct model_config *c,
                                 const char *name, int64_t cols, enum st_dtype *dtype_out)
{
    const bool fp8 = c->fp8_block[0] > 0, scales = (fp8 || c->int8) && is_scales(name, fp8);
    struct noise n = {.key = hash_bytes(name, strlen(name), s->seed)};
    *dtype_out = ST_BF16;
    if (scales) { // cols are those of the matrix
        double largest = sqrt(3) * deviation(c, name, cols);
        n.mean = (float)(largest / (fp8 ? E4M3_MAX : 127));
        n.amplitude = n.mean / 4;
        *dtype_out = ST_F32;
    } else if (cols == 0) {
        n.mean = ends_with(name, "norm.weight") ? 1 : 0;
        n.amplitude = n.mean != 0 ? 0.1f : 0.01f;
        *dtype_out = ST_F32;
    } else if (model_quantizes(name) && (fp8 || c->int8)) {
        *dtype_out = fp8 ? ST_F8_E4M3 : ST_I8;
    } else {
        n.amplitude = (float)(sqrt(3) * deviation(c, name, cols));
    }
    return n;
}
