"""`hadal bench decode | prefill | load`: one JSON object a line, each rate beside its limit."""

import json
import subprocess

from cluster import HADAL, ROOT

SHAPE = str(ROOT / "configs" / "models" / "r1-distill-qwen-1.5b.json")


def bench(*args, code=0):
    run = subprocess.run([HADAL, "bench", *args, "--json"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert run.returncode == code, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()], run.stderr


def rates(figures):
    found = {f["case"]: f for f in figures if f["metric"] == "throughput"}
    for f in found.values():
        assert f["unit"] == "token/s" and f["value"] > 0 and f["limit"]
        assert abs(f["share"] - f["value"] / f["limit_value"]) < 1e-3
    return found


def test_every_case_is_named_and_held_against_a_limit():
    figures, _ = bench("decode", "--batch", "1,3", "--context", "64,200", "--steps", "2", "--prompt", "40")
    cases = [f"decode sample bf16 batch {b} context {c}" for b in (1, 3) for c in (64, 200)]
    assert list(rates(figures)) == [*cases, "prefill sample bf16 tokens 40 chunk 40"]
    moved = {f["case"]: f["value"] for f in figures if f["metric"] == "must move"}
    assert moved[cases[1]] > moved[cases[0]]  # a longer context is more to read
    experts = [f["value"] for f in figures if f["metric"] == "experts"]
    assert len(experts) == 4 and all(5 <= e <= 17 for e in experts)  # 4 chosen and 1 shared, of 16 and 1
    figures, _ = bench("prefill", "--tokens", "50", "--chunk", "20", "--steps", "1")
    assert list(rates(figures)) == ["prefill sample bf16 tokens 50 chunk 20"]


def test_shapes_without_weights():
    for quant in ["bf16", "int8"]:
        figures, _ = bench("decode", "--random-weights", "--quant", quant, "--layers", "2", "--steps", "1")
        (name,) = rates(figures)
        assert name == f"decode sample {quant} 2 layers batch 1 context 192"
    figures, _ = bench("load", "--random-weights", "--config", SHAPE, "--layers", "1", "--steps", "1")
    size = {f["metric"]: f["value"] for f in figures}
    # Embeddings and lm_head of 151936 x 1536, one layer, in bf16.
    assert abs(size["size"] - (2 * 151936 * 1536 + 46.8e6) * 2e-9) < 0.01


def test_one_rank_alone():
    """A rank of two moves about half of what an undivided model does (its router and latents are whole)."""
    moved = []
    for args in [[], ["--tensor-rank-of", "2"]]:
        figures, _ = bench("decode", "--batch", "8", "--steps", "1", *args)
        moved += [f["value"] for f in figures if f["metric"] == "must move"]
    assert 0.4 < moved[1] / moved[0] < 0.8, moved


def test_wrong_uses():
    for args, said in [
        (["decode", "--batch", "1,x"], "--batch 1,x"),
        (["decode", "--quant", "fp8"], "--random-weights"),
        (["prefill", "--tokens", "0"], "--tokens 0"),
    ]:
        _, error = bench(*args, code=2)
        assert said in error
    _, error = bench("decode", "--context", "5000", code=1)
    assert "context is 4096" in error
