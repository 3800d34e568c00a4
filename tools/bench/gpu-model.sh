#!/usr/bin/env bash
# Whole models on one GPU: the sample model's answers in each precision, then published sizes with random
# weights: decoding at each batch and context that fits, prefill, reading a checkpoint, and a service from
# `hadal up` to 64 streams; every figure beside the limit measured in the same process. They go to
# OUT/gpu-model.csv.
#
#   tools/bench/gpu-model.sh HADAL OUT       HADAL: the program, its module beside it or in HADAL_CUDA_MODULE
#   STEPS=16 BATCHES=1,8 CONTEXTS=1024 ...   less of it
#   MODELS="deepseek-v2-lite:bf16 ..."       which shapes of configs/models, in which precision
#   ACCURACY=no LOAD=no V3=no                without those parts; LOAD writes 31 GB to WORK=/dev/shm,
#   CHECKPOINT=DIR                           unless one is there already
#   COMMIT=abc ...                           where there is no git
#   BACKEND=cpu MACHINE=x LAYERS=2           for a rehearsal without a GPU
# One tensor rank of eight of the full V3 shape in fp8 is measured where it fits (an H200).
set -uo pipefail
hadal=$(realpath "$1") out=$(realpath "$2")
cd "$(dirname "$0")/../.." || exit 1
steps=${STEPS:-32} batches=${BATCHES:-1,8,64,256} contexts=${CONTEXTS:-1024,8192,32768} prefill=${PREFILL:-4096}
backend=${BACKEND:-cuda} work=${WORK:-/dev/shm}/hadal-model-$$
models=${MODELS:-deepseek-v2-lite:bf16 deepseek-v2-lite:fp8 r1-distill-llama-8b:bf16 deepseek-v2-lite:int8 \
    r1-distill-llama-8b:fp8 r1-distill-qwen-7b:bf16 r1-0528-qwen3-8b:bf16 r1-distill-qwen-1.5b:bf16 r1-distill-qwen-32b:bf16}
lines=$out/gpu-model.jsonl failed=0
: >"$lines"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT

figures() { # hadal bench ARGS...
    "$hadal" bench "$@" --backend "$backend" ${LAYERS:+--layers $LAYERS} --json >>"$lines" || failed=1
}

line() { # CASE METRIC VALUE UNIT
    printf '{"case": "%s", "metric": "%s", "value": %s, "unit": "%s"}\n' "$@" >>"$lines"
}

accuracy() {
    local p dir answers
    for p in bf16 fp8 int8; do
        dir=models/sample
        [ $p = bf16 ] || { dir=$work/sample-$p && "$hadal" quantize --model models/sample --to $p --out "$dir"; } || return 1
        answers=$("$hadal" eval --model "$dir" --backend "$backend" --json) || return 1
        python3 -c 'import json, sys
r = json.loads(sys.argv[1])
print(sum(r["tasks"].values()) / len(r["tasks"]), r["perplexity"], r["identical"])' "$answers" >"$work/eval"
        read -r correct perplexity identical <"$work/eval"
        line "eval sample $p" accuracy "$correct" ""
        line "eval sample $p" perplexity "$perplexity" ""
        line "eval sample $p" "the reference's tokens" "$identical" "of 168"
    done
}
[ "${ACCURACY:-yes}" = no ] || accuracy || failed=1

for m in $models; do
    figures decode --random-weights --config "configs/models/${m%:*}.json" --quant "${m#*:}" --batch "$batches" \
        --context "$contexts" --steps "$steps" --prompt "$prefill"
done

memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1)
if [ "${V3:-yes}" = yes ] && [ "${memory:-0}" -gt 120000 ]; then
    figures decode --random-weights --config configs/models/deepseek-v3.json --quant fp8 --tensor-rank-of 8 \
        --batch "$batches" --context "$contexts" --steps "$steps"
fi

# From `hadal up` to `ready`, with the checkpoint in the page cache; then the whole service under 64
# streams, beside the engine alone at that batch and the context in the middle of an answer.
service() { # MODEL_DIR
    local up begin rc=1 streams=${STREAMS:-64} tokens=${TOKENS:-256} alone
    begin=$(date +%s%N)
    "$hadal" up --model "$1" --backend "$backend" --max-seqs "$streams" --max-rows 2048 --context 2048 \
        --kv-tokens 65536 --http 0 >"$work/up" 2>"$work/up.log" &
    up=$!
    for _ in $(seq 600); do
        grep -q '^ready' "$work/up" && break
        kill -0 $up 2>/dev/null || break
        sleep 0.05
    done
    if grep -q '^ready' "$work/up"; then
        line "up, one replica" "until ready" $((($(date +%s%N) - begin) / 1000000)) ms
        "$hadal" load --url "$(cut -d' ' -f2 "$work/up")" --concurrency "$streams" --requests $((4 * streams)) \
            --max-tokens "$tokens" --quiet --json "$work/load.json" && rc=0
    else
        tail -5 "$work/up.log"
    fi
    kill -INT $up && wait $up || rc=1
    [ $rc = 0 ] || return 1
    alone=$("$hadal" bench decode --model "$1" --backend "$backend" --batch "$streams" --context $((20 + tokens / 2)) \
        --steps 32 --json) || return 1
    python3 - "$work/load.json" "$streams" "$alone" >>"$lines" <<'PY'
import json, sys
served = json.load(open(sys.argv[1]))["tokens_per_s"]
engine = next(f["value"] for f in map(json.loads, sys.argv[3].splitlines()) if f["metric"] == "throughput")
print(json.dumps({"case": f"service over HTTP, {sys.argv[2]} streams", "metric": "throughput", "value": served, "unit": "token/s",
                  "limit": "the engine alone at that batch", "limit_value": engine, "share": served / engine}))
PY
}
if [ "${LOAD:-yes}" = yes ]; then
    checkpoint=${CHECKPOINT:-$work/deepseek-v2-lite}
    [ -n "${CHECKPOINT:-}" ] ||
        "$hadal" quantize --random-weights --config configs/models/deepseek-v2-lite.json ${LAYERS:+--layers $LAYERS} \
            --to bf16 --out "$checkpoint" || failed=1
    figures load --model "$checkpoint" --steps 3
    [ -f "$checkpoint/tokenizer.json" ] || cp models/sample/tokenizer*.json "$checkpoint"
    service "$checkpoint" || failed=1
fi

machine=${MACHINE:-$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1 | tr ',' ' ')}
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
            print("%-58s %10.1f %-8s %5.1f%% of %s" % (d["case"], d["value"], d["unit"], 100 * d["share"], d["limit"]))
        elif d["metric"] in ("accuracy", "perplexity", "the reference's tokens", "until ready"):
            print("%-58s %10.4g %s %s" % (d["case"], d["value"], d["metric"], d["unit"]))
PY
exit $failed
