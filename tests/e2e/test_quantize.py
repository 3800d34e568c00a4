"""`hadal quantize` as it is used: the sample model in fp8 and int8 answers as well as it did."""

import json
import os
import subprocess

import pytest
from cluster import HADAL, QUICK, SAMPLE

CASES_OF_A_TASK = 3 if QUICK else 12
TEXTS = 2 if QUICK else 10


def hadal(*args):
    return subprocess.run([HADAL, *map(str, args)], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Some of each task, so that a run takes seconds."""
    whole = json.loads(open(f"{SAMPLE}/eval.json", encoding="utf-8").read())
    taken, cases = {}, []
    for case in whole["cases"]:
        taken[case["task"]] = taken.get(case["task"], 0) + 1
        if taken[case["task"]] <= CASES_OF_A_TASK:
            cases.append(case)
    path = tmp_path_factory.mktemp("suite") / "suite.json"
    path.write_text(json.dumps({**whole, "cases": cases, "heldout_text": whole["heldout_text"][:TEXTS]}))
    return path


def evaluate(model, suite):
    run = hadal("eval", "--model", model, "--suite", suite, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def plain(suite):
    return evaluate(SAMPLE, suite)


@pytest.mark.parametrize("to", ["fp8", "int8"])
def test_answers_stay(tmp_path, suite, plain, to):
    out = tmp_path / to
    run = hadal("quantize", "--model", SAMPLE, "--to", to, "--out", out)
    assert run.returncode == 0 and run.stdout == run.stderr == "", run.stderr  # no bar without a terminal
    assert (out / "tokenizer.json").read_bytes() == open(f"{SAMPLE}/tokenizer.json", "rb").read()
    got = evaluate(out, suite)
    assert abs(got["perplexity"] / plain["perplexity"] - 1) < 0.01
    mean = lambda r: sum(r["tasks"].values()) / len(r["tasks"])
    assert abs(mean(got) - mean(plain)) <= 0.01
    assert [p.name for p in tmp_path.iterdir()] == [to]


def test_wrong_uses(tmp_path):
    (tmp_path / "there").mkdir()
    for args, code, said in [
        (["--to", "fp8"], 2, "--out"),
        (["--model", SAMPLE, "--to", "int3", "--out", tmp_path / "x"], 2, "int3"),
        (["--model", SAMPLE, "--to", "fp8", "--out", tmp_path / "there"], 1, "is there already"),
        (["--model", tmp_path, "--to", "fp8", "--out", tmp_path / "x"], 1, "config.json"),
        (["--model", SAMPLE, "--to", "fp8", "--out", tmp_path / "no" / "x"], 1, "No such file"),
    ]:
        run = hadal("quantize", *args)
        assert run.returncode == code and said in run.stderr, (args, run)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_logits_of_another_precision(tmp_path):
    """`hadal logits --quant` computes with what `hadal quantize` writes, and leaves nothing behind."""
    ids, out, temporary = tmp_path / "ids.json", tmp_path / "fp8", tmp_path / "tmp"
    temporary.mkdir()
    ids.write_text(json.dumps([0, 3, 1647, 293, 515, 227]))
    assert hadal("quantize", "--model", SAMPLE, "--to", "fp8", "--out", out).returncode == 0
    logits = {}
    for name, args in {"plain": [SAMPLE], "folder": [out], "quant": [SAMPLE, "--quant", "fp8"]}.items():
        run = subprocess.run([HADAL, "logits", "--tokens", ids, "--out", tmp_path / name, "--model", *args],
                             capture_output=True, text=True, timeout=100, env={**os.environ, "TMPDIR": str(temporary)})
        assert run.returncode == 0, run.stderr
        logits[name] = (tmp_path / name).read_bytes()
    assert logits["quant"] == logits["folder"] != logits["plain"]
    assert list(temporary.iterdir()) == []
