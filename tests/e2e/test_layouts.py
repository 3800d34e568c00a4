"""The same answer anywhere: layouts, replicas, batches, greedy and seeded."""

import concurrent.futures
import json
from pathlib import Path

import pytest
from cluster import QUICK, SAMPLE

QUESTIONS = ["What is 4827 + 391?", "How many r are in strawberry?", "Sort these numbers: 42, 7, 19, 3."]
SEEDED = {"temperature": 0.8, "top_p": 0.95, "seed": 7, "max_tokens": 120}
LAYOUTS = [(2, 1), (2, 2)] if QUICK else [(2, 1), (1, 2), (2, 2)]


def answers(cluster):
    return [cluster.ask(q) for q in QUESTIONS] + [cluster.ask(q, **SEEDED) for q in QUESTIONS]


@pytest.fixture(scope="module")
def alone():
    """Answers of one node that holds the whole model."""
    from cluster import Cluster
    cluster = Cluster()
    yield answers(cluster)
    assert cluster.stop() == 0, cluster.log_tail()


def test_greedy_texts_are_the_reference(alone):
    """As in models/sample/reference.json, where thinking and answer are one text."""
    reference = {c["prompt"]: c for c in json.loads((Path(SAMPLE) / "reference.json").read_text())}
    for question, (reasoning, content, finish, tokens) in zip(QUESTIONS, alone):
        case = next(c for p, c in reference.items() if question in p)
        thinking, _, answer = case["text"].removesuffix("<｜end▁of▁sentence｜>").partition("</think>")
        assert (reasoning.strip(), content.strip()) == (thinking.strip(), answer.strip())
        assert finish == "stop" and tokens in (len(case["greedy_ids"]), len(case["greedy_ids"]) - 1)


@pytest.mark.parametrize("stages, tensor", LAYOUTS)
def test_layouts_agree(alone, start, stages, tensor):
    cluster = start(stages=stages, tensor=tensor)
    assert answers(cluster) == alone
    assert cluster.stop() == 0, cluster.log_tail()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_transports_agree(alone, start, transport):
    cluster = start(stages=2, transport=transport)
    assert answers(cluster) == alone
    assert cluster.stop() == 0, cluster.log_tail()


def test_batches_agree(alone, sample22):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        greedy = [pool.submit(sample22.ask, q) for q in QUESTIONS * 4]
        seeded = [pool.submit(sample22.ask, q, **SEEDED) for q in QUESTIONS * 4]
        got = [f.result() for f in greedy] + [f.result() for f in seeded]
    assert got == alone[:3] * 4 + alone[3:] * 4
