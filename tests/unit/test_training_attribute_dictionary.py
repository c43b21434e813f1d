"""The attribute dictionary: what is read and refused, and the prompts that are made of it."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.conditioning.attribute_words import words_to_remove
from inlay.training.finetune.attribute_dictionary import (
    attributes_to_words,
    compose_prompts,
    parse_attributes,
    read_attributes,
    write_attributes,
)

TEAPOT = {"colour": ["brown", "dark"], "material": ["clay"], "accessory": ["a lid"]}
words = st.text(st.characters(categories=["L"]), min_size=1, max_size=8)
dictionaries = st.dictionaries(
    words.map(str.lower), st.lists(words, min_size=1, max_size=4, unique=True), max_size=5
)


def test_json_and_lines_say_the_same():
    lines = " Colour: brown , brown;\nmaterial:clay\naccessory: a  lid \ncolour: dark"
    assert parse_attributes(lines) == TEAPOT == parse_attributes(json.dumps(TEAPOT))
    assert parse_attributes('{"colour": "red"}') == {"colour": ["red"]}
    assert parse_attributes("  ") == {} == parse_attributes('{"colour": [], "": ["x"]}')


@given(dictionaries)
def test_what_is_written_is_read_back(attributes):
    again = parse_attributes(write_attributes(attributes))
    assert again == attributes
    assert list(again) == list(attributes)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "teapot.json"
    path.write_text(write_attributes({"couleur": ["d\u00e9lav\u00e9"]}), encoding="utf-8")
    assert read_attributes(path) == {"couleur": ["d\u00e9lav\u00e9"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"colour": ["brown"', "attributes: this is no JSON"),
        ('{"colour": {"main": "brown"}}', 'the words of "colour" are no list of words'),
        ('{"colour": [1]}', 'the words of "colour" are no list of words'),
        ("brown, clay", "'brown, clay' has no kind"),
    ],
)
def test_what_cannot_be_read_is_shown(text, message):
    with pytest.raises(ValueError, match=message):
        parse_attributes(text)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"colour": "brown", "material": "clay", "accessory": "a lid"}, "sks brown clay teapot with a lid"),
        ({"part": "a lid", "accessory": "a chain"}, "sks teapot with a lid and a chain"),
        ({"material": "made of clay", "accessory": "a lid"}, "sks teapot with a lid made of clay"),
        ({"accessory": "wearing a hat"}, "sks teapot wearing a hat"),
        ({}, "sks teapot"),
    ],
)
def test_words_stand_where_english_puts_them(chosen, sentence):
    assert attributes_to_words(chosen, "teapot", "sks") == sentence


def test_every_combination_comes_when_all_are_asked_for():
    every = {
        attributes_to_words(dict(pairs), "teapot")
        for chosen in itertools.product((None, "brown", "dark"), (None, "clay"), (None, "a lid"))
        if (pairs := [(k, w) for k, w in zip(TEAPOT, chosen, strict=True) if w])
    }
    prompts = compose_prompts(TEAPOT, "teapot", count=99)
    assert len(prompts) == len(every) == 11
    assert {prompt.removeprefix("a ") for prompt in prompts} == every


@given(st.integers(0, 2**63), st.integers(1, 11))
def test_prompts_follow_from_the_seed_and_differ(seed, count):
    prompts = compose_prompts(TEAPOT, "teapot", "sks", count, seed)
    assert prompts == compose_prompts(TEAPOT, "teapot", "sks", count, seed)
    assert len(set(prompts)) == len(prompts) == count
    assert all(prompt.startswith("a sks ") and "teapot" in prompt for prompt in prompts)


def test_seeds_combine_differently():
    assert len({tuple(compose_prompts(TEAPOT, "teapot", count=3, seed=seed)) for seed in range(20)}) > 10


def test_a_huge_dictionary_is_not_enumerated():
    many = {f"kind {i}": [f"w{i}x{j}" for j in range(50)] for i in range(40)}
    assert len(compose_prompts(many, "cat", count=5)) == 5


def test_the_template_surrounds_the_subject_and_minds_its_article():
    orange = {"colour": ["orange"]}
    assert compose_prompts(orange, "cat") == ["an orange cat"]
    assert compose_prompts(orange, "cat", "sks") == ["a sks orange cat"]
    assert compose_prompts(orange, "cat", template="A photo of a {subject}, a lamp") == [
        "A photo of an orange cat, a lamp"
    ]
    assert compose_prompts(orange, "cat", template="panda {subject}") == ["panda orange cat"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": {}}, "attributes: there are none"),
        ({"class_name": " "}, "class_name: it is empty"),
        ({"template": "a photo"}, "template: it has no {subject}"),
    ],
)
def test_a_prompt_that_cannot_be_made_says_why(changes, message):
    with pytest.raises(ValueError, match=message):
        compose_prompts(**({"attributes": TEAPOT, "class_name": "teapot"} | changes))


def test_substitution_at_inference_reads_the_same_dictionary():
    attributes = parse_attributes("colour: brown; material: clay")
    assert words_to_remove("a glass sks teapot", attributes) == ["clay"]


@pytest.mark.parametrize(
    "text", ["colour: " + "x" * 201, "x" * 201 + ": red", '{"colour": ["' + "x" * 201 + '"]}']
)
def test_a_word_too_long_for_a_prompt_is_refused(text):
    with pytest.raises(ValueError, match=r'^attributes: "x+\.\.\." has 201 characters; write a word or two'):
        parse_attributes(text)
    assert parse_attributes(text.replace("x" * 201, "x" * 200))


@pytest.mark.parametrize("name", ["class_name", "token"])
def test_a_name_too_long_for_a_prompt_is_refused(name):
    with pytest.raises(ValueError, match=rf'^{name}: "x+\.\.\." has 201 characters'):
        compose_prompts(**{"attributes": TEAPOT, "class_name": "teapot", name: "x" * 201})
