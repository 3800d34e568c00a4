// MLA attention: check against a float64 reference on the CPU, bit-equality however rows are put
// together, and time. Links the product's kernels (kernels/cuda/attn_mla*.cu); README.md says how
// to build it and what was found.
//
//     mla check | mla brief | mla quick [CSV] | mla bench CSV SPLIT... | mla bf16 HEADS BATCH
//     CONTEXT SPLIT...
#include <algorithm>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include <vector>

#include "kernels/cuda/attn.h"
#include "kernels/cuda/attn_mla.cuh"

#define OK(call)                                                                                   \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("FAILED %s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t state = 0x9e3779b97f4a7c15;
static uint64_t random_u64(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1d;
}
static int random_int(int n)
{
    return (int)((random_u64() >> 33) % (uint64_t)n);
}

static float from_bf16(uint16_t v)
{
    uint32_t u = (uint32_t)v << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static uint16_t to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
// Of normal distribution, roughly; seeded by place, so that a token or query is the same in any
// batch.
static float noise(uint64_t seed, uint64_t i)
{
    uint64_t x = (seed * 0x9e3779b97f4a7c15 + i) * 0xbf58476d1ce4e5b9;
    x ^= x >> 31;
    x *= 0x94d049bb133111eb;
    x ^= x >> 29;
    float s = 0;
    for (int k = 0; k < 4; k++)
        s += (float)(x >> (16 * k) & 0xffff) / 65536 - 0.5f;
    return s * 1.7f;
}

static __global__ void fill_noise(uint16_t *p, size_t n, uint32_t seed, float size)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u + seed;
        x ^= x >> 15;
        x *= 2246822519u;
        x ^= x >> 13;
        float v = ((float)(x & 0xffff) + (float)(x >> 16)) / 65536 - 1;
        p[i] = __bfloat16_as_ushort(__float2bfloat16_rn(v * size));
    }
}

// Bytes that are below 2 as e4m3, bf16 and float: tokens of an fp8 pool.
static __global__ void fill_bytes(uint32_t *p, size_t n)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u;
        x ^= x >> 15;
        x *= 2246822519u;
        p[i] = (x ^ x >> 13) & 0xbfbfbfbf;
    }
}

// ---- a problem on the host and the device

struct row {
    int seq, pos;
};
struct problem {
    int heads, lora, rope, block_tokens, split;
    std::vector<int> keys; // of each sequence in the pool
    std::vector<row> rows;
    bool fp8;
};

struct memory {
    struct cuda_mla m;
    std::vector<void *> all;
    template <class T> T *put(const std::vector<T> &v)
    {
        T *p;
        OK(cudaMalloc((void **)&p, v.size() * sizeof(T) + 256));
        OK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
        all.push_back(p);
        return p;
    }
    void *get(size_t bytes)
    {
        void *p;
        OK(cudaMalloc(&p, bytes + 256));
        OK(cudaMemset(p, 0xff, bytes + 256)); // NaN
        all.push_back(p);
        return p;
    }
    ~memory()
    {
        for (void *p : all)
            cudaFree(p);
    }
};

static float key_at(const problem &p, int seq, int t, int c)
{
    float v = noise(1000 + seq, (uint64_t)t * 1024 + c);
    return c < p.lora ? v : 2 * v;
}

static float e4m3(uint8_t v)
{
    __nv_fp8_e4m3 x;
    x.__x = v;
    return (float)x;
}

// A token as it lies in the pool, and as the reference is to see it.
static void make_token(const problem &p, int seq, int t, uint8_t *raw, float *seen)
{
    if (!p.fp8) {
        for (int c = 0; c < p.lora + p.rope; c++) {
            uint16_t v = to_bf16(key_at(p, seq, t, c));
            memcpy(raw + 2 * c, &v, 2);
            seen[c] = from_bf16(v);
        }
        return;
    }
    for (int b = 0; b < p.lora / 128; b++) {
        float top = 1e-20f;
        for (int c = 0; c < 128; c++)
            top = fmaxf(top, fabsf(key_at(p, seq, t, 128 * b + c)));
        float scale = top / 448;
        memcpy(raw + p.lora + 4 * b, &scale, 4);
        for (int c = 0; c < 128; c++) {
            __nv_fp8_e4m3 v(key_at(p, seq, t, 128 * b + c) / scale);
            raw[128 * b + c] = v.__x;
            seen[128 * b + c] = from_bf16(to_bf16(e4m3(v.__x) * scale));
        }
    }
    for (int c = 0; c < p.rope; c++) {
        uint16_t v = to_bf16(key_at(p, seq, t, p.lora + c));
        memcpy(raw + p.lora + p.lora / 32 + 2 * c, &v, 2);
        seen[p.lora + c] = from_bf16(v);
    }
}

static int token_bytes(const problem &p)
{
    return p.fp8 ? p.lora + p.lora / 32 + 2 * p.rope : 2 * (p.lora + p.rope);
}

// Blocks in scrambled order; tokens that nobody wrote are NaN.
static void build(const problem &p, memory *mem, std::vector<std::vector<float>> *seen)
{
    int stride = 0, key = p.lora + p.rope, bytes = token_bytes(p);
    for (int k : p.keys)
        stride = std::max(stride, (k + p.block_tokens - 1) / p.block_tokens);
    int blocks = stride * (int)p.keys.size() + 3;
    std::vector<int> order(blocks);
    for (int i = 0; i < blocks; i++)
        order[i] = i;
    for (int i = blocks - 1; i > 0; i--)
        std::swap(order[i], order[random_int(i + 1)]);
    std::vector<uint8_t> pool((size_t)blocks * p.block_tokens * bytes, 0xff);
    std::vector<int> tables((size_t)stride * p.keys.size(), -1);
    seen->assign(p.keys.size(), {});
    for (size_t s = 0, b = 0; s < p.keys.size(); s++) {
        (*seen)[s].resize((size_t)p.keys[s] * key);
        for (int t = 0; t < p.keys[s]; t++) {
            if (t % p.block_tokens == 0)
                tables[s * stride + t / p.block_tokens] = order[b++];
            size_t block = tables[s * stride + t / p.block_tokens];
            make_token(p, (int)s, t, &pool[(block * p.block_tokens + t % p.block_tokens) * bytes],
                       &(*seen)[s][(size_t)t * key]);
        }
    }
    struct cuda_mla *m = &mem->m;
    memset(m, 0, sizeof *m);
    int n = (int)p.rows.size(), keys_max = 0;
    std::vector<int> seq, pos;
    std::vector<uint16_t> q((size_t)n * p.heads * (p.lora + 8)),
        r((size_t)n * p.heads * (p.rope + 128));
    for (int i = 0; i < n; i++) {
        seq.push_back(p.rows[i].seq);
        pos.push_back(p.rows[i].pos);
        keys_max = std::max(keys_max, p.rows[i].pos + 1);
        for (int h = 0; h < p.heads; h++) {
            uint64_t seed = (uint64_t)p.rows[i].seq * 100000 + p.rows[i].pos * 7 + 77;
            for (int c = 0; c < p.lora; c++)
                q[((size_t)i * p.heads + h) * (p.lora + 8) + c] =
                    to_bf16(noise(seed, h * 1024 + c));
            for (int c = 0; c < p.rope; c++)
                r[((size_t)i * p.heads + h) * (p.rope + 128) + c] =
                    to_bf16(noise(seed, h * 1024 + p.lora + c));
        }
    }
    m->rows.seq = mem->put(seq);
    m->rows.pos = mem->put(pos);
    m->rows.tables = mem->put(tables);
    m->rows.table_stride = stride;
    m->rows.n = n;
    m->rows.keys_max = keys_max;
    m->form = p.fp8 ? CUDA_KV_FP8 : CUDA_KV_BF16;
    m->pool = mem->put(pool);
    m->blocks = blocks;
    m->block_tokens = p.block_tokens;
    m->heads = p.heads;
    m->kv_lora = p.lora;
    m->rope = p.rope;
    m->q_latent = mem->put(q);
    m->q_latent_head = p.lora + 8;
    m->q_latent_ld = (size_t)p.heads * m->q_latent_head;
    m->q_rope = mem->put(r);
    m->q_rope_head = p.rope + 128;
    m->q_rope_ld = (size_t)p.heads * m->q_rope_head;
    m->out_ld = (size_t)p.heads * p.lora + 16;
    m->out = (uint16_t *)mem->get((size_t)n * m->out_ld * 2);
    m->scale = 1 / sqrtf(192.0f);
    m->split = p.split;
    m->plan_bytes = cuda_mla_plan_bytes(m);
    m->scratch_bytes = cuda_mla_scratch_bytes(m);
    m->plan = mem->get(m->plan_bytes);
    m->scratch = mem->get(m->scratch_bytes);
}

static std::vector<uint16_t> run_once(const problem &p, memory *mem)
{
    struct cuda_mla *m = &mem->m;
    std::vector<uint16_t> raw(m->rows.n * m->out_ld), out;
    OK(cuda_mla_plan(0, m));
    OK(cuda_mla(0, m));
    OK(cudaDeviceSynchronize());
    OK(cudaMemcpy(raw.data(), m->out, raw.size() * 2, cudaMemcpyDeviceToHost));
    for (int i = 0; i < m->rows.n; i++)
        out.insert(out.end(), raw.begin() + i * m->out_ld,
                   raw.begin() + i * m->out_ld + p.heads * p.lora);
    return out;
}

// Rows [from, to) of the reference, all heads.
static void reference(const problem &p, const std::vector<std::vector<float>> &seen, int row,
                      int head, double *out)
{
    int key = p.lora + p.rope, keys = p.rows[row].pos + 1;
    const float *kv = seen[p.rows[row].seq].data();
    uint64_t seed = (uint64_t)p.rows[row].seq * 100000 + p.rows[row].pos * 7 + 77;
    std::vector<double> q(key), s(keys);
    double top = -1e300, sum = 0, scale = (double)(1 / sqrtf(192.0f));
    for (int c = 0; c < key; c++)
        q[c] = from_bf16(to_bf16(noise(seed, head * 1024 + c)));
    for (int t = 0; t < keys; t++) {
        double v = 0;
        for (int c = 0; c < key; c++)
            v += q[c] * kv[(size_t)t * key + c];
        s[t] = v * scale;
        top = fmax(top, s[t]);
    }
    for (int c = 0; c < p.lora; c++)
        out[c] = 0;
    for (int t = 0; t < keys; t++) {
        double w = exp(s[t] - top);
        sum += w;
        for (int c = 0; c < p.lora; c++)
            out[c] += w * kv[(size_t)t * key + c];
    }
    for (int c = 0; c < p.lora; c++)
        out[c] /= sum;
}

// Largest relative distance of a (row, head)'s output. At most `most` of them, spread out.
static double check(const problem &p, const std::vector<std::vector<float>> &seen,
                    const std::vector<uint16_t> &out, int most)
{
    int all = (int)p.rows.size() * p.heads, step = std::max(1, all / most);
    while (step > 1 && step % 2 == 0)
        step++;
    std::vector<double> worst(16, 0);
    std::vector<std::thread> threads;
    for (int k = 0; k < 16; k++)
        threads.emplace_back([&, k]() {
            std::vector<double> r(p.lora);
            for (int i = k * step; i < all; i += 16 * step) {
                reference(p, seen, i / p.heads, i % p.heads, r.data());
                double d = 0, n = 0;
                for (int c = 0; c < p.lora; c++) {
                    double e = from_bf16(out[(size_t)i * p.lora + c]) - r[c];
                    d += e * e;
                    n += r[c] * r[c];
                }
                double rel = sqrt(d / n);
                if (!(rel <= worst[k]))
                    worst[k] = rel;
                if (!(rel == rel))
                    worst[k] = INFINITY;
            }
        });
    double w = 0;
    for (int k = 0; k < 16; k++) {
        threads[k].join();
        w = std::max(w, worst[k]);
    }
    return w;
}

static int failures;
static void check_case(const char *name, const problem &p, int most)
{
    memory mem;
    std::vector<std::vector<float>> seen;
    build(p, &mem, &seen);
    std::vector<uint16_t> out = run_once(p, &mem);
    double e = check(p, seen, out, most);
    std::vector<uint16_t> again = run_once(p, &mem);
    bool same = memcmp(out.data(), again.data(), out.size() * 2) == 0;
    bool ok = e < 6e-3 && same;
    failures += !ok;
    printf("%-4s %-34s heads %3d rows %4zu keys %5d bt %2d split %4d rel %.1e%s\n",
           ok ? "ok" : "BAD", name, p.heads, p.rows.size(), mem.m.rows.keys_max, p.block_tokens,
           p.split, e, same ? "" : " MOVES");
    fflush(stdout);
}

// The same rows in several companies: alone, by chunks, all together, other order.
static void check_invariance(problem p, const char *name)
{
    std::vector<row> rows = p.rows;
    memory mem;
    std::vector<std::vector<float>> seen;
    build(p, &mem, &seen);
    std::vector<uint16_t> all = run_once(p, &mem);
    size_t width = (size_t)p.heads * p.lora, bad = 0, n = 0;
    for (int chunk : {1, 17, 3, 64}) {
        if (rows.size() < 200 && chunk != 1 && chunk != 17)
            continue;
        for (size_t first = 0; first < rows.size(); first += chunk) {
            if (chunk == 1 && first % 7 && first + 9 < rows.size())
                continue;
            size_t last = std::min(rows.size(), first + chunk);
            problem part = p;
            part.rows.assign(rows.begin() + first, rows.begin() + last);
            if (chunk == 17) // other order
                for (size_t i = part.rows.size() - 1; i > 0; i--)
                    std::swap(part.rows[i], part.rows[random_int((int)i + 1)]);
            memory m;
            std::vector<std::vector<float>> s;
            build(part, &m, &s);
            std::vector<uint16_t> out = run_once(part, &m);
            for (size_t i = 0; i < part.rows.size(); i++)
                for (size_t j = first; j < last; j++)
                    if (rows[j].seq == part.rows[i].seq && rows[j].pos == part.rows[i].pos) {
                        n++;
                        bad += memcmp(&out[i * width], &all[j * width], width * 2) != 0;
                    }
        }
    }
    failures += bad > 0;
    printf("%-4s invariance %-23s heads %3d rows %4zu split %4d: %zu of %zu differ\n",
           bad ? "BAD" : "ok", name, p.heads, rows.size(), p.split, bad, n);
    fflush(stdout);
}

static problem decode(int heads, std::vector<int> keys, int block_tokens, int split, bool fp8)
{
    problem p = {heads, 512, 64, block_tokens, split, keys, {}, fp8};
    for (size_t i = 0; i < keys.size(); i++)
        p.rows.push_back({(int)i, keys[i] - 1});
    return p;
}

static void add_chunk(problem *p, int seq, int pos0, int n)
{
    for (int i = 0; i < n; i++)
        p->rows.push_back({seq, pos0 + i});
}

static void check_all(bool fp8, bool brief)
{
    const std::vector<int> edges = {1, 63, 64, 65, 511, 513, 1025, 4097};
    for (int heads : {1, 3, 16, 20, 128})
        for (int bt : {16, 32, 64})
            if (!brief || bt == 32)
                check_case("decode, edge lengths", decode(heads, edges, bt, 512, fp8), 96);
    check_case("decode", decode(16, {1025, 300, 128, 127, 129, 4097}, 32, 128, fp8), 96);
    check_case("decode, one long", decode(16, {9000}, 32, 512, fp8), 16);
    check_case("decode, one long", decode(128, {9000}, 128, 1024, fp8), 64);
    problem mixed = decode(16, {700, 1300, 64, 2100, 5}, 32, 512, fp8);
    mixed.rows.clear();
    add_chunk(&mixed, 0, 500, 200);
    add_chunk(&mixed, 1, 1299, 1);
    add_chunk(&mixed, 2, 0, 64);
    add_chunk(&mixed, 3, 2099, 1);
    add_chunk(&mixed, 4, 3, 2);
    check_case("mixed", mixed, 200);
    mixed.rows.push_back({0, -1}); // not there
    problem h20 = mixed;
    mixed.rows.pop_back();
    mixed.heads = 128;
    check_case("mixed", mixed, 200);
    check_invariance(mixed, "mixed");
    mixed.heads = 16;
    mixed.split = 128;
    check_case("mixed", mixed, 200);
    check_invariance(mixed, "mixed");
    mixed.split = 512;
    check_invariance(mixed, "mixed");
    mixed.heads = 20;
    check_case("mixed", mixed, 200);
    mixed.heads = 3;
    check_case("mixed", mixed, 200);
    check_invariance(mixed, "mixed");
    problem many = decode(16, std::vector<int>(300, 700), 32, 512, fp8);
    for (size_t i = 0; i < many.keys.size(); i++)
        many.keys[i] = many.rows[i].pos = 1 + random_int(1500), many.rows[i].pos--;
    check_case("decode, 300 rows", many, 200);
    many.heads = 128;
    check_case("decode, 300 rows", many, 300);
    problem prefill = decode(16, {2500}, 32, 512, fp8);
    prefill.rows.clear();
    add_chunk(&prefill, 0, 0, 2500);
    check_case("prefill", prefill, 200);
    problem small = {3,  128, 16, 8, 0, {70, 300, 5}, {{0, 69}, {1, 299}, {1, 13}, {2, 0}, {2, 4}},
                     fp8};
    check_case("small model (plain kernel)", small, 100);
    if (!fp8) {
        small.lora = 48;
        small.rope = 8;
        small.block_tokens = 5;
        check_case("small model (plain kernel)", small, 100);
    }
}

// What a round of a few seconds can hold.
static void check_quick(bool fp8)
{
    check_case("decode, edge lengths",
               decode(16, {1, 63, 64, 65, 511, 513, 1025, 4097}, 32, 512, fp8), 64);
    check_case("decode, few", decode(16, {1, 65, 513, 1000}, 16, 512, fp8), 64);
    check_case("decode, few", decode(3, {1025, 512}, 64, 512, fp8), 6);
    check_case("decode, 128 heads", decode(128, {4097, 65}, 32, 1024, fp8), 64);
    problem mixed = decode(16, {700, 1300, 64, 2100, 5}, 32, 512, fp8);
    mixed.rows.clear();
    add_chunk(&mixed, 0, 500, 80);
    add_chunk(&mixed, 1, 1299, 1);
    add_chunk(&mixed, 2, 0, 64);
    add_chunk(&mixed, 3, 2099, 1);
    add_chunk(&mixed, 4, 3, 2);
    check_case("mixed", mixed, 100);
    check_invariance(mixed, "mixed");
}

// ---- time

static double copy_gb_s(void)
{
    size_t bytes = (size_t)1 << 30;
    char *p;
    OK(cudaMalloc((void **)&p, 2 * bytes));
    OK(cudaMemset(p, 1, 2 * bytes));
    cudaEvent_t a, b;
    OK(cudaEventCreate(&a));
    OK(cudaEventCreate(&b));
    float best = 1e9, ms;
    for (int i = 0; i < 8; i++) {
        OK(cudaEventRecord(a));
        OK(cudaMemcpyAsync(p + bytes, p, bytes, cudaMemcpyDeviceToDevice));
        OK(cudaEventRecord(b));
        OK(cudaEventSynchronize(b));
        OK(cudaEventElapsedTime(&ms, a, b));
        best = std::min(best, ms);
    }
    OK(cudaFree(p));
    return 2.0 * bytes / best * 1e-6;
}

struct timing {
    int heads, batch, context;
    bool prefill, fp8;
    int split;
};

static FILE *csv;
static double copy_limit;

// Microseconds of a call, in a graph of calls over rotating pools larger than L2.
static double time_one(const timing &t)
{
    int bt = 32, seqs = t.prefill ? 1 : t.batch, n = t.prefill ? t.context : t.batch;
    size_t bytes = t.fp8 ? 656 : 1152, stride = (t.context + bt - 1) / bt;
    size_t blocks = stride * seqs, pool_bytes = blocks * bt * bytes;
    int pools = (int)std::min<size_t>(64, 1 + ((size_t)200 << 20) / pool_bytes);
    memory mem;
    struct cuda_mla *m = &mem.m;
    memset(m, 0, sizeof *m);
    uint8_t *pool = (uint8_t *)mem.get(pools * pool_bytes);
    if (t.fp8)
        fill_bytes<<<1024, 256>>>((uint32_t *)pool, pools * pool_bytes / 4);
    else
        fill_noise<<<1024, 256>>>((uint16_t *)pool, pools * pool_bytes / 2, 7, 1.0f);
    std::vector<int> seq(n), pos(n), tables(stride * seqs);
    for (int i = 0; i < n; i++) {
        seq[i] = t.prefill ? 0 : i;
        pos[i] = t.prefill ? i : t.context - 1;
    }
    for (size_t i = 0; i < tables.size(); i++)
        tables[i] = (int)i;
    for (size_t i = tables.size() - 1; i > 0; i--)
        std::swap(tables[i], tables[random_u64() % (i + 1)]);
    size_t q = (size_t)n * t.heads * 512, r = (size_t)n * t.heads * 192;
    uint16_t *ql = (uint16_t *)mem.get(q * 2), *qr = (uint16_t *)mem.get(r * 2);
    fill_noise<<<1024, 256>>>(ql, q, 8, 1.0f);
    fill_noise<<<1024, 256>>>(qr, r, 9, 1.0f);
    m->rows = {mem.put(seq), mem.put(pos), mem.put(tables), stride, n, t.context};
    m->form = t.fp8 ? CUDA_KV_FP8 : CUDA_KV_BF16;
    m->blocks = blocks;
    m->block_tokens = bt;
    m->heads = t.heads;
    m->kv_lora = 512;
    m->rope = 64;
    m->q_latent = ql;
    m->q_latent_head = 512;
    m->q_latent_ld = 512 * t.heads;
    m->q_rope = qr + 128;
    m->q_rope_head = 192;
    m->q_rope_ld = 192 * t.heads;
    m->out_ld = 512 * t.heads;
    m->out = (uint16_t *)mem.get(q * 2);
    m->scale = 1 / sqrtf(192.0f);
    m->split = t.split;
    m->pool = pool;
    m->plan_bytes = cuda_mla_plan_bytes(m);
    m->scratch_bytes = cuda_mla_scratch_bytes(m);
    m->plan = mem.get(m->plan_bytes);
    m->scratch = mem.get(m->scratch_bytes);
    cudaStream_t s;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamCreate(&s));
    OK(cuda_mla_plan(s, m));
    OK(cuda_mla(s, m));
    OK(cudaStreamSynchronize(s));
    int calls = std::max(pools, 4);
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
    for (int i = 0; i < calls; i++) {
        m->pool = pool + i % pools * pool_bytes;
        OK(cuda_mla(s, m));
    }
    OK(cudaStreamEndCapture(s, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t a, b;
    OK(cudaEventCreate(&a));
    OK(cudaEventCreate(&b));
    std::vector<float> times;
    float spent = 0;
    for (int i = 0; i < 24 && (i < 4 || spent < 60); i++) {
        float ms;
        OK(cudaEventRecord(a, s));
        OK(cudaGraphLaunch(exec, s));
        OK(cudaEventRecord(b, s));
        OK(cudaEventSynchronize(b));
        OK(cudaEventElapsedTime(&ms, a, b));
        spent += ms;
        if (i)
            times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    double us = times[times.size() / 2] * 1e3 / calls;
    double keys = t.prefill ? (double)t.context * (t.context + 1) / 2 : (double)t.batch * t.context;
    double kv = t.prefill ? (double)t.context * bytes : keys * bytes;
    double moved = kv + (double)n * t.heads * (512 + 64 + 512) * 2;
    double flops = keys * t.heads * 2 * (576 + 512);
    double gb = moved / us * 1e-3, tf = flops / us * 1e-6;
    printf(
        "%-7s %-4s heads %3d batch %3d context %5d split %4d: %9.1f us %7.0f GB/s (%3.0f%%) %5.0f "
        "TFLOP/s\n",
        t.prefill ? "prefill" : "decode", t.fp8 ? "fp8" : "bf16", t.heads, t.batch, t.context,
        t.split, us, gb, 100 * gb / copy_limit, tf);
    fflush(stdout);
    if (csv) {
        char name[96];
        snprintf(name, sizeof name, "mla %s %s heads=%d %s=%d context=%d split=%d",
                 t.prefill ? "prefill" : "decode", t.fp8 ? "fp8" : "bf16", t.heads,
                 t.prefill ? "rows" : "batch", n, t.context, t.split);
        fprintf(csv, "%s,time,%.2f,us,,,\n", name, us);
        if (!t.prefill)
            fprintf(csv, "%s,bandwidth,%.0f,GB/s,device copy bandwidth,%.0f,%.3f\n", name, gb,
                    copy_limit, gb / copy_limit);
        fprintf(csv, "%s,rate,%.1f,TFLOP/s,,,\n", name, tf);
    }
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(graph));
    OK(cudaStreamDestroy(s));
    return us;
}

static void bench(bool fp8, std::vector<int> splits)
{
    for (int heads : {16, 128})
        for (int context : {1024, 4096, 8192, 32768})
            for (int batch : {1, 8, 64, 128, 256}) {
                if ((double)batch * context * 1152 > 12e9)
                    continue;
                for (int split : splits)
                    time_one({heads, batch, context, false, fp8, split});
            }
    for (int heads : {16, 128})
        for (int split : splits)
            time_one({heads, 1, 4096, true, fp8, split});
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "check";
    if (!strcmp(what, "check") || !strcmp(what, "brief")) {
        bool brief = !strcmp(what, "brief");
        check_all(false, brief);
        if (!brief)
            check_all(true, false);
        printf("%s\n", failures ? "FAILED" : "all right");
        return failures > 0;
    }
    if (!strcmp(what, "quick")) {
        check_quick(false);
        check_quick(true);
    }
    copy_limit = copy_gb_s();
    printf("copy %.0f GB/s\n", copy_limit);
    if (!strcmp(what, "bench")) {
        csv = argc > 2 ? fopen(argv[2], "w") : NULL;
        if (csv)
            fprintf(csv, "case,metric,value,unit,limit,limit_value,share\n");
        std::vector<int> splits;
        for (int i = 3; i < argc; i++)
            splits.push_back(atoi(argv[i]));
        if (splits.empty())
            splits = {512};
        bench(false, splits);
        if (csv)
            fclose(csv);
    } else if (!strcmp(what, "quick")) {
        csv = argc > 2 ? fopen(argv[2], "w") : NULL;
        for (timing t : std::vector<timing>{{128, 128, 4096, false, false, 8192},
                                            {128, 128, 4096, false, false, 2048},
                                            {16, 128, 4096, false, false, 512},
                                            {16, 64, 1024, false, false, 512},
                                            {16, 8, 8192, false, false, 512},
                                            {16, 1, 4096, true, false, 512},
                                            {16, 8, 32768, false, false, 512},
                                            {16, 1, 1024, false, false, 512},
                                            {16, 8, 1024, false, false, 512},
                                            {16, 16, 1024, false, false, 512},
                                            {16, 1, 32768, false, false, 512},
                                            {16, 256, 1024, false, false, 512},
                                            {16, 256, 8192, false, false, 512},
                                            {16, 64, 32768, false, false, 512},
                                            {16, 1, 4096, true, false, 8192}})
            time_one(t);
        if (csv)
            fclose(csv);
    } else if (argc > 4) {
        for (int i = 5; i < argc || i == 5; i++)
            time_one({atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[3]) == 0,
                      !strcmp(what, "fp8"), i < argc ? atoi(argv[i]) : 512});
    }
    return 0;
}
