#!/usr/bin/env bash
# Whole models on one GPU, at published sizes with random weights: decoding at each batch and context
# that fits, prefill, and reading a checkpoint; every figure beside the limit measured in the same
# process. The figures go to OUT/gpu-model.csv.
#
#   tools/bench/gpu-model.sh HADAL OUT       HADAL: the program, its module beside it or in HADAL_CUDA_MODULE
#   STEPS=16 BATCHES=1,8 CONTEXTS=1024 ...   less of it
#   MODELS="deepseek-v2-lite:bf16 ..."       which shapes of configs/models, in which precision
#   LOAD=no                                  no checkpoint is written (31 GB, to WORK=/dev/shm) and read
#   COMMIT=abc ...                           where there is no git
# One tensor rank of eight of the full V3 shape in fp8 is measured where it fits (an H200).
set -uo pipefail
hadal=$(realpath "$1") out=$(realpath "$2")
cd "$(dirname "$0")/../.." || exit 1
steps=${STEPS:-32} batches=${BATCHES:-1,8,64,256} contexts=${CONTEXTS:-1024,8192,32768} prefill=${PREFILL:-4096}
models=${MODELS:-deepseek-v2-lite:bf16 deepseek-v2-lite:fp8 deepseek-v2-lite:int8 r1-distill-llama-8b:bf16 \
    r1-distill-llama-8b:fp8 r1-distill-qwen-1.5b:bf16 r1-distill-qwen-7b:bf16 r1-0528-qwen3-8b:bf16 r1-distill-qwen-32b:bf16}
lines=$out/gpu-model.jsonl failed=0
: >"$lines"

figures() { # hadal bench ARGS...
    "$hadal" bench "$@" --backend cuda --json >>"$lines" || failed=1
}

for m in $models; do
    shape="--random-weights --config configs/models/${m%:*}.json --quant ${m#*:}"
    # shellcheck disable=SC2086
    figures decode $shape --batch "$batches" --context "$contexts" --steps "$steps"
    # shellcheck disable=SC2086
    figures prefill $shape --tokens "$prefill" --chunk "$prefill" --steps 5
done

memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1)
if [ "${V3:-yes}" = yes ] && [ "${memory:-0}" -gt 120000 ]; then
    figures decode --random-weights --config configs/models/deepseek-v3.json --quant fp8 --tensor-rank-of 8 \
        --batch "$batches" --context "$contexts" --steps "$steps"
fi

if [ "${LOAD:-yes}" = yes ]; then
    work=${WORK:-/dev/shm}/hadal-load-$$
    "$hadal" quantize --random-weights --config configs/models/deepseek-v2-lite.json --to bf16 --out "$work" &&
        figures load --model "$work" --steps 3
    rm -rf "$work"
fi

machine=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1 | tr ',' ' ')
DATE=$(date -u +%F) COMMIT=${COMMIT:-$(git rev-parse --short HEAD)} MACHINE=$machine \
    python3 - "$lines" "$out/gpu-model.csv" <<'PY' || failed=1
import csv, json, os, sys
head = [os.environ[k] for k in ("DATE", "COMMIT", "MACHINE")]
keys = ["case", "metric", "value", "unit", "limit", "limit_value", "share"]
with open(sys.argv[2], "w", newline="") as f:
    to = csv.writer(f)
    to.writerow(["date", "commit", "machine", *keys])
    for line in open(sys.argv[1]):
        d = json.loads(line)
        to.writerow(head + [d.get(k, "") for k in keys])
        if "share" in d:
            print("%-62s %10.1f %-8s %5.1f%% of %s" % (d["case"], d["value"], d["unit"], 100 * d["share"], d["limit"]))
PY
exit $failed
