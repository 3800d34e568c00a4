"""Every process of a cluster is ended in order and started again, one after the other, under 16 streams: no stream is
lost or changed, and new requests are taken all the time."""

import json
import signal
import threading
import time

from cluster import QUICK, wait_for
from test_coordinators import MOCK, Pair, Stream, body_of, judge, pair, post  # noqa: F401

STREAMS = 16


def run(streams, during=lambda: None):
    threads = [threading.Thread(target=s.run) for s in streams]
    for t in threads:
        t.start()
    during()
    for t in threads:
        t.join(150)


def whole(p):
    return p.ready() is not None and p.copying()


def restart(p, name):
    """As an operator would: SIGTERM, wait, start, wait until the cluster is whole again."""
    process = p.processes[name]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0, name
    if name in p.names:
        p.begin(name)
    else:
        p.start_node(name)
    wait_for(f"all is well again after {name}", lambda: whole(p), 40)


def test_rolling_restart(pair, tmp_path):  # noqa: F811
    p = pair(f"file:{tmp_path}/lock", *MOCK, names="abc", nodes=2)
    tokens, refused, stop = 450 if QUICK else 700, [], threading.Event()
    want = [Stream(p, body_of(i, tokens), p.names[i % 3]) for i in range(STREAMS)]
    run(want)

    def newcomers():
        """One short request after the other, at whichever coordinator answers."""
        i = 0
        while not stop.is_set():
            i += 1
            try:
                status, _, body = post(p, p.names[i % 3], "/v1/chat/completions", body_of(i, 5))
                if status != 200:
                    refused.append((status, json.dumps(body)))
            except OSError:
                pass  # that one is being restarted
            time.sleep(0.05)

    def during():
        other = threading.Thread(target=newcomers)
        other.start()
        try:
            for name in [n for n in p.processes]:
                restart(p, name)
        finally:
            stop.set()
            other.join(60)

    got = [Stream(p, body_of(i, tokens), p.names[i % 3]) for i in range(STREAMS)]
    run(got, during)
    judge(want, got, "rolling restart of 3 coordinators and 2 nodes")
    assert not refused, refused[:3]
