// The ops of the fast body, one function per op and instruction set; each lives in the file named
// after it. table.c gathers them.
#pragma once

#include "kernels/cpu/simd.h"

void ISA(embed)(struct kern *k, const struct kern_embed_args *a);
void ISA(gather_rows)(struct kern *k, const struct kern_gather_args *a);
void ISA(rmsnorm)(struct kern *k, const struct kern_rmsnorm_args *a);
void ISA(linear)(struct kern *k, const struct kern_linear_args *a);
void ISA(linear_heads)(struct kern *k, const struct kern_linear_heads_args *a);
void ISA(add)(struct kern *k, const struct kern_add_args *a);
void ISA(silu_mul)(struct kern *k, const struct kern_silu_mul_args *a);
void ISA(rope)(struct kern *k, const struct kern_rope_args *a);
void ISA(kv_write)(struct kern *k, const struct kern_kv_write_args *a);
void ISA(attn_mla)(struct kern *k, const struct kern_attn_mla_args *a);
void ISA(attn_gqa)(struct kern *k, const struct kern_attn_gqa_args *a);
void ISA(router)(struct kern *k, const struct kern_router_args *a);
void ISA(moe_gate_up)(struct kern *k, const struct kern_moe_gate_up_args *a);
void ISA(moe_down)(struct kern *k, const struct kern_moe_down_args *a);
void ISA(argmax)(struct kern *k, const struct kern_argmax_args *a);
