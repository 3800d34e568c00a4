"""Multi-turn sessions over several replicas: time to the first token and cached tokens, with the index of
prefix caches and without it; run by prefix.sh. The mock engine takes time for every row of a step, so a
prompt that is not cached costs what it does on a GPU of 50,000 tokens/s; prefix cache, batch scheduler,
routing and everything between client and node are the real ones."""

import argparse
import http.client
import json
import random
import statistics
import tempfile
import threading
import time
import urllib.parse

from rig import Cluster, write

WORDS = "the of and to in is was it for on are as with his they at be this have from or one had by word but not".split()


def words(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n))


class Session(threading.Thread):
    """Asks, reads the answer, thinks for a while, asks again with all that was said before."""

    def __init__(self, url, args, number, key, system):
        super().__init__()
        self.url, self.args, self.key, self.system = urllib.parse.urlparse(url), args, key, system
        self.rng = random.Random(args.seed * 1000 + number)
        self.turns, self.error = [], None

    def ask(self, history):
        body = {"model": "sample", "prompt": history, "max_tokens": self.args.answer, "stream": True,
                "stream_options": {"include_usage": True}, "temperature": 0}
        if self.key:
            body["prompt_cache_key"] = self.key
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=120)
        begin, first, text, usage = time.monotonic(), None, "", None
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read()[:200]}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices") and event["choices"][0].get("text"):
                first = first or time.monotonic() - begin
                text += event["choices"][0]["text"]
            usage = event.get("usage") or usage
        connection.close()
        return first, text, usage

    def run(self):
        try:
            time.sleep(self.rng.random() * self.args.think)
            history = self.system
            for turn in range(self.args.turns):
                history += "\n" + words(self.rng, self.args.question)
                first, text, usage = self.ask(history)
                history += text
                self.turns.append((turn, first, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]))
                time.sleep(self.rng.expovariate(1 / self.args.think))
        except Exception as e:  # told at the end; the run is void then
            self.error = repr(e)


def run(args, index, keyed):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(f"prefix_blocks: {1 << 20 if index else 0}\n")
        config.flush()
        cluster = Cluster(replicas=args.replicas, engine="mock", mock_step_us=5000, config=config.name)
    system = words(random.Random(args.seed), args.system)
    sessions = [Session(cluster.url, args, i, f"session-{i}" if keyed else None, system) for i in range(args.sessions)]
    for s in sessions:
        s.start()
    for s in sessions:
        s.join()
    code = cluster.stop()
    errors = [s.error for s in sessions if s.error]
    if code or errors:
        raise SystemExit(f"the run is void: exit {code}, {errors[:3]}")
    later = [t for s in sessions for t in s.turns if t[0] > 0]
    firsts = sorted(1000 * t[1] for t in later)
    prompt, cached = sum(t[2] for t in later), sum(t[3] for t in later)
    return {"routing": "prefix index" if index else "ring only", "session_key": "yes" if keyed else "no",
            "replicas": args.replicas, "sessions": args.sessions, "turns": args.turns, "requests": len(later),
            "prompt_tokens_mean": round(prompt / len(later)), "cached_percent": round(100 * cached / prompt, 1),
            "computed_tokens_mean": round((prompt - cached) / len(later)),
            "ttft_ms_p50": round(statistics.median(firsts), 1),
            "ttft_ms_p90": round(firsts[int(0.9 * len(firsts))], 1),
            "ttft_ms_p99": round(firsts[int(0.99 * len(firsts))], 1)}


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/prefix.sh")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--system", type=int, default=300, help="words that all sessions share")
    parser.add_argument("--question", type=int, default=150, help="words of a turn")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--think", type=float, default=1.0, help="seconds between turns, mean")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    rows = [run(args, index, keyed) for keyed in (False, True) for index in (False, True)]
    write("prefix.csv", rows, args.dry)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
