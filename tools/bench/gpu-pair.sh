#!/usr/bin/env bash
# What is shown on two GPUs of one host: collectives and ranks that hang or die, tensor ranks that give
# the bits of one, the service with a worker killed; then figures: collectives by size beside NCCL,
# decoding by two tensor ranks and by two stages beside one GPU. The figures go to OUT/gpu-pair.csv.
#
#   tools/bench/gpu-pair.sh BUILD OUT    BUILD: build folder (hadal, tests, kernels/cuda)
#   SHAPE=r1-distill-llama-8b STEPS=16 BATCH=64 ...
#   COMMIT=abc ...                       where there is no git
set -uo pipefail
build=$(realpath "$1") out=$(realpath "$2")
cd "$(dirname "$0")/../.." || exit 1
export HADAL_CUDA_MODULE=$build/kernels/cuda/libhadal_cuda.so HADAL_LOG=${HADAL_LOG:-warn}
export NCCL_NVLS_ENABLE=0
hadal=$build/hadal
shape=${SHAPE:-r1-distill-llama-8b} steps=${STEPS:-16} batch=${BATCH:-64}
lines=$out/gpu-pair.jsonl failed=0
: >"$lines"

check() { # NAME COMMAND...
    local name=$1
    shift
    if timeout 100 "$@" >"$out/$name.log" 2>&1; then
        echo "ok      $name"
    else
        echo "FAILED  $name (exit $?)"
        tail -5 "$out/$name.log"
        failed=1
    fi
}

figures() { # hadal bench ARGS...
    timeout 100 "$hadal" bench "$@" --json >>"$lines" || failed=1
}

# Every answer under load compared with an unloaded one, a worker killed meanwhile.
service() { # hadal up ARGS...
    "$hadal" up --model models/sample --backend cuda --http 18080 --ready-timeout 60 "$@" >"$out/up.log" 2>&1 &
    local up=$! rc=1
    for _ in $(seq 240); do
        grep -q '^ready' "$out/up.log" && break
        sleep 0.25
    done
    grep -q '^ready' "$out/up.log" && "$hadal" load --url http://127.0.0.1:18080 --concurrency 16 \
        --requests 100 --verify --fault 'at 1s kill busy'
    rc=$?
    "$hadal" ctl --url http://127.0.0.1:18080 nodes
    kill -INT $up && wait $up || rc=1
    return $rc
}

check comm "$build/tests/kern/comm_gpu"
grep -E 'free after|gave up' "$out/comm.log"
check engine env HADAL_ENGINE_BACKEND=cuda "$build/tests/unit/test_engine_model"
check model "$build/tests/kern/test_kern_cuda_model"
for layout in "--tensor 2" "--stages 2"; do
    # shellcheck disable=SC2086
    if service $layout >"$out/service.log" 2>&1; then echo "ok      service $layout"; else
        echo "FAILED  service $layout"
        failed=1
    fi
    tail -22 "$out/service.log"
done

figures comm
for tensor in 1 2; do
    figures decode --random-weights --config "configs/models/$shape.json" --backend cuda --steps "$steps" \
        --batch "1,8,$batch" --context 1024 --tensor $tensor
done
folder=$(mktemp -d)
cp "configs/models/$shape.json" "$folder/config.json"
for stages in 1 2; do
    figures stages --model "$folder" --random-weights published --backend cuda --stages $stages --batch "$batch" \
        --context 1024 --steps "$steps"
done
rm -rf "$folder"

machine=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1 | tr ',' ' ')
DATE=$(date -u +%F) COMMIT=${COMMIT:-$(git rev-parse --short HEAD)} MACHINE="2 x $machine" \
    python3 - "$lines" "$out/gpu-pair.csv" <<'PY' || failed=1
import csv, json, os, sys
head = [os.environ[k] for k in ("DATE", "COMMIT", "MACHINE")]
keys = ["case", "metric", "value", "unit", "limit", "limit_value", "share"]
with open(sys.argv[2], "w", newline="") as f:
    to = csv.writer(f)
    to.writerow(["date", "commit", "machine", *keys])
    for line in open(sys.argv[1]):
        d = json.loads(line)
        to.writerow(head + [d.get(k, "") for k in keys])
        if d["metric"] in ("time", "throughput", "received"):
            beside = "(%s %.4g)" % (d["limit"], d["limit_value"]) if "limit" in d else ""
            print("%-66s %10.4g %-8s %s" % (d["case"], d["value"], d["unit"], beside))
PY
exit $failed
