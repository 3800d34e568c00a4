// moe_gate_up and moe_down for what mm.h does not take. The (token, choice) pairs are sorted by expert on the device and cut
// into pieces, so that an expert's weights are read once for all rows of a piece; the products are
// cuda_mm's. down's products go to scratch memory and are added per token by rising expert id, so
// the order of the pairs within an expert, which differs from run to run, is never seen.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

enum { PLAN_THREADS = 1024, COMBINE_THREADS = 256 };

struct plan {
    const int32_t *ids;
    int pairs_n, experts, piece_rows;
    int32_t *pieces_n, *pairs;
    struct cuda_piece *pieces;
};

// One block: counts the rows of every expert, then places the pairs and the pieces.
static __global__ void __launch_bounds__(PLAN_THREADS) make_plan(const plan p)
{
    __shared__ int count[KERN_EXPERTS_MAX], first[KERN_EXPERTS_MAX], piece[KERN_EXPERTS_MAX];
    int e = threadIdx.x;
    pdl_take_over();
    count[e] = 0;
    __syncthreads();
    for (int i = e; i < p.pairs_n; i += PLAN_THREADS)
        atomicAdd(&count[p.ids[i]], 1);
    __syncthreads();
    // Sums up to and with this expert, doubling the reach each round.
    first[e] = count[e];
    piece[e] = (count[e] + p.piece_rows - 1) / p.piece_rows;
    for (int d = 1; d < PLAN_THREADS; d *= 2) {
        __syncthreads();
        int f = e >= d ? first[e - d] : 0, q = e >= d ? piece[e - d] : 0;
        __syncthreads();
        first[e] += f;
        piece[e] += q;
    }
    __syncthreads();
    if (e == PLAN_THREADS - 1)
        *p.pieces_n = piece[e];
    int n = count[e], start = first[e] - n, own = (n + p.piece_rows - 1) / p.piece_rows;
    for (int i = 0; i < own; i++)
        p.pieces[piece[e] - own + i] = {e, start + i * p.piece_rows,
                                        min(p.piece_rows, n - i * p.piece_rows)};
    __syncthreads();
    first[e] = start;
    __syncthreads();
    for (int i = e; i < p.pairs_n; i += PLAN_THREADS)
        p.pairs[atomicAdd(&first[p.ids[i]], 1)] = i;
}

// Puts the plan of `ids` into m. One token needs none: its experts differ.
static void plan_pieces(struct cuda *c, const int32_t *ids, size_t tokens, size_t experts,
                        struct cuda_mm *m)
{
    size_t pairs = m->n;
    if (tokens == 1) {
        m->ids = ids;
        return;
    }
    // A piece is either full or the last of its expert.
    size_t most = pairs / CUDA_PIECE_ROWS + experts;
    m->pieces_max = most < pairs ? most : pairs;
    int32_t *memory = (int32_t *)cuda_scratch(
        c, CUDA_ARENA_PLAN, (4 + pairs) * sizeof *memory + m->pieces_max * sizeof *m->pieces);
    plan p = {ids,
              (int)pairs,
              (int)experts,
              CUDA_PIECE_ROWS,
              memory,
              memory + 4,
              (struct cuda_piece *)(memory + 4 + pairs)};
    cuda_launch(c, "make_plan", make_plan, 1, PLAN_THREADS, 0, p);
    m->pieces = p.pieces;
    m->pieces_n = p.pieces_n;
    m->pairs = p.pairs;
}

static_assert((int)PLAN_THREADS == (int)KERN_EXPERTS_MAX, "a thread per expert");

void cuda_moe_gate_up_any(struct kern *k, const struct kern_moe_gate_up_args *a)
{
    struct cuda *c = cuda_of(k);
    struct cuda_mm m = {};
    cuda_mm_set_weight(&m, a->gate);
    m.w_up = a->up->p;
    m.scales_up = a->up->scales;
    m.x = cuda_rows(&a->x);
    m.x_div = a->topk;
    m.out = cuda_rows(&a->out);
    m.n = a->n * a->topk;
    plan_pieces(c, (const int32_t *)a->ids->p, a->n, a->gate->shape.stack, &m);
    cuda_mm(c, &m);
}

struct combine {
    size_t row0, n, topk, rows;
    const int32_t *ids;
    const float *weights, *products;
    struct cuda_rows shared, residual, out;
};
static __global__ void combine_choices(const combine a)
{
    __shared__ int order[KERN_TOPK_MAX];
    __shared__ float weight[KERN_TOPK_MAX];
    size_t i = a.row0 + blockIdx.y;
    pdl_take_over();
    const int32_t *ids = a.ids + i * a.topk;
    if (threadIdx.x < a.topk) {
        int rank = 0;
        for (int j = 0; j < a.topk; j++)
            rank += ids[j] < ids[threadIdx.x];
        order[rank] = threadIdx.x;
        weight[rank] = a.weights[i * a.topk + threadIdx.x];
    }
    __syncthreads();
    size_t r = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (r >= a.rows)
        return;
    float sum = 0;
    for (int j = 0; j < a.topk; j++)
        sum = fmaf(weight[j], a.products[(i * a.topk + order[j]) * a.rows + r], sum);
    if (a.shared.p)
        sum += row_get(a.shared, i, r);
    if (a.residual.p)
        sum += row_get(a.residual, i, r);
    row_set(a.out, i, r, sum);
}

static void combine_all(struct cuda *c, combine a)
{
    for (size_t some; a.row0 < a.n; a.row0 += some) { // the grid's y is limited
        some = a.n - a.row0 < 65535 ? a.n - a.row0 : 65535;
        dim3 grid((unsigned)((a.rows + COMBINE_THREADS - 1) / COMBINE_THREADS), (unsigned)some);
        cuda_launch(c, "combine_choices", combine_choices, grid, COMBINE_THREADS, 0, a);
    }
}

void cuda_moe_down_any(struct kern *k, const struct kern_moe_down_args *a)
{
    struct cuda *c = cuda_of(k);
    struct cuda_mm m = {};
    cuda_mm_set_weight(&m, a->down);
    m.x = cuda_rows(&a->h);
    m.n = a->n * a->topk;
    m.x_div = 1;
    float *products = (float *)cuda_scratch(c, CUDA_ARENA_PARTIAL, m.n * m.rows * sizeof *products);
    m.out.p = products;
    m.out.stride = m.rows;
    plan_pieces(c, (const int32_t *)a->ids->p, a->n, a->down->shape.stack, &m);
    cuda_mm(c, &m);
    combine s = {0,
                 a->n,
                 a->topk,
                 m.rows,
                 (const int32_t *)a->ids->p,
                 (const float *)a->weights->p,
                 products,
                 cuda_rows(&a->shared),
                 cuda_rows(&a->residual),
                 cuda_rows(&a->out)};
    combine_all(c, s);
}
