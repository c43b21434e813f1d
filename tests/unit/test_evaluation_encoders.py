"""Encoders from transformers folders: tiny ones, written on the spot with random weights."""

import json

import pytest
import torch

from inlay.evaluation.encoders import ClipEncoder, load_image_text_encoder

PREPROCESSING = {
    "do_resize": True, "size": {"shortest_edge": 32}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3],
}  # fmt: skip
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def write_processor(folder, kind):
    text = json.dumps({**PREPROCESSING, "image_processor_type": kind})
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoders") / "dinov2-tiny"
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)).save_pretrained(folder)
    write_processor(folder, "BitImageProcessor")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoders") / "clip-tiny"
    torch.manual_seed(1)
    words = {
        **SMALL,
        "vocab_size": 20,
        "max_position_embeddings": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    config = transformers.CLIPConfig(text_config=words, vision_config=SMALL, projection_dim=12)
    transformers.CLIPModel(config).save_pretrained(folder)
    write_processor(folder, "CLIPImageProcessor")
    letters = ["<|startoftext|>", "<|endoftext|>", "a", "b", "c", "a</w>", "b</w>", "c</w>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(letters)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    kind = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 8}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")
    return folder


def normalised(images):
    mean, std = (torch.tensor(PREPROCESSING[k]).view(3, 1, 1) for k in ("image_mean", "image_std"))
    return (images - mean) / std


def test_dino_is_the_class_token_of_its_own_preprocessing(dino):
    from transformers import Dinov2Model

    encoder = load_image_text_encoder(dino)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        token = Dinov2Model.from_pretrained(dino)(normalised(images)).last_hidden_state[:, 0]
    assert encoder.name == "dinov2 (dinov2-tiny)"
    assert encoder.size == 32
    assert torch.allclose(encoder(images), token / token.norm(dim=1, keepdim=True), atol=1e-5)


def test_clip_is_the_projected_embedding_of_pictures_and_sentences(clip):
    from transformers import CLIPModel

    encoder, model = load_image_text_encoder(clip), CLIPModel.from_pretrained(clip)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(normalised(images)).pooler_output)
    assert torch.allclose(encoder(images), seen / seen.norm(dim=1, keepdim=True), atol=1e-5)
    assert isinstance(encoder, ClipEncoder)
    said = encoder.text(["a b", "c"])
    assert said.shape == (2, 12)
    assert torch.allclose(said.norm(dim=1), torch.ones(2), atol=1e-5)
    assert not torch.allclose(said[0], said[1], atol=1e-3)


def test_pictures_of_any_size_become_unit_vectors(dino):
    found = load_image_text_encoder(dino)(torch.rand(2, 3, 50, 41))
    assert found.shape == (2, 16)
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)


def test_a_folder_without_a_model_or_with_another_one_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"encoder: .* no config\.json"):
        load_image_text_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(ValueError, match="holds a bert model"):
        load_image_text_encoder(tmp_path)


def test_a_malicious_pickle_is_not_run(dino, tmp_path):
    import shutil

    folder = tmp_path / "bad"
    shutil.copytree(dino, folder)
    (folder / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran",))

    torch.save({"x": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.?only"):
        load_image_text_encoder(folder)
