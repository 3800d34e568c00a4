"""KV cache that moves between replicas: prompts computed by one and streamed by another, drains that take the
context along, and all of it while clients leave and workers die. The tokens are those of one replica alone."""

import pytest
from cluster import Cluster
from kv_streams import Chaos, Stream, at_rest, ended, long_prompt, metrics

PROMPTS = [long_prompt(n, n) for n in (520, 900)]
SIZES = {"kv_tokens": 16384, "max_seqs": 8, "threads": 1}


def answers(cluster):
    return [Stream(cluster, p, max_tokens=24).end() for p in PROMPTS]


@pytest.fixture(scope="module")
def together():
    """What one replica answers."""
    cluster = Cluster(replicas=1, **SIZES)
    yield answers(cluster)
    assert cluster.stop() == 0, cluster.log_tail()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_same_tokens_apart(start, together, transport):
    c = start(prefill=1, decode=1, transport=transport, **SIZES)
    c.whole()
    assert answers(c) == together
    m = metrics(c)
    assert m["hadal_prompts_apart_total"] == len(PROMPTS), m
    assert ended(c, "moved") == len(PROMPTS) and m["hadal_kv_bytes_total"] > 0, c.log_tail()
    at_rest(c)
    # The roles change while it runs: it is the target now that computes.
    c.tool("ctl", "role", "1", "decode")
    c.tool("ctl", "role", "2", "prefill")
    other = long_prompt(700, 7)
    assert Stream(c, other, max_tokens=24).end() == Stream(c, other, max_tokens=24).end()
    assert ended(c, "moved") >= len(PROMPTS) + 1
    at_rest(c)
    assert c.stop() == 0, c.log_tail()


def test_other_layouts(start, together):
    """Two stages hand over to two stages, every rank its part."""
    c = start(prefill=1, decode=1, stages=2, **SIZES)
    c.whole()
    assert answers(c) == together
    assert ended(c, "moved") == len(PROMPTS), c.log_tail()
    at_rest(c)


def test_drain_takes_the_context_along(start):
    c = start(replicas=2, **SIZES)
    c.whole()
    prompt = long_prompt(1200, 1)
    alone = Stream(c, prompt, max_tokens=120).end()
    stream = Stream(c, prompt, max_tokens=120)
    stream.has(10)
    node = next(n for n in c.list("nodes") if n["running"])["name"]
    c.tool("ctl", "drain", node)
    assert stream.end() == alone
    assert ended(c, "moved") == 1, c.log_tail()
    assert metrics(c)["hadal_handed_over_plain_total"] == 0
    c.tool("ctl", "undrain", node)
    c.whole()
    at_rest(c)


def test_aborts_and_kills(start, tmp_path):
    """A short one of tools/bench/kv.sh."""
    config = tmp_path / "c.yaml"
    config.write_text("grace_ms: 0\nlong_prompt_tokens: 256\n")
    c = start(prefill=1, decode=2, config=config, **SIZES)
    chaos = Chaos(c, seed=1, kills=0.4, tokens=(300, 600)).run(6)
    assert sum(chaos.done.values()) == 6, chaos.done
