"""What adapter training starts from, as other programs have saved it."""

from typing import Any

import pytest
import torch

from inlay.encoders.content_adapter import EncoderSpec
from inlay.training.adapters.identity_stages import read_tokens
from inlay.training.adapters.pretrained import load_object_encoder


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32])
def test_a_clip_of_any_precision_is_trained_with_in_full(tmp_path, precision):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
        intermediate_size=32,
    )  # fmt: skip
    saved = transformers.CLIPVisionModel(config).to(precision)
    saved.save_pretrained(tmp_path)
    clip: Any = load_object_encoder(tmp_path)
    tokens = read_tokens(clip, EncoderSpec("clip", 32, 0, 28, "normed"), torch.zeros(1, 3, 28, 28))
    assert tokens.dtype == torch.float32
    for name, value in saved.named_parameters():
        assert torch.equal(clip.get_parameter(name), value.float())
