#!/usr/bin/env python3
"""A bf16 checkpoint of the DeepSeek-V3 form as GGUF (github.com/ggml-org/ggml, docs/gguf.md), for
llama.cpp as a peer: the same numbers, so that both compute the same. Python's own library only; as many
processes as there are cores copy tensors to their places.

  to_gguf.py MODEL_DIR OUT.gguf [--tokenizer DIR]     the vocabulary: DIR's, filled up with names
"""

import argparse
import json
import mmap
import multiprocessing
import os
import struct
from pathlib import Path

ALIGN = 32
F32, BF16 = 0, 30  # tensor types
U32, INT32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # types of values
NORMAL, CONTROL, USER = 1, 3, 4  # kinds of tokens


def string(s):
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, v):
    if kind == STRING:
        return string(v)
    return struct.pack({U32: "<I", INT32: "<i", FLOAT: "<f", BOOL: "<?"}[kind], v)


class Checkpoint:
    """Tensors of a model folder: name -> shape, and their bytes in the mapped files."""

    def __init__(self, folder):
        self.tensors = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            with open(path, "rb") as f:
                view = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
            size = struct.unpack_from("<Q", view)[0]
            for name, t in json.loads(bytes(view[8 : 8 + size])).items():
                if name != "__metadata__":
                    begin, end = t["data_offsets"]
                    self.tensors[name] = (t["shape"], t["dtype"], view[8 + size + begin : 8 + size + end])

    def shape(self, name):
        return self.tensors[name][0]

    def raw(self, name):
        return self.tensors[name][2]

    def bf16(self, name):
        assert self.tensors[name][1] == "BF16", name
        return self.raw(name)

    def f32(self, name):
        _, dtype, raw = self.tensors[name]
        if dtype == "F32":
            return raw
        assert dtype == "BF16", name
        out = bytearray(2 * len(raw))  # a bf16 is the upper half of a float32
        out[2::4], out[3::4] = raw[0::2], raw[1::2]
        return out


def keys_of(c, name):
    lora, rope = c["kv_lora_rank"], c["qk_rope_head_dim"]
    yarn = c["rope_scaling"]
    rows = [
        ("general.architecture", STRING, "deepseek2"),
        ("general.type", STRING, "model"),
        ("general.name", STRING, name),
        ("general.file_type", U32, 32),
        ("general.alignment", U32, ALIGN),
    ]
    own = [
        ("vocab_size", U32, c["vocab_size"]),
        ("context_length", U32, c["max_position_embeddings"]),
        ("embedding_length", U32, c["hidden_size"]),
        ("block_count", U32, c["num_hidden_layers"]),
        ("feed_forward_length", U32, c["intermediate_size"]),
        ("leading_dense_block_count", U32, c["first_k_dense_replace"]),
        ("attention.head_count", U32, c["num_attention_heads"]),
        ("attention.head_count_kv", U32, 1),  # absorbed: all heads share the latent
        ("attention.q_lora_rank", U32, c["q_lora_rank"]),
        ("attention.kv_lora_rank", U32, lora),
        ("attention.key_length", U32, lora + rope),
        ("attention.value_length", U32, lora),
        ("attention.key_length_mla", U32, c["qk_nope_head_dim"] + rope),
        ("attention.value_length_mla", U32, c["v_head_dim"]),
        ("attention.layer_norm_rms_epsilon", FLOAT, c["rms_norm_eps"]),
        ("rope.dimension_count", U32, rope),
        ("rope.freq_base", FLOAT, c["rope_theta"]),
        ("rope.scaling.type", STRING, "yarn"),
        ("rope.scaling.factor", FLOAT, yarn["factor"]),
        ("rope.scaling.original_context_length", U32, yarn["original_max_position_embeddings"]),
        ("rope.scaling.yarn_beta_fast", FLOAT, yarn["beta_fast"]),
        ("rope.scaling.yarn_beta_slow", FLOAT, yarn["beta_slow"]),
        ("rope.scaling.yarn_log_multiplier", FLOAT, 0.1 * yarn["mscale_all_dim"]),
        ("expert_count", U32, c["n_routed_experts"]),
        ("expert_used_count", U32, c["num_experts_per_tok"]),
        ("expert_shared_count", U32, c["n_shared_experts"]),
        ("expert_feed_forward_length", U32, c["moe_intermediate_size"]),
        ("expert_gating_func", U32, 2),  # sigmoid
        ("expert_weights_scale", FLOAT, c["routed_scaling_factor"]),
        ("expert_weights_norm", BOOL, c["norm_topk_prob"]),
    ]
    if c["n_group"] > 1:
        own += [("expert_group_count", U32, c["n_group"]), ("expert_group_used_count", U32, c["topk_group"])]
    return [string(k) + struct.pack("<I", t) + value(t, v) for k, t, v in rows + [("deepseek2." + k, t, v) for k, t, v in own]]


def vocabulary_of(folder, c):
    tokenizer = json.loads((Path(folder) / "tokenizer.json").read_text())
    words = [f"~{i}~" for i in range(c["vocab_size"])]
    kinds = [NORMAL] * len(words)
    for word, i in tokenizer["model"]["vocab"].items():
        words[i] = word
    for t in tokenizer["added_tokens"]:
        words[t["id"]], kinds[t["id"]] = t["content"], CONTROL if t["special"] else USER
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]

    def array(key, kind, values):
        head = string("tokenizer.ggml." + key) + struct.pack("<IIQ", ARRAY, kind, len(values))
        return head + b"".join(value(kind, v) for v in values)

    def one(key, kind, v):
        return string("tokenizer.ggml." + key) + struct.pack("<I", kind) + value(kind, v)

    return [one("model", STRING, "gpt2"), one("pre", STRING, "deepseek-v3"), array("tokens", STRING, words),
            array("token_type", INT32, kinds), array("merges", STRING, merges),
            one("bos_token_id", U32, c["bos_token_id"]), one("eos_token_id", U32, c["eos_token_id"])]


def keys_half(w, name, heads, nope, v, lora):
    """kv_b_proj's rows that make keys, transposed for each head: [heads][lora][nope]."""
    rows, out = w.bf16(name).cast("H"), memoryview(bytearray(2 * heads * lora * nope)).cast("H")
    for h in range(heads):
        head = rows[h * (nope + v) * lora : (h * (nope + v) + nope) * lora].tolist()
        for j in range(lora):
            at = (h * lora + j) * nope
            out[at : at + nope] = memoryview(struct.pack(f"<{nope}H", *head[j::lora])).cast("H")
    return out.cast("B")


def values_half(w, name, heads, nope, v, lora):
    row = 2 * lora
    raw = w.bf16(name)
    return b"".join(bytes(raw[(h * (nope + v) + nope) * row : (h + 1) * (nope + v) * row]) for h in range(heads))


def tensors_of(w, c):
    """(name, shape, type, function giving pieces of its bytes), in order."""
    heads, nope, v, lora = c["num_attention_heads"], c["qk_nope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
    out = []

    def as_is(to, name):
        out.append((to, w.shape(name), BF16, lambda: [w.bf16(name)]))

    def wide(to, name):
        out.append((to, w.shape(name), F32, lambda: [w.f32(name)]))

    as_is("token_embd.weight", "model.embed_tokens.weight")
    for i in range(c["num_hidden_layers"]):
        m, b = f"model.layers.{i}.", f"blk.{i}."
        a = m + "self_attn."
        wide(b + "attn_norm.weight", m + "input_layernorm.weight")
        as_is(b + "attn_q_a.weight", a + "q_a_proj.weight")
        wide(b + "attn_q_a_norm.weight", a + "q_a_layernorm.weight")
        as_is(b + "attn_q_b.weight", a + "q_b_proj.weight")
        as_is(b + "attn_kv_a_mqa.weight", a + "kv_a_proj_with_mqa.weight")
        wide(b + "attn_kv_a_norm.weight", a + "kv_a_layernorm.weight")
        kv_b = (a + "kv_b_proj.weight", heads, nope, v, lora)
        out.append((b + "attn_k_b.weight", (heads, lora, nope), BF16, lambda kv_b=kv_b: [keys_half(w, *kv_b)]))
        out.append((b + "attn_v_b.weight", (heads, v, lora), BF16, lambda kv_b=kv_b: [values_half(w, *kv_b)]))
        as_is(b + "attn_output.weight", a + "o_proj.weight")
        wide(b + "ffn_norm.weight", m + "post_attention_layernorm.weight")
        if i < c["first_k_dense_replace"]:
            for part in ["gate", "up", "down"]:
                as_is(b + f"ffn_{part}.weight", m + f"mlp.{part}_proj.weight")
            continue
        wide(b + "ffn_gate_inp.weight", m + "mlp.gate.weight")
        wide(b + "exp_probs_b.bias", m + "mlp.gate.e_score_correction_bias")
        for part in ["gate", "up", "down"]:
            names = [m + f"mlp.experts.{e}.{part}_proj.weight" for e in range(c["n_routed_experts"])]
            shape = (len(names), *w.shape(names[0]))
            out.append((b + f"ffn_{part}_exps.weight", shape, BF16, lambda names=names: (w.bf16(n) for n in names)))
            as_is(b + f"ffn_{part}_shexp.weight", m + f"mlp.shared_experts.{part}_proj.weight")
    wide("output_norm.weight", "model.norm.weight")
    as_is("output.weight", "lm_head.weight")
    return out


def size_of(shape, kind):
    n = 4 if kind == F32 else 2
    for d in shape:
        n *= d
    return n


def convert(folder, path, tokenizer):
    c = json.loads((Path(folder) / "config.json").read_text())
    assert c["model_type"] == "deepseek_v3" and c["q_lora_rank"] and "quantization_config" not in c, "another form"
    w = Checkpoint(folder)
    tensors, infos, at, places = tensors_of(w, c), [], 0, []
    for name, shape, kind, _ in tensors:
        infos.append(string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
                     + struct.pack("<IQ", kind, at))
        places.append(at)
        at += -(-size_of(shape, kind) // ALIGN) * ALIGN
    keys = keys_of(c, Path(folder).name) + vocabulary_of(tokenizer, c)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(infos)
    head += bytes(-len(head) % ALIGN)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.ftruncate(fd, len(head) + at)
    os.pwrite(fd, head, 0)

    def copy(share):
        for i in share:
            _, shape, kind, pieces = tensors[i]
            to = start = len(head) + places[i]
            for piece in pieces():
                piece = memoryview(piece)
                while piece:
                    n = os.pwrite(fd, piece, to)
                    to, piece = to + n, piece[n:]
            assert to - start == size_of(shape, kind), tensors[i][0]

    n = os.cpu_count() or 1
    order = sorted(range(len(tensors)), key=lambda i: -size_of(*tensors[i][1:3]))
    workers = [multiprocessing.get_context("fork").Process(target=copy, args=(order[k::n],)) for k in range(n)]
    for p in workers:
        p.start()
    for p in workers:
        p.join()
    assert all(p.exitcode == 0 for p in workers), "a copy failed"
    os.close(fd)
    print(f"{path}: {len(tensors)} tensors, {(len(head) + at) / 1e9:.2f} GB")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--tokenizer", default=str(Path(__file__).parents[2] / "models" / "sample"))
    args = parser.parse_args()
    convert(args.model, args.out, args.tokenizer)


if __name__ == "__main__":
    main()
