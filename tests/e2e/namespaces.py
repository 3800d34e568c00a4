"""Hosts of a network of their own, each a network namespace with one address, all joined by a router namespace that can
drop what any two say to each other. Packets vanish without a word, as when a switch dies. Needs root."""

import os
import subprocess

import pytest


class Network:
    """Addresses 10.77.N.2; the test itself is in the network too."""

    def __init__(self, names):
        self.tag = f"hd{os.getpid() % 100000}"
        self.address = {n: f"10.77.{i + 1}.2" for i, n in enumerate(names)}
        self.cuts, self.made = set(), []
        try:
            self._make("sw")
            for i, n in enumerate(names):
                self._make(n)
                self._join(i + 1, n)
            self._join(200, None)
            self._in("sw", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        except (OSError, subprocess.CalledProcessError) as e:
            self.end()
            why = getattr(e, "stderr", b"") or str(e).encode()
            pytest.skip(f"no network namespaces here: {why.decode().strip()}")

    def _run(self, *words):
        return subprocess.run(words, check=True, capture_output=True, timeout=20)

    def _ns(self, name):
        return f"{self.tag}-{name}"

    def _in(self, name, *words):
        return self._run("ip", "netns", "exec", self._ns(name), *words)

    def _make(self, name):
        self._run("ip", "netns", "add", self._ns(name))
        self.made.append(name)
        self._in(name, "ip", "link", "set", "lo", "up")

    def _join(self, i, name):
        """A cable from the host to the router; None: from where the test runs."""
        here, there = f"{self.tag}v{i}", f"{self.tag}w{i}"
        self._run("ip", "link", "add", here, "type", "veth", "peer", "name", there)
        self._run("ip", "link", "set", there, "netns", self._ns("sw"))
        self._in("sw", "ip", "addr", "add", f"10.77.{i}.1/24", "dev", there)
        self._in("sw", "ip", "link", "set", there, "up")
        run = self._run if name is None else lambda *words: self._in(name, *words)
        if name is not None:
            self._run("ip", "link", "set", here, "netns", self._ns(name))
        run("ip", "addr", "add", f"10.77.{i}.2/24", "dev", here)
        run("ip", "link", "set", here, "up")
        run("ip", "route", "add", "10.77.0.0/16", "via", f"10.77.{i}.1")

    def words(self, name):
        """Before a command: it runs on that host."""
        return ["ip", "netns", "exec", self._ns(name)]

    def _rules(self, verb, a, b):
        for x, y in ((a, b), (b, a)):
            self._in("sw", "ip", "rule", verb, "from", self.address[x], "to", self.address[y], "pref", "100", "blackhole")

    def cut(self, a, b):
        self.cuts.add((a, b))
        self._rules("add", a, b)

    def heal(self):
        while self.cuts:
            self._rules("del", *self.cuts.pop())

    def end(self):
        for name in reversed(self.made):
            subprocess.run(["ip", "netns", "del", self._ns(name)], capture_output=True, timeout=20)
        self.made = []
