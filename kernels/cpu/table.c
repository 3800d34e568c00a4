// The fast body's table for one instruction set.
#include "kernels/cpu/ops.h"

const struct kern_compute ISA(cpu_compute) = {
    .embed = ISA(embed),
    .gather_rows = ISA(gather_rows),
    .rmsnorm = ISA(rmsnorm),
    .linear = ISA(linear),
    .linear_heads = ISA(linear_heads),
    .add = ISA(add),
    .silu_mul = ISA(silu_mul),
    .rope = ISA(rope),
    .kv_write = ISA(kv_write),
    .attn_mla = ISA(attn_mla),
    .attn_gqa = ISA(attn_gqa),
    .router = ISA(router),
    .moe_gate_up = ISA(moe_gate_up),
    .moe_down = ISA(moe_down),
    .gated = kern_composed_gated,
    .mla_prepare = kern_composed_mla_prepare,
    .gqa_prepare = kern_composed_gqa_prepare,
    .route = kern_composed_route,
    .argmax = ISA(argmax),
    .sample = cpu_sample,
};
