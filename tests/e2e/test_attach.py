"""A client loses its connection and comes back with Last-Event-ID: every token once."""

import json
import time
import urllib.error

import pytest
from cluster import assert_nothing_lost


def events(stream, limit=None):
    """(id, data) of a text/event-stream, at most `limit` of them."""
    found, fields = [], {}
    for raw in stream:
        line = raw.decode().rstrip("\r\n")
        if line and not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif not line and "data" in fields:
            found.append((int(fields["id"]), fields["data"]))
            fields = {}
            if limit and len(found) >= limit:
                break
    return found


def text_of(found):
    text = ""
    for _, data in found:
        for choice in (json.loads(data)["choices"] if data != "[DONE]" else []):
            text += (choice["delta"].get("reasoning_content") or "") + (choice["delta"].get("content") or "")
    return text


def begin(cluster, limit, **options):
    """The first `limit` events of a new stream, then the connection is closed."""
    body = cluster.chat_body("What is 4827 + 391?", stream=True, stream_options={"include_usage": True}, **options)
    with cluster.open("/v1/chat/completions", body) as reply:
        found = events(reply, limit)
    return json.loads(found[0][1])["id"], found


def attach(cluster, stream, last, limit=None):
    with cluster.open(f"/v1/streams/{stream}", headers={"Last-Event-ID": str(last)}) as reply:
        return events(reply, limit)


@pytest.mark.parametrize("fixture", ["mock22", "sample22"])
def test_each_token_once(fixture, request):
    cluster = request.getfixturevalue(fixture)
    _, whole = begin(cluster, None, max_tokens=60)
    ids = [i for i, _ in whole]
    assert ids == sorted(set(ids)) and whole[-1][1] == "[DONE]"
    stream, found = begin(cluster, 10, max_tokens=60)
    while found[-1][1] != "[DONE]":
        more = attach(cluster, stream, found[-1][0], 7)
        assert more and more[0][0] > found[-1][0]
        found += more
    assert [i for i, _ in found] == sorted({i for i, _ in found})
    assert text_of(found) == text_of(whole)
    assert found[-1][0] == whole[-1][0]


def test_from_the_beginning_after_the_end(mock22):
    stream, whole = begin(mock22, None, max_tokens=20)
    with mock22.open(f"/v1/streams/{stream}") as reply:
        again = events(reply)
    assert text_of(again) == text_of(whole) and again[-1] == whole[-1]
    assert attach(mock22, stream, whole[-2][0]) == whole[-1:]


def test_generation_goes_on_while_nobody_reads(mock22):
    stream, found = begin(mock22, 3, max_tokens=200)
    time.sleep(2)
    start = time.monotonic()
    rest = attach(mock22, stream, found[-1][0])
    assert rest[-1][1] == "[DONE]"
    assert time.monotonic() - start < 0.3, "200 tokens of 6 ms had two seconds to be made"


def test_unknown_streams(mock22):
    for name in ("chatcmpl-ffffffffffffffff", "nonsense", "..%2f..%2fetc", "0"):
        with pytest.raises(urllib.error.HTTPError) as e:
            attach(mock22, name, 0)
        assert e.value.code in (400, 404)
        assert json.load(e.value)["error"]["message"]


def test_many_streams_lose_their_connections(sample22):
    report = sample22.load("--concurrency", "16", "--requests", "0", "--duration", "4", "--attach", "--fault",
                           "every 200ms drop random", "--fault", "at 1s drop all")
    assert_nothing_lost(report, sample22)
    assert report["streams"]["attached"] >= 10


def test_connections_and_a_worker_are_lost_together(mock22):
    mock22.whole()
    report = mock22.load("--concurrency", "16", "--requests", "0", "--duration", "2.5", "--max-tokens", "150",
                         "--attach", "--fault", "at 0.6s drop all", "--fault", "at 0.6s kill busy")
    assert_nothing_lost(report, mock22)
    mock22.whole()
