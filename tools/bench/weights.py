"""Loading weights from other nodes: how fast, and what it costs those that serve. Run by weights.sh."""

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from rig import ROOT, write
from cluster import HADAL, SAMPLE, die_with_parent, free_port, wait_for  # the path that rig put first

LOADED = "configs/models/r1-distill-qwen-1.5b.json"
# What serves beside a pull: 0.9 GB in bf16, with the sample model's tokenizer.
SERVED = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16", "vocab_size": 4096,
          "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 9, "num_attention_heads": 12,
          "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-06, "max_position_embeddings": 4096,
          "rope_theta": 10000, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1}
STREAMS = 8


def checkpoint(shape, out):
    if not out.exists():
        subprocess.run([HADAL, "quantize", "--random-weights", "--config", str(shape), "--to", "bf16", "--out", str(out)],
                       check=True, stdout=subprocess.DEVNULL)
    return out


def loads(folder, steps):
    model, own = checkpoint(ROOT / LOADED, folder / "model"), folder / "own"
    if not own.exists():
        shutil.copytree(model, own)
    os.sync()
    seen, limits = {}, {}
    for _ in range(steps):  # every case once, then again: what else runs here hits them alike
        out = subprocess.run([HADAL, "bench", "weights", "--model", model, "--own", own, "--steps", "1", "--json"],
                             check=True, stdout=subprocess.PIPE, text=True, timeout=900).stdout
        for figure in map(json.loads, out.splitlines()):
            if figure["metric"] == "bandwidth":
                seen.setdefault(figure["case"], []).append(figure["value"])
                if figure.get("limit"):
                    limits.setdefault(figure["case"], (figure["limit"], []))[1].append(figure["limit_value"])
    size = sum(f.stat().st_size for f in model.glob("*.safetensors")) / 1e9
    disk = statistics.median(seen["own folder, cold"])
    rows = []
    for case, values in seen.items():
        name, bounds = limits.get(case, ("", [0]))
        value = statistics.median(values)
        rows.append({"case": case, "gb": round(size, 2), "gb_s": round(value, 3), "least": round(min(values), 3),
                     "most": round(max(values), 3), "times_cold_disk": round(value / disk, 2), "limit": name,
                     "limit_gb_s": round(statistics.median(bounds), 3), "load": round(os.getloadavg()[0], 1)})
    return rows


class Streams:
    """Keeps STREAMS answers going; notes when each token came."""

    def __init__(self, port, model):
        self.port, self.model, self.gaps, self.stop = port, model, [], False
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True) for i in range(STREAMS)]
        for t in self.threads:
            t.start()

    def run(self, i):
        while not self.stop:
            c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            c.request("POST", "/v1/completions", json.dumps({
                "model": self.model, "prompt": f"stream {i}", "max_tokens": 3000, "stream": True, "temperature": 1}),
                {"Content-Type": "application/json"})
            reply, last = c.getresponse(), None
            for line in reply:
                if self.stop:
                    break
                if not line.startswith(b"data: {"):
                    continue
                now = time.monotonic()
                if last:
                    self.gaps.append((now, now - last))
                last = now
            c.close()

    def end(self):
        self.stop = True
        for t in self.threads:
            t.join(30)

    def between(self, begin, end):
        gaps = sorted(g for at, g in self.gaps if begin <= at <= end)
        return (statistics.median(gaps), gaps[int(len(gaps) * 0.99)]) if len(gaps) > 20 else (0, 0)


def beside(folder, mib, rounds):
    """8 streams before and during pulls of the whole model from the node that serves them. The node that pulls is on
    the other core, as if it were another host; it is not, so in turn it loads the same from its own folder in the page
    cache, and only the difference between the two is what the pull costs."""
    shape = folder / "served.json"
    shape.write_text(json.dumps(SERVED))
    model = checkpoint(shape, folder / "served")
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(Path(SAMPLE) / name, model / name)
    (folder / "none").mkdir(exist_ok=True)
    log = tempfile.NamedTemporaryFile(prefix="weights-", suffix=".log", mode="r+")
    web, rpc, processes = free_port(), free_port(), []

    def start(core, *words):
        nice = ["nice", "-n", "5"] if "--models-dir" in words else []
        processes.append(subprocess.Popen([*nice, "taskset", "-c", str(core), HADAL, *words], stdout=subprocess.DEVNULL,
                                          stderr=log, preexec_fn=die_with_parent, env={**os.environ, "HADAL_LOG": "info"}))
        return processes[-1]

    def text():
        return Path(log.name).read_text(errors="replace")

    def ready():
        try:
            c = http.client.HTTPConnection("127.0.0.1", web, timeout=5)
            c.request("GET", "/hadal/v1/replicas")
            return sum(r["state"] == "ready" for r in json.loads(c.getresponse().read())["replicas"])
        except OSError:
            return 0

    config = folder / "coordinator.yaml"
    config.write_text(f'http: "127.0.0.1:{web}"\nrpc: "127.0.0.1:{rpc}"\nmodel: {model}\nmodel_name: served\n'
                      "replicas: 2\nprobe_interval_ms: 0\n")
    rows, size = [], sum(f.stat().st_size for f in model.glob("*.safetensors")) / 2**20
    try:
        start(1, "coordinator", "--config", str(config))
        start(0, "node", "--name", "serves", "--coordinator", f"127.0.0.1:{rpc}", "--threads", "1", "--context", "4096",
              "--serve-weights-mib", str(mib))
        wait_for("a replica", lambda: ready() == 1, 60)
        streams = Streams(web, "served")
        time.sleep(6)
        for i in range(2 * rounds):
            pulls = i % 2 == 1
            quiet = time.monotonic()
            time.sleep(6)
            begin, pulled = time.monotonic(), text().count("ready")
            node = start(1, "node", "--name", f"pulls{i}", "--coordinator", f"127.0.0.1:{rpc}", "--threads", "1",
                         "--models-dir", str(folder / "none" if pulls else folder),
                         "--weights", "peer" if pulls else "disk")
            wait_for("it has all", lambda: text().count("ready") > pulled, 300, 0.02)
            end = time.monotonic()
            node.kill()
            node.wait()
            before, during = streams.between(quiet, begin), streams.between(begin, end)
            rows.append({"weights": "pulled from it" if pulls else "own folder (control)",
                         "serve_weights_mib": mib, "load_s": round(end - begin, 2), "mib_s": round(size / (end - begin)),
                         "p50_ms_before": round(before[0] * 1e3, 1), "p50_ms_during": round(during[0] * 1e3, 1),
                         "p99_ms_before": round(before[1] * 1e3, 1), "p99_ms_during": round(during[1] * 1e3, 1),
                         "p50_ratio": round(during[0] / before[0], 2) if before[0] else 0,
                         "p99_ratio": round(during[1] / before[1], 2) if before[1] else 0,
                         "load": round(os.getloadavg()[0], 1)})
            time.sleep(2)
        streams.end()
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
            p.wait(15)
        log.close()
    return rows


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/weights.sh")
    parser.add_argument("--dir", default=os.path.join(tempfile.gettempdir(), "hadal-bench-weights"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=["load", "beside"])
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    folder = Path(args.dir)
    folder.mkdir(exist_ok=True)
    if args.only != "beside":
        write("weights.csv", loads(folder, args.steps), args.dry)
    if args.only != "load":
        rows = [r for mib in [128, 1024] for r in beside(folder, mib, args.steps)]
        write("weights-beside.csv", rows, args.dry)


if __name__ == "__main__":
    main()
