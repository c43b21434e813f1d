"""Every translated sentence is one that the code has, with the same values in both languages."""

import ast
import json
import re

import pytest

from inlay import dev

WORDS = json.loads((dev.PACK / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
SENTENCES = WORDS["inlaySentences"]
FOLDERS = ("nodes", "imaging", "training", "common", "sampling", "conditioning", "encoders")


def pattern_of(node: ast.expr) -> str | None:
    """A string or f-string with {} for each of its values, or None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in node.values]
        return "".join(map(str, parts))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [pattern_of(side) or "{}" for side in (node.left, node.right)]
        return "".join(sides)
    return None


@pytest.fixture(scope="module")
def written() -> set[str]:
    found = set()
    for folder in FOLDERS:
        for path in (dev.PACK / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                pattern = pattern_of(node) if isinstance(node, ast.expr) else None
                if pattern:
                    found.add(pattern)
    return found


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_translated_sentence_is_in_the_code(sentence, written):
    assert re.sub(r"\{[\w.]*\}", "{}", sentence) in written


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_translation_has_the_values_of_its_sentence(sentence):
    values = [re.findall(r"\{([\w.]*)\}", text) for text in (sentence, SENTENCES[sentence])]
    assert set(values[1]) <= set(values[0])


def test_the_pages_own_words_are_in_chinese_too_with_their_values():
    code = (dev.PACK / "web" / "translations.js").read_text(encoding="utf-8")
    block = code.split("const WORDS = {")[1].split("\n}\n")[0]
    english = dict(re.findall(r'^  (\w+): "(.*)",$', block, re.MULTILINE))
    assert len(english) == block.count("\n")
    assert english.keys() == WORDS["inlayPage"].keys()
    for key, words in WORDS["inlayPage"].items():
        assert re.search(r"[\u4e00-\u9fff]", words)
        assert sorted(re.findall(r"\{\d\}", words)) == sorted(re.findall(r"\{\d\}", english[key]))
