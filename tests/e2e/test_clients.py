"""Clients that nobody here wrote: curl, and OpenAI's official SDK for JavaScript."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SDK = "openai@4"
HERE = Path(__file__).parent


def run(words, limit_s=60, **kw):
    return subprocess.run(words, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL, **kw)


def curl(cluster, path, body=None, *more):
    words = ["curl", "-sS", "--noproxy", "*", "--max-time", "30", *more, cluster.url + path]
    if body is not None:
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    r = run(words)
    assert r.returncode == 0, r.stderr
    return r.stdout


def test_curl_whole_answer(sample22):
    reply = json.loads(curl(sample22, "/v1/chat/completions", sample22.chat_body("What is 26 + 2?")))
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"]["content"].strip() == "26 + 2 = 28"


def test_curl_stream(sample22):
    lines = curl(sample22, "/v1/chat/completions", sample22.chat_body("What is 26 + 2?", stream=True), "-N").splitlines()
    data = [l[6:] for l in lines if l.startswith("data: ")]
    assert data[-1] == "[DONE]"
    text = "".join(json.loads(d)["choices"][0]["delta"].get("content") or "" for d in data[:-1])
    assert text.strip() == "26 + 2 = 28"


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2-prior-knowledge"])
def test_curl_http_versions(sample22, version):
    assert json.loads(curl(sample22, "/v1/models", None, version))["data"][0]["id"]


def test_curl_errors(sample22):
    reply = json.loads(curl(sample22, "/v1/chat/completions", {"model": "x"}))
    assert set(reply["error"]) == {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def sdk():
    """Folder with the SDK installed; the tests are skipped when the registry cannot be reached."""
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("node and npm are not installed: OpenAI's SDK is not tried")
    folder = tempfile.mkdtemp(prefix="hadal-sdk-")
    try:
        r = run(["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "--ignore-scripts", SDK], 90)
    except subprocess.TimeoutExpired:
        r = None
    if r is None or r.returncode:
        shutil.rmtree(folder)
        pytest.skip(f"npm install {SDK} failed: OpenAI's SDK is not tried: {(r.stderr if r else 'timeout')[-200:]}")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("case", ["models", "chat", "stream", "completion", "stop_and_logprobs", "abort", "bad_request",
                                  "not_found"])
def test_openai_sdk(sdk, sample22, case):
    script = Path(sdk) / "sdk_cases.mjs"
    shutil.copy(HERE / "sdk_cases.mjs", script)
    r = run(["node", str(script), case, sample22.url + "/v1", sample22.model()], 60,
            env={k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")})
    assert r.returncode == 0 and r.stdout.strip() == "ok", f"{r.stdout}\n{r.stderr}"
