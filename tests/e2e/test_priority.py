"""Bands, tenants and quotas of real processes: who is let in, who gives way, what refusals say."""

import http.client
import json
import threading
import time
from pathlib import Path

import pytest
from cluster import wait_for
from test_http_waiting import Lonely, lonely  # noqa: F401


def post(c, body, **headers):
    host, port = c.url.removeprefix("http://").split(":")
    k = http.client.HTTPConnection(host, int(port), timeout=60)
    k.request("POST", "/v1/chat/completions", json.dumps(body), {n.replace("_", "-"): str(v) for n, v in headers.items()})
    r = k.getresponse()
    return r.status, r.headers, json.load(r)


def test_keys_and_quota(lonely):
    c = lonely(require_key="true",
               tenants='[{name: gold, keys: ["sk-g"]}, {name: tin, tokens_per_s: 10, burst_tokens: 5, keys: [sk-t]}]')
    node = c.with_node()
    try:
        body = c.chat_body("hi", max_tokens=50)
        status, headers, reply = post(c, body)
        assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
        assert headers["x-hadal-reason"] == "invalid_api_key"
        assert post(c, body, Authorization="Bearer sk-x")[0] == 401
        assert post(c, body, Authorization="Bearer sk-g")[0] == 200
        assert post(c, body, Authorization="Bearer sk-t")[0] == 200  # it is in debt now
        status, headers, reply = post(c, body, Authorization="Bearer sk-t")
        assert (status, reply["error"]["code"], headers["x-hadal-reason"]) == (429, "quota", "quota")
        assert int(headers["retry-after"]) >= 3
        assert post(c, body, Authorization="Bearer sk-g")[0] == 200
        metrics = c.open("/metrics").read().decode()
        assert 'hadal_tenant_quota_refused_total{tenant="tin"} 1\n' in metrics
        assert 'hadal_requests_refused_total{reason="quota"} 1\n' in metrics
    finally:
        node.kill()
        node.wait()
    assert c.stop() == 0


def test_preemption(lonely):
    """A full replica: one of band 9 starts at once, and what gave way ends with the same answer."""
    c = lonely(tenant_from="header", ageing_ms=500)
    node = c.with_node(step_us=20000)
    try:
        credits = c.list("replicas")[0]["credits"]
        body = c.chat_body("tell me a long story", max_tokens=150)
        answers = {}

        def ask(i):
            answers[i] = post(c, {**body, "priority": 0}, x_hadal_tenant=f"t{i % 3}")

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(credits + 2)]
        for t in threads:
            t.start()
        wait_for("a full replica", lambda: c.json("/hadal/v1/status")["queued"] == 2)
        time.sleep(0.5)
        before = time.monotonic()
        status, _, _ = post(c, {**body, "max_tokens": 1}, x_hadal_priority=9)
        assert status == 200 and time.monotonic() - before < 1.0
        assert "hadal_preemptions_total 1\n" in c.open("/metrics").read().decode()
        for t in threads:
            t.join(60)
        assert {s for s, _, _ in answers.values()} == {200}
        texts = {r["choices"][0]["message"]["content"] for _, _, r in answers.values()}
        assert len(texts) == 1
    finally:
        node.kill()
        node.wait()
    assert c.stop() == 0


def test_headers_are_checked(lonely):
    c = lonely()
    for name, value in (("x_hadal_priority", "10"), ("x_hadal_priority", "x"), ("x_hadal_deadline_ms", "-1")):
        status, _, reply = post(c, c.chat_body("hi"), **{name: value})
        assert status == 400 and reply["error"]["param"] == name.replace("_", "-"), reply
    before = time.monotonic()
    status, headers, _ = post(c, c.chat_body("hi"), x_hadal_deadline_ms=300)
    assert status in (429, 503) and headers["x-hadal-reason"] in ("deadline", "no_capacity")
    assert time.monotonic() - before < 3
    assert c.stop() == 0


def test_breaker(lonely):
    c = lonely(breakers="[{metric: replicas_ready, below: 1, for_ms: 0, action: stop_admission}]")
    wait_for("the breaker", lambda: 'action="stop_admission"} 1' in c.open("/metrics").read().decode(), 5)
    status, headers, reply = post(c, c.chat_body("hi"))
    assert (status, reply["error"]["code"], headers["x-hadal-reason"]) == (503, "breaker", "breaker")
    assert "replicas_ready < 1" in reply["error"]["message"] and int(headers["retry-after"]) >= 1
    node = c.with_node()
    try:
        wait_for("it to close", lambda: post(c, c.chat_body("hi", max_tokens=2))[0] == 200, 5)
    finally:
        node.kill()
        node.wait()
    assert c.stop() == 0


@pytest.mark.parametrize("text,words", [
    ("breakers: [{metric: mood, above: 1, for_ms: 1, action: stop_admission}]\n", ["breakers[0]", "mood"]),
    ("breakers: [{metric: step_ms, for_ms: 1, action: stop_admission}]\n", ["above", "below"]),
    ("breakers: [{metric: step_ms, above: 1, for_ms: 1, action: cap_max_tokens}]\n", ["value"]),
    ("tenants: [{name: a}, {name: a}]\n", ["tenants", "twice"]),
    ("tenants: [{name: a, weight: 0}]\n", ["weight"]),
    ("tenants: [{name: a, keys: [k]}, {name: b, keys: [k]}]\n", ["keys", "twice"]),
    ("tenants: [{name: \"a b\"}]\n", ["name"]), ("tenants: [{weight: 1}]\n", ["name"]),
    ("tenant_from: moon\n", ["tenant_from"]), ("bands: [{band: 10, deadline_ms: 1}]\n", ["bands"]),
    ("ageing_band: 10\n", ["ageing_band"])])
def test_bad_tenants(tmp_path, text, words):
    from test_http_waiting import test_bad_configuration
    test_bad_configuration(tmp_path, text, words)
    assert Path(tmp_path / "c.yaml").exists()
