"""A service without a checkpoint: the shape and the tokenizer of the sample model, random weights."""

import shutil
from pathlib import Path

from cluster import SAMPLE


def shape_only(folder):
    folder.mkdir()
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(Path(SAMPLE) / name, folder / name)
    return str(folder)


def test_serves_and_layouts_agree(start, tmp_path):
    model, answers = shape_only(tmp_path / "shape"), []
    for layout in [{}, {"stages": 2, "tensor": 2}]:
        c = start(model=model, random_weights="fp8", context=256, max_seqs=4, **layout)
        answers.append([c.ask("hi", max_tokens=12), c.ask("What is 1 + 5?", max_tokens=12)])
        assert c.stop() == 0
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]
