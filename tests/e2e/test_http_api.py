"""The HTTP API beyond the answers themselves: routes, errors of HTTP's own kind, pages, commands."""

import http.client
import json
import re
import socket
from urllib.parse import urlparse

import pytest


def connect(cluster):
    at = urlparse(cluster.url)
    return http.client.HTTPConnection(at.hostname, at.port, timeout=30)


def call(cluster, method, path, body=None, headers=None):
    """(status, headers, body as text)"""
    c = connect(cluster)
    try:
        c.request(method, path, body=body, headers=headers or {})
        r = c.getresponse()
        return r.status, r.headers, r.read().decode()
    finally:
        c.close()


def chat(cluster, **fields):
    return json.dumps({"model": cluster.model(), "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4,
                       **fields})


ROUTES = [
    ("GET", "/", 404, "unknown_url"),
    ("GET", "/v1", 404, "unknown_url"),
    ("GET", "/v1/chat", 404, "unknown_url"),
    ("POST", "/v1/embeddings", 404, "unknown_url"),
    ("GET", "/a/b/c/d/e/f/g", 404, "unknown_url"),
    ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
    ("PUT", "/v1/completions", 405, "method_not_allowed"),
    ("POST", "/v1/models", 405, "method_not_allowed"),
    ("POST", "/metrics", 405, "method_not_allowed"),
    ("GET", "/v1/models/gpt-4", 404, "model_not_found"),
    ("GET", "/v1/streams/xyz", 404, "not_found"),
    ("GET", "/v1/streams/chatcmpl-00000000000000ff", 404, "not_found"),
    ("POST", "/v1/streams/chatcmpl-00000000000000ff", 405, "method_not_allowed"),
    ("GET", "/v1/streams/ff?from=x", 400, "invalid_value"),
    ("GET", "/hadal/v1/nothing", 404, "unknown_url"),
    ("POST", "/hadal/v1/status", 405, "method_not_allowed"),
    ("POST", "/hadal/v1/nodes/1/explode", 404, "unknown_url"),
    ("GET", "/hadal/v1/nodes/1/drain", 405, "method_not_allowed"),
    ("POST", "/hadal/v1/nodes/nobody/drain", 404, "NOT_FOUND"),
    ("POST", "/hadal/v1/nodes/1/drain?timeout_ms=x", 400, "invalid_value"),
    ("POST", "/hadal/v1/replicas/99/failover", 404, "NOT_FOUND"),
    ("POST", "/hadal/v1/replicas/x/failover", 404, "NOT_FOUND"),
]


@pytest.mark.parametrize("method,path,status,code", ROUTES)
def test_routes(mock22, method, path, status, code):
    got, headers, body = call(mock22, method, path)
    assert got == status, body
    error = json.loads(body)["error"]
    assert error["code"] == code and error["message"] and error["type"] == "invalid_request_error"
    assert headers["content-type"] == "application/json"


def bad(cluster, body, path="/v1/chat/completions"):
    status, _, text = call(cluster, "POST", path, body)
    return status, json.loads(text)["error"]


def test_bad_bodies(mock22):
    assert bad(mock22, "{")[0] == 400
    assert bad(mock22, "")[1]["code"] == "invalid_json"
    assert bad(mock22, chat(mock22, temperature="hot"))[1]["param"] == "temperature"
    status, error = bad(mock22, chat(mock22, model="gpt-4"))
    assert status == 404 and error["code"] == "model_not_found"
    status, error = bad(mock22, b'{"model":"sample","messages":[{"role":"user","content":"\xff"}]}')
    assert status == 400 and error["code"] == "invalid_json"


def test_beyond_the_context(mock22):
    status, error = bad(mock22, chat(mock22, messages=[{"role": "user", "content": "word " * 30000}]))
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    status, error = bad(mock22, chat(mock22, max_tokens=1000000))
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "max_tokens")
    status, error = bad(mock22, chat(mock22, max_tokens=10 ** 12))
    assert (status, error["code"], error["param"]) == (400, "integer_above_max_value", "max_tokens")


def test_large_bodies(mock22):
    status, _, body = call(mock22, "POST", "/v1/chat/completions", b" " * (9 << 20))
    assert status == 413 and json.loads(body)["error"]["code"] == "body_too_large"
    at = urlparse(mock22.url)  # far too large: refused before it is sent
    with socket.create_connection((at.hostname, at.port), timeout=10) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("raw", [b"\0\1\2\3\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                                 b"GET /\r\nX" + b"y" * 300000 + b"\r\n\r\n",
                                 b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                                 b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
                         ids=["binary", "no-path", "http9", "long-header", "negative-length", "bad-chunk"])
def test_no_http(mock22, raw):
    at = urlparse(mock22.url)
    with socket.create_connection((at.hostname, at.port), timeout=10) as s:
        try:
            s.sendall(raw)
            s.shutdown(socket.SHUT_WR)
            while s.recv(4096):
                pass
        except TimeoutError:
            raise
        except OSError:
            pass  # it was closed in the middle
    assert call(mock22, "GET", "/healthz")[0] == 200


def test_pages(mock22):
    assert json.loads(call(mock22, "GET", "/healthz")[2]) == {"ok": True}
    assert json.loads(call(mock22, "GET", "/readyz")[2])["ready"] is True
    one = json.loads(call(mock22, "GET", "/v1/models/sample")[2])
    assert one == json.loads(call(mock22, "GET", "/v1/models")[2])["data"][0]
    assert one["object"] == "model" and one["owned_by"] == "hadal"
    status = mock22.json("/hadal/v1/status")
    assert status["ready"] and status["replicas_ready"] == 2 and status["rss_bytes"] > 1 << 20
    assert [len(r["nodes"]) for r in mock22.list("replicas")] == [2, 2]


def test_metrics(mock22):
    call(mock22, "POST", "/v1/chat/completions", chat(mock22))
    status, headers, text = call(mock22, "GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.match(r"# (HELP|TYPE) hadal_[a-z_]+ \S", line), line
        else:
            name, value = line.rsplit(" ", 1)
            assert re.match(r'^hadal_[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})?$', name), line
            assert name not in values, line
            values[name] = float(value)
    assert values['hadal_replicas{state="ready"}'] == 2
    assert values["hadal_tokens_total"] >= 1
    assert values['hadal_http_responses_total{code="200"}'] >= 1
    assert values['hadal_ttft_seconds_bucket{le="+Inf"}'] == values["hadal_ttft_seconds_count"] >= 1
    assert values["hadal_resident_bytes"] > 1 << 20


def test_answer_headers(mock22):
    status, headers, body = call(mock22, "POST", "/v1/chat/completions", chat(mock22))
    answer = json.loads(body)
    assert status == 200 and answer["id"] == "chatcmpl-" + headers["x-request-id"]
    assert answer["usage"]["completion_tokens"] <= 4
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_seed_and_defaults(sample22):
    """The same seed gives the same answer; the model's own defaults sample."""
    def text(**fields):
        return json.loads(call(sample22, "POST", "/v1/chat/completions",
                               chat(sample22, max_tokens=24, **fields))[2])["choices"][0]["message"]
    assert text(seed=7, temperature=1.5) == text(seed=7, temperature=1.5)
    assert len({json.dumps(text(seed=i, temperature=2, top_p=1)) for i in range(4)}) > 1


def test_logprobs_both_shapes(sample22):
    body = chat(sample22, logprobs=True, top_logprobs=2, temperature=0)
    found = json.loads(call(sample22, "POST", "/v1/chat/completions", body)[2])["choices"][0]["logprobs"]["content"]
    assert len(found) == 4
    for token in found:
        assert token["logprob"] <= 0 and len(token["top_logprobs"]) == 2
        assert token["top_logprobs"][0]["token"] == token["token"]
        assert bytes(token["bytes"]).decode() == token["token"]
    body = json.dumps({"model": "sample", "prompt": "one two", "max_tokens": 3, "logprobs": 2, "temperature": 0})
    choice = json.loads(call(sample22, "POST", "/v1/completions", body)[2])["choices"][0]
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == 3
    assert "".join(found["tokens"]) == choice["text"] and all(len(t) == 2 for t in found["top_logprobs"])


def test_stop_strings(sample22):
    whole = sample22.ask("How many r are in strawberry?")[1]
    cut = whole.index(" ", len(whole) // 2)
    stop = whole[cut - 3:cut + 3]
    _, content, finish, tokens = sample22.ask("How many r are in strawberry?", stop=["never to be seen", stop])
    assert (content, finish) == (whole[:whole.index(stop)], "stop")
    assert tokens < sample22.ask("How many r are in strawberry?")[3]
