#!/usr/bin/env bash
# Everything that is shown on one GPU, in one run: the tests of the CUDA body, compute-sanitizer over
# the op tests, accuracy of the sample model, the service under load with a worker killed, and each
# op against the limits of the device. The figures go to OUT/gpu.csv: date, commit, machine, case,
# metric, value, unit, limit, limit value, share. Exit status 1 when a test fails; the figures are
# written all the same.
#
#   tools/bench/gpu-all.sh BUILD OUT      BUILD: build folder (hadal, tests/kern, kernels/cuda)
#   COMMIT=abc tools/bench/gpu-all.sh ... where there is no git
#   SHAPES="sample v2-lite" SECONDS_EACH=0.05 SANITIZE=no   what to leave out
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
build=$(realpath "$1") out=$(realpath "$2")
export HADAL_CUDA_MODULE=$build/kernels/cuda/libhadal_cuda.so
shapes=${SHAPES:-sample v2-lite llama-8b}
commit=${COMMIT:-$(git rev-parse --short HEAD)}
failed=0

check() { # NAME COMMAND...: runs a test, keeps its log
    local name=$1
    shift
    if timeout 280 "$@" >"$out/$name.log" 2>&1; then
        echo "ok      $name"
    else
        echo "FAILED  $name (exit $?)"
        grep -E "ERROR|FAILED|error" "$out/$name.log" | head -5
        failed=1
    fi
}

mkdir -p "$out/json"
for t in rows linear moe attn fused fill; do
    HADAL_KERN_BODY=cuda check "kern-$t" "$build/tests/kern/test_kern_$t"
done
check model "$build/tests/kern/test_kern_cuda_model"
grep -h "relative error" "$out/model.log"
if [ "${SANITIZE:-yes}" = yes ]; then
    for t in rows linear moe attn fused fill; do
        HADAL_KERN_BODY=cuda check "memcheck-$t" compute-sanitizer --tool memcheck --error-exitcode 9 \
            "$build/tests/kern/test_kern_$t"
        HADAL_KERN_BODY=cuda check "racecheck-$t" compute-sanitizer --tool racecheck --error-exitcode 9 \
            "$build/tests/kern/test_kern_$t"
    done
fi
check eval "$build/hadal" eval --model models/sample --backend cuda
cat "$out/eval.log"

# The whole service: 64 streams, every answer compared with an unloaded one, a worker killed.
service() {
    "$build/hadal" up --model models/sample --backend cuda --replicas 2 --stages 2 --http 18080 \
        --ready-timeout 60 >"$out/up.log" 2>&1 &
    local up=$! rc=1
    for _ in $(seq 240); do
        grep -q '^ready' "$out/up.log" && break
        sleep 0.25
    done
    grep -q '^ready' "$out/up.log" && "$build/hadal" load --url http://127.0.0.1:18080 \
        --concurrency 64 --requests 300 --verify --fault 'at 1s kill busy'
    rc=$?
    kill -INT $up && wait $up || rc=1
    return $rc
}
if service >"$out/service.log" 2>&1; then echo "ok      service"; else
    echo "FAILED  service"
    failed=1
fi
cat "$out/service.log"

{
    for s in $shapes; do
        "$build/hadal" bench kernels --backend cuda --shape "$s" --seconds "${SECONDS_EACH:-0.1}" --json
    done
    for seqs in 1 8 64; do
        "$build/hadal" bench decode --model models/sample --backend cuda --batch $seqs --json
    done
    "$build/hadal" bench prefill --model models/sample --backend cuda --json
} >"$out/json/figures.jsonl" 2>"$out/json/stderr.log" || failed=1
cat "$out/json/stderr.log"

machine=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1 | tr ',' ' ')
DATE=$(date -u +%F) COMMIT=$commit MACHINE=$machine python3 - "$out/json/figures.jsonl" "$out/gpu.csv" <<'PY' || failed=1
import csv, json, os, sys
head = [os.environ[k] for k in ("DATE", "COMMIT", "MACHINE")]
keys = ["case", "metric", "value", "unit", "limit", "limit_value", "share"]
with open(sys.argv[2], "w", newline="") as f:
    to = csv.writer(f)
    to.writerow(["date", "commit", "machine", *keys])
    us = {}
    for line in open(sys.argv[1]):
        d = json.loads(line)
        to.writerow(head + [d.get(k, "") for k in keys])
        if d["metric"] == "time":
            us[d["case"]] = d["value"]
        elif "share" in d:
            print("%-54s %9.1f us %10.0f %-8s %5.1f%%" % (d["case"], us.get(d["case"], 0), d["value"], d["unit"], 100 * d["share"]))
PY
exit $failed
