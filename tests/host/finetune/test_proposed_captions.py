"""Captions that the host's Generate Text proposes with a local vision-language model."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.lab.models.tiny_transformers import RandomText, tiny_transformer, tiny_vae


@pytest.fixture(scope="module")
def reader(in_process_host):
    """The host's Qwen3-VL with its tokenizer, random weights and two layers, as a CLIP."""
    import comfy.sd
    from comfy.text_encoders import qwen3vl

    kept = qwen3vl.QWEN3VL_VISION["qwen3vl_4b"]
    qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] = {
        "hidden_size": 64, "intermediate_size": 128, "depth": 1, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }  # fmt: skip
    target = SimpleNamespace(
        clip=qwen3vl.te(model_type="qwen3vl_4b"), tokenizer=qwen3vl.tokenizer("qwen3vl_4b"), params={}
    )
    try:
        with torch.inference_mode():
            clip: Any = comfy.sd.CLIP(
                target, model_options={"qwen3vl_4b_model_config": sizes, "dtype": torch.float32}
            )
            generator = torch.Generator().manual_seed(0)
            for name, weight in clip.cond_stage_model.named_parameters():
                values = torch.randn(weight.shape, generator=generator) * 0.2
                weight.copy_(values + 1 if "norm" in name else values)
    finally:
        qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] = kept
    return clip


def generated(clip, images) -> list[str]:
    """The texts of Generate Text for a list of pictures, called as the host's executor calls a node."""
    import execution
    from comfy_extras.nodes_textgen import TextGenerate

    inputs = {
        "clip": [clip], "prompt": ["Describe the place and the light."], "image": images,
        "max_length": [6], "sampling_mode": [{"sampling_mode": "off"}],
    }  # fmt: skip
    with torch.inference_mode():
        output, *_ = asyncio.run(execution.get_output_data("", "1", TextGenerate, inputs))
    return output[0]


class Recording(RandomText):
    def __init__(self, family):
        super().__init__(family)
        self.texts = []

    def encode_from_tokens_scheduled(self, text):
        self.texts.append(text)
        return super().encode_from_tokens_scheduled(text)


def test_generated_texts_are_the_captions_of_a_training(reader, run, pictures, store_folder):
    texts = generated(reader, pictures[0])
    assert len(texts) == 3
    assert len(set(texts)) == 3  # the pictures were read
    assert texts == generated(reader, pictures[0])  # without sampling they stay, and so does the training
    with torch.inference_mode():
        model, vae = tiny_transformer("flux2-klein", seed=1), tiny_vae("flux2-klein")
    wired = {"model": model, "vae": vae, "batch_size": 1, "preview_every": 0, "steps": 1}
    clip = Recording("flux2-klein")
    trained = run(*pictures, **wired, clip=clip, captions=texts)
    assert {f"a photo of sks cat, {text.strip()}" for text in texts} <= set(clip.texts)
    assert trained[3].lora != run(*pictures, **wired, clip=RandomText("flux2-klein"))[3].lora
