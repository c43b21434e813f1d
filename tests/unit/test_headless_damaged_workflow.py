"""Damaged workflows end in one sentence: published ones, each with one to three parts changed or missing."""

import copy
import json
import random

import pytest

from inlay import dev
from inlay.evaluation.benchmark_datasets import read_cases
from inlay.headless.errors import HostError
from inlay.headless.workflow import as_graph, read_workflow

FILES = [*(dev.PACK / "workflows").glob("*.json"), *(dev.PACK / "workflows" / "api").glob("*.json")]
JUNK = [None, 5, "x", [], {}, [1], {"a": 1}, -1, True]
DEFINITION = {
    "display_name": "a node",
    "input": {"required": {"seed": ["INT", {}]}, "optional": {"text": ["STRING", {}]}},
    "input_order": {"required": ["seed"], "optional": ["text"]},
}


def damaged(document: dict, rng: random.Random) -> dict:
    """A copy with one to three parts anywhere in it replaced or removed."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        part = document
        while isinstance(part, dict | list) and part:
            key = rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
            if rng.random() < 0.25 or not isinstance(part[key], dict | list) or not part[key]:
                if rng.random() < 0.4:
                    del part[key]
                else:
                    part[key] = copy.deepcopy(rng.choice(JUNK))
                break
            part = part[key]
    return document


def test_a_damaged_workflow_is_a_graph_or_a_sentence(tmp_path):
    rng, documents = random.Random(0), [json.loads(file.read_text(encoding="utf-8")) for file in FILES]
    nodes = [node for document in documents for node in document.get("nodes", document.values())]
    kinds = {node.get("type", node.get("class_type")) for node in nodes}
    definitions = dict.fromkeys(kinds, DEFINITION)
    file, sentences, graphs = tmp_path / "workflow.json", [], 0
    for _ in range(600):
        file.write_text(json.dumps(damaged(rng.choice(documents), rng)), encoding="utf-8")
        try:
            json.dumps(as_graph(read_workflow(file), definitions))
            graphs += 1
        except HostError as error:
            sentences.append(str(error))
    assert all(sentence.endswith((".", "?")) for sentence in sentences)
    assert len(sentences) > 60
    assert graphs > 60


@pytest.mark.parametrize(
    "text", ["{}", "[]", "5", '{"graph": 5, "settings": []}', '{"graph": {"1": 5}, "settings": []}']
)
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"is no result of inlay run|lacks a part"):
        read_cases("batch", tmp_path)
