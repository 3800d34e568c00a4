"""What tests and measurements of KV that moves share: long prompts, streams with their times, and the books
of a cluster that has come to rest."""

import http.client
import json
import os
import random
import signal
import socket
import threading
import time

from cluster import wait_for


def long_prompt(tokens_n, seed):
    """Token ids; the beginning differs with the seed, so that no prefix cache knows it."""
    rng = random.Random(seed)
    return [rng.randrange(300, 4000) for _ in range(tokens_n)]


class Stream(threading.Thread):
    """A completion read as it comes: `text`, the time of each event, how it ended."""

    def __init__(self, cluster, prompt, max_tokens=64, **options):
        super().__init__(daemon=True)
        self.cluster, self.text, self.times, self.finish, self.error = cluster, "", [], None, None
        self.body = {"model": cluster.model(), "prompt": prompt, "temperature": 0, "max_tokens": max_tokens,
                     "stream": True, **options}
        self.gone = False
        host, port = cluster.url.removeprefix("http://").split(":")
        self.conn = http.client.HTTPConnection(host, int(port), timeout=400)
        self.conn.connect()
        self.began = time.monotonic()
        self.start()

    def run(self):
        try:
            self.conn.request("POST", "/v1/completions", json.dumps(self.body), {"Content-Type": "application/json"})
            reply = self.conn.getresponse()
            if reply.status != 200:
                raise AssertionError(f"{reply.status} {reply.read()[:300]}")
            for line in reply:
                if line.startswith(b"data: {"):
                    self.event(json.loads(line[6:]))
        except Exception as e:  # told by the thread that waits; of one that left it does not matter
            self.error = None if self.gone else e
        finally:
            self.conn.close()

    def abort(self):
        """The client is gone."""
        self.gone = True
        try:
            self.conn.sock.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            pass  # it had ended

    def event(self, event):
        choice = event["choices"][0] if event.get("choices") else None
        if choice is None:
            return
        self.text += choice.get("text") or ""
        self.finish = choice.get("finish_reason") or self.finish
        self.times.append(time.monotonic())

    def has(self, events, limit_s=120):
        return wait_for(f"{events} events", lambda: len(self.times) >= events or not self.is_alive(), limit_s, 0.005)

    def end(self, limit_s=120):
        self.join(limit_s)
        assert not self.is_alive() and self.error is None, self.error
        return self.text, self.finish

    def longest_gap(self, after=0.0):
        pairs = zip(self.times, self.times[1:])
        return max((b - a for a, b in pairs if b >= after), default=0.0)


def metrics(cluster):
    """Samples without labels, and those of transfers by how they ended."""
    with cluster.open("/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return {k: float(v) for k, v in (l.rsplit(" ", 1) for l in lines if not l.startswith("#"))}


def ended(cluster, how):
    return metrics(cluster)[f'hadal_kv_transfers_total{{end="{how}"}}']


def at_rest(cluster, limit_s=30):
    """Nothing runs, nothing is held: no slot, no place, no block of any replica."""
    def books():
        s = cluster.json("/hadal/v1/status")
        replicas = cluster.list("replicas")
        return (s["running"] == s["queued"] == s["transferring"] == 0 and s["credits_free"] == s["credits"] > 0
                and all(r["state"] == "ready" and r["running"] == r["reserved"] == r["waiting"] == 0
                        and r["kv_free"] == r["kv_blocks"] for r in replicas))
    try:
        return wait_for("a cluster at rest", books, limit_s, 0.1)
    except AssertionError as e:
        raise AssertionError(f"{e}\n{cluster.json('/hadal/v1/status')}\n{cluster.list('replicas')}\n"
                             f"{cluster.list('transfers')}\n{cluster.log_tail(30)}") from None


def pid_of(cluster, replica):
    """Of the lead of a replica; None when it is not there now."""
    names = {r["id"]: r["nodes"] for r in cluster.list("replicas")}
    node = cluster.node(names[replica][0]) if names[replica][0] else None
    return node and node["pid"]


class Chaos:
    """Rounds of a long prompt whose KV is moved, and something that happens meanwhile: its client leaves, or
    the source or the target is killed. Answers that somebody waits for must be right."""

    def __init__(self, cluster, seed, kills=0.3, tokens=(600, 1400)):
        self.cluster, self.rng, self.kills, self.tokens = cluster, random.Random(seed), kills, tokens
        self.done = {"abort": 0, "kill source": 0, "kill target": 0, "too late": 0}
        self.checked = 0

    def transfer(self):
        return next(iter(self.cluster.list("transfers")), None)

    def strike(self, stream):
        t = wait_for("a transfer", lambda: self.transfer() or not stream.is_alive(), 20, 0.002)
        if t is True:
            self.done["too late"] += 1
            return
        time.sleep(self.rng.random() * 0.2)
        if self.rng.random() >= self.kills:
            stream.abort()
            self.done["abort"] += 1
            return
        side = self.rng.choice(["source", "target"])
        pid = pid_of(self.cluster, t[side])
        if pid:
            os.kill(pid, signal.SIGKILL)
            self.done["kill " + side] += 1

    def round(self):
        prompt = long_prompt(self.rng.randrange(*self.tokens), self.rng.random())
        stream = Stream(self.cluster, prompt, max_tokens=self.rng.randrange(4, 40))
        self.strike(stream)
        if stream.gone:
            stream.join(60)
            return
        text, finish = stream.end()
        wait_for("a replica that serves", lambda: self.cluster.json("/hadal/v1/status")["credits"] > 0)
        again, _ = Stream(self.cluster, prompt, max_tokens=stream.body["max_tokens"]).end()
        assert text == again and finish, (text, again, finish)
        self.checked += 1

    def run(self, rounds):
        for _ in range(rounds):
            self.cluster.whole()
            self.round()
        self.cluster.whole()
        at_rest(self.cluster)
        return self
