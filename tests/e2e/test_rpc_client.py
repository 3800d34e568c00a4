"""libhadal, through its shared library, against a real cluster: the same answer as over HTTP."""

import ctypes
import os
import socket
import struct
from pathlib import Path

import pytest
from cluster import HADAL, wait_for

LIBRARY = Path(os.environ.get("LIBHADAL") or Path(HADAL).parent / "client" / "libhadal.so")


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("reason", ctypes.c_char * 64), ("text", ctypes.c_char * 512),
                ("retry_after_ms", ctypes.c_uint32)]


class Message(ctypes.Structure):
    _fields_ = [("role", ctypes.c_char_p), ("content", ctypes.c_char_p), ("content_n", ctypes.c_size_t)]


class Request(ctypes.Structure):
    _fields_ = [("model", ctypes.c_char_p), ("messages", ctypes.POINTER(Message)), ("messages_n", ctypes.c_size_t),
                ("text", ctypes.c_char_p), ("text_n", ctypes.c_size_t), ("ids", ctypes.c_void_p),
                ("ids_n", ctypes.c_size_t), ("max_tokens", ctypes.c_uint32), ("stop", ctypes.c_void_p),
                ("stop_n", ctypes.c_size_t), ("has_seed", ctypes.c_bool), ("seed", ctypes.c_uint64),
                ("temperature", ctypes.c_float), ("top_p", ctypes.c_float), ("min_p", ctypes.c_float),
                ("repetition_penalty", ctypes.c_float), ("presence_penalty", ctypes.c_float),
                ("frequency_penalty", ctypes.c_float), ("top_k", ctypes.c_int32), ("logprobs", ctypes.c_bool),
                ("top_logprobs", ctypes.c_uint32), ("priority", ctypes.c_uint8), ("session", ctypes.c_char_p),
                ("deadline_ms", ctypes.c_uint32), ("user", ctypes.c_char_p), ("key", ctypes.c_char_p)]


class Event(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("request", ctypes.c_uint64), ("position", ctypes.c_uint32),
                ("eta_ms", ctypes.c_uint32), ("first", ctypes.c_uint32), ("tokens", ctypes.c_void_p),
                ("tokens_n", ctypes.c_size_t), ("text", ctypes.POINTER(ctypes.c_char)), ("text_n", ctypes.c_size_t),
                ("thoughts", ctypes.POINTER(ctypes.c_char)), ("thoughts_n", ctypes.c_size_t),
                ("finish", ctypes.c_char_p), ("prompt_tokens", ctypes.c_uint32),
                ("completion_tokens", ctypes.c_uint32), ("cached_tokens", ctypes.c_uint32),
                ("reasoning_tokens", ctypes.c_uint32)]


OK, TIMEOUT, END, FAILED = range(4)
ACCEPTED, QUEUED, TOKENS, DONE = range(4)


@pytest.fixture(scope="module")
def lib():
    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY} is not built")
    lib = ctypes.CDLL(str(LIBRARY))
    for name in ("hadal_open", "hadal_generate", "hadal_attach"):
        getattr(lib, name).restype = ctypes.c_void_p
    return lib


def rpc_port(cluster):
    words = Path(f"/proc/{cluster.coordinator_pid()}/cmdline").read_bytes().split(b"\0")
    return int(words[words.index(b"--rpc") + 1].rsplit(b":", 1)[1])


def request(prompt, max_tokens=260):
    content = prompt.encode()
    q = Request(temperature=0, top_p=-1, min_p=-1, repetition_penalty=-1, presence_penalty=float("nan"),
                frequency_penalty=float("nan"), top_k=-1, priority=5, max_tokens=max_tokens, messages_n=1)
    q.kept = (Message * 1)(Message(b"user", content, len(content)))
    q.messages = q.kept
    return q


def read(lib, stream, limit=None):
    """(thoughts, text, tokens, request, finish), of at most `limit` tokens"""
    ev, err = Event(), Error()
    thoughts, text, tokens, found, finish = b"", b"", 0, 0, None
    while limit is None or tokens < limit:
        r = lib.hadal_next(ctypes.c_void_p(stream), 30000, ctypes.byref(ev), ctypes.byref(err))
        if r == END:
            break
        assert r == OK, (r, err.code, err.reason, err.text)
        thoughts += ev.thoughts[:ev.thoughts_n]
        text += ev.text[:ev.text_n]
        if ev.kind == TOKENS:
            assert ev.first == tokens
            tokens += ev.tokens_n
        found = ev.request
        finish = ev.finish.decode() if ev.kind == DONE else None
    return thoughts.decode(), text.decode(), tokens, found, finish


def opened(lib, cluster):
    err = Error()
    c = lib.hadal_open(f"hadal://127.0.0.1:{rpc_port(cluster)}".encode(), None, ctypes.byref(err))
    assert c, err.text
    return ctypes.c_void_p(c)


def test_same_as_http(lib, sample22):
    prompt = "How many r are in strawberry?"
    want = sample22.ask(prompt)
    c, err, q = opened(lib, sample22), Error(), request(prompt)
    stream = lib.hadal_generate(c, ctypes.byref(q), ctypes.byref(err))
    assert stream, err.text
    thoughts, text, tokens, _, finish = read(lib, stream)
    assert (thoughts, text, finish, tokens) == want
    lib.hadal_close(c)


def test_attach_from_another_connection(lib, mock22):
    q, err = request("go on", 60), Error()
    first, second = opened(lib, mock22), opened(lib, mock22)
    _, _, begun, found, _ = read(lib, lib.hadal_generate(first, ctypes.byref(q), ctypes.byref(err)), 10)
    lib.hadal_close(first)
    stream = lib.hadal_attach(second, ctypes.c_uint64(found), begun, ctypes.byref(err))
    ev, tokens = Event(), begun
    while (r := lib.hadal_next(ctypes.c_void_p(stream), 30000, ctypes.byref(ev), ctypes.byref(err))) == OK:
        if ev.kind == TOKENS:
            assert ev.first == tokens
            tokens += ev.tokens_n
    assert r == END and tokens == 60
    lib.hadal_close(second)


def test_refusals(lib, mock22):
    c, err, ev = opened(lib, mock22), Error(), Event()
    for q, code in ((request("word " * 30000), 3), (request("x", 1 << 20), 3)):
        stream = lib.hadal_generate(c, ctypes.byref(q), ctypes.byref(err))
        assert stream, err.text
        assert lib.hadal_next(ctypes.c_void_p(stream), 30000, ctypes.byref(ev), ctypes.byref(err)) == FAILED
        assert err.code == code and err.reason == b"context_length_exceeded", (err.code, err.reason, err.text)
    stream = lib.hadal_attach(c, ctypes.c_uint64(12345), 0, ctypes.byref(err))
    assert lib.hadal_next(ctypes.c_void_p(stream), 30000, ctypes.byref(ev), ctypes.byref(err)) == FAILED
    assert err.code == 5
    lib.hadal_close(c)


FRAMES = [b"GET / HTTP/1.1\r\n\r\n", b"HD\x02\x40\0\0\0\0\0\0\0\0", b"HD\x01\x40\xff\xff\xff\x7f\0\0\0\0",
          b"HD\x01\x40" + struct.pack("<II", 3, 1) + b"\xff\xff\xff", b"HD\x01\x60\0\0\0\0\0\0\0\0",
          b"HD\x01\x07" + struct.pack("<II", 0, 0), b"HD\x01\x05" + struct.pack("<II", 0, 0)]


@pytest.mark.parametrize("frame", FRAMES)
def test_bad_frames(mock22, frame):
    """The connection is told, or closed; others go on."""
    with socket.create_connection(("127.0.0.1", rpc_port(mock22)), timeout=10) as s:
        s.sendall(frame)
        got = s.recv(4096)
        assert got == b"" or got[:4] == b"HD\x01\x64", got  # ERROR
    assert mock22.ask("hi", max_tokens=2)[3] == 2
    assert mock22.json("/hadal/v1/status")["replicas_ready"] == 2


def test_closing_a_stream_cancels(lib, mock22):
    c, err, q = opened(lib, mock22), Error(), request("go on for long", 2000)
    stream = lib.hadal_generate(c, ctypes.byref(q), ctypes.byref(err))
    found = f"{read(lib, stream, 10)[3]:016x}"
    lib.hadal_stream_close(ctypes.c_void_p(stream))
    wait_for("it to be cancelled", lambda: any(r["id"] == found and r.get("finish") == "cancelled"
                                               for r in mock22.list("requests")), 5)
    lib.hadal_close(c)
