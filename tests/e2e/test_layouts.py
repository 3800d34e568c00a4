"""The same answer anywhere: layouts, replicas, batches, greedy and seeded."""

import concurrent.futures
import json
from pathlib import Path

import pytest
from cluster import QUICK, SAMPLE

QUESTIONS = ["What is 4827 + 391?", "How many r are in strawberry?", "Sort these numbers: 42, 7, 19, 3."]
SEEDED = {"temperature": 0.8, "top_p": 0.95, "seed": 7, "max_tokens": 120}
LAYOUTS = [(2, 1), (2, 2)] if QUICK else [(2, 1), (1, 2), (2, 2)]


PENALTIES = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 3, "presence_penalty": 0.7,
             "frequency_penalty": 0.4, "repetition_penalty": 1.1}
LENGTHS = [1, 31, 32, 33, 64, 65, 97, 129, 513, 700, 1100]  # around blocks of 32, and of several chunks


def raw_answer(cluster, n):
    """Tokens and log-probabilities after n ids; prompts of different n share their beginning."""
    ids = [3 + i * 7919 % 4000 for i in range(n)]
    reply = cluster.json("/v1/completions", {"model": cluster.model(), "prompt": ids, "max_tokens": 8, "logprobs": 3,
                                             **(PENALTIES if n % 2 else {"temperature": 0})})
    return reply["choices"][0]["text"], reply["choices"][0]["logprobs"], reply["choices"][0]["finish_reason"]


def raw_answers(cluster):
    return [raw_answer(cluster, n) for n in LENGTHS]


def answers(cluster):
    return [cluster.ask(q) for q in QUESTIONS] + [cluster.ask(q, **SEEDED) for q in QUESTIONS]


@pytest.fixture(scope="module")
def alone():
    """Answers of one node that holds the whole model."""
    from cluster import Cluster
    cluster = Cluster()
    yield answers(cluster)
    assert cluster.stop() == 0, cluster.log_tail()


@pytest.fixture(scope="module")
def raw_alone():
    """The longest first: it finds nothing in the cache. The layouts ask in the other order, so that
    each prompt meets a prefix of another length there."""
    from cluster import Cluster
    cluster = Cluster()
    yield [raw_answer(cluster, n) for n in reversed(LENGTHS)][::-1]
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
def test_layouts_agree(alone, raw_alone, start, stages, tensor):
    cluster = start(stages=stages, tensor=tensor)
    assert answers(cluster) == alone
    assert raw_answers(cluster) == raw_alone
    assert raw_answers(cluster) == raw_alone, "with a prefix hit"
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


def test_prefixes_and_chunks_agree_in_a_batch(raw_alone, sample22):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda n: raw_answer(sample22, n), LENGTHS * 3))
    assert got == raw_alone * 3
