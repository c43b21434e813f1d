"""What a vision-language model answers; and one of a real architecture, tiny and random, is asked."""

import importlib
from typing import Any

import pytest
import torch

from inlay.training.finetune.attribute_dictionary import (
    ANSWER_TOKENS,
    Chat,
    parse_answer,
    propose_attributes,
    vote,
)

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} so{% endif %}"
)
WORDS = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "so", "json", "brown", "colour", "of", "a", "lid"]


@pytest.mark.parametrize(
    ("answer", "attributes"),
    [
        ('{"colour": ["Brown"], "material": ["clay"]}', {"colour": ["brown"], "material": ["clay"]}),
        ('Sure!\n```json\n{"shape": ["round", "squat"]}\n```\nAnything else?', {"shape": ["round", "squat"]}),
        ("- **Color**: Brown, dark\n2. Shape: round.\n", {"color": ["brown", "dark"], "shape": ["round"]}),
        ('{"colour": ["brown"], "material": ["cl', None),
        ("colour: red\n{not json}", {"colour": ["red"]}),
        ("It is a lovely teapot.", None),
        ("", None),
    ],
)  # fmt: skip
def test_an_answer_is_read_however_it_is_dressed(answer, attributes):
    if attributes is None:
        with pytest.raises(ValueError, match="its answer names no attributes"):
            parse_answer(answer)
    else:
        assert parse_answer(answer) == attributes


def test_half_of_the_pictures_must_agree():
    said = [{"colour": ["brown", "red"]}, {"colour": ["brown"], "shape": ["round"]}, {"shape": ["round"]}]
    assert vote(said) == {"colour": ["brown"], "shape": ["round"]}
    assert vote(said[:1]) == said[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LLaVA of two tiny layers with 20 words, saved as its own tools save it."""
    transformers: Any = importlib.import_module("transformers")
    tokenizers: Any = importlib.import_module("tokenizers")

    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=28, patch_size=14, **shape),
        text_config=transformers.LlamaConfig(vocab_size=len(WORDS), **shape),
        image_token_index=WORDS.index("<image>"),
    )
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("vlm") / "tiny-llava"
    transformers.LlavaForConditionalGeneration(config).save_pretrained(place)
    processor.save_pretrained(place)
    return place


@pytest.fixture
def no_network(monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it went to the network"))


def test_a_model_from_a_folder_looks_and_answers(folder, no_network):
    chat = Chat(folder, torch.device("cpu"), torch.float32)
    pictures = [torch.zeros(40, 60, 3), torch.rand(40, 60, 3, generator=torch.Generator().manual_seed(0))]
    answers = [chat.ask(picture, "colour of a lid") for picture in pictures]
    assert answers[0] == chat.ask(pictures[0], "colour of a lid")
    assert answers[0] != answers[1]
    assert all(set(answer.split()) <= set(WORDS) for answer in answers)
    assert all(len(answer.split()) <= ANSWER_TOKENS for answer in answers)


def test_a_model_that_babbles_is_told_so(folder, no_network):
    with pytest.raises(ValueError, match="vision_model: its answer names no attributes"):
        propose_attributes([torch.zeros(28, 28, 3)], "teapot", folder, torch.device("cpu"), torch.float32)


def test_a_folder_without_a_model_is_named(tmp_path, no_network):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="does not open as a vision-language model"):
        Chat(tmp_path, torch.device("cpu"), torch.float32)
