#!/usr/bin/env bash
# Hadal beside llama.cpp, on one machine, in one run, with the same weights: DeepSeek-V2-Lite's size as
# llama.cpp takes it (peer-shape.json: 28 layers, q_lora), random bf16, written once and turned into a
# GGUF of the same numbers. Both sides: load from the page cache, prefill of 900 tokens, decoding of one
# sequence early and after 900 tokens, of 8 and of 64 together, greedily. One CSV row per figure.
#
#   tools/bench/peer-llama.sh HADAL PEER OUT    PEER: a folder with llama.cpp's libraries and llama_engine,
#                                               which drives them (prefill, decode; prints one JSON object)
#   WORK=/dev/shm      where the 66 GB of weights go, and are removed from again
#   MODEL=DIR          an existing bf16 checkpoint of the DeepSeek-V3 form instead (nothing is written but its GGUF)
#   BACKEND=cpu GPU_LAYERS=0 STEPS=32 PARALLEL="8 64"    for a rehearsal without a GPU
#   COMMIT=abc MACHINE="..." where there is no git, no nvidia-smi
set -euo pipefail
hadal=$(realpath "$1") peer=$(realpath "$2") out=$(realpath "$3")
cd "$(dirname "$0")/../.."
backend=${BACKEND:-cuda} steps=${STEPS:-64} work=${WORK:-/dev/shm}/hadal-peer-$$
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
model=${MODEL:-$work/model}
[ -n "${MODEL:-}" ] || "$hadal" quantize --random-weights --config tools/bench/peer-shape.json --to bf16 --out "$model"
python3 tools/bench/to_gguf.py "$model" "$work/model.gguf"
python3 -c 'print(*[(i * 7919 + 11) % 4000 + 3 for i in range(900)])' >"$work/ids"

for n in ${PARALLEL:-8 64}; do
    "$peer/llama_engine" bench --libs "$peer" --model "$work/model.gguf" --ids "$work/ids" --gen "$steps" --par "$n" \
        --gpu-layers "${GPU_LAYERS:-999}" --threads "$(nproc)" --inner 1 --tries 1 >"$work/llama-$n.json"
    cat "$work/llama-$n.json"
done
# The contexts are those in the middle of what the peer decodes.
early=$((16 + steps / 2)) late=$((900 + steps / 2)) batches=$(echo "1 ${PARALLEL:-8 64}" | tr ' ' ,)
{
    "$hadal" bench load --model "$model" --backend "$backend" --steps 1 --json
    "$hadal" bench decode --model "$model" --backend "$backend" --batch "$batches" --context $early,$late \
        --steps "$steps" --prompt 900 --json
} >"$work/hadal.jsonl"

COMMIT=${COMMIT:-$(git rev-parse --short HEAD)} DATE=$(date -u +%F) EARLY=$early LATE=$late \
    MACHINE=${MACHINE:-$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1 | tr ',' ' ')} \
    python3 - "$work" "$out/peer-llama.csv" <<'PY'
import csv, json, os, re, sys
from pathlib import Path

work, head = Path(sys.argv[1]), [os.environ[k] for k in ("DATE", "COMMIT", "MACHINE")]
ours = {}
for line in (work / "hadal.jsonl").read_text().splitlines():
    f = json.loads(line)
    ours[f["case"], f["metric"]] = f["value"]  # the last load: from the page cache

def hadal(metric, pattern):
    return next(v for (case, m), v in ours.items() if m == metric and re.search(pattern, case))

runs = {int(p.stem.split("-")[1]): json.loads(p.read_text()) for p in sorted(work.glob("llama-*.json"))}
early, late = os.environ["EARLY"], os.environ["LATE"]
first = next(iter(runs.values()))
rows = [("decode, 1 sequence", hadal("throughput", f"batch 1 context {early}$"), first["decode_tps"], 3),
        ("decode, 1 sequence after 900 tokens", hadal("throughput", f"batch 1 context {late}$"), first["decode_deep_tps"], 3)]
for n, run in sorted(runs.items()):
    rows.append((f"decode, {n} sequences", hadal("throughput", f"batch {n} context {early}$"), run[f"par{n}_tps"],
                 {8: 4, 64: 8}.get(n, "")))
rows.append(("prefill of 900 tokens", hadal("throughput", "^prefill"), first["prefill_tps"], 5))
size, seconds = hadal("size", "^load"), min(r["load_ms"] for r in runs.values()) / 1e3
rows.append(("load, GB/s", hadal("bandwidth", "^load"), size / seconds, ""))
with open(sys.argv[2], "w", newline="") as f:
    to = csv.writer(f)
    to.writerow(["date", "commit", "machine", "case", "hadal", "llama.cpp b7347", "ratio", "wanted"])
    for case, a, b, wanted in rows:
        to.writerow(head + [case, round(a, 1), round(b, 1), round(a / b, 2), wanted])
        print(f"{case:38} {a:10.1f} {b:10.1f} {a / b:7.2f}x  {f'wanted {wanted}x' if wanted else ''}")
PY
