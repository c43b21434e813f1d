"""diffusers' names for a LoRA's parts, old and new, under kohya's."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from inlay.common.lora_files import as_kohya, read_lora_file

PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
NAME = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (f"unet.{PATH}.to_k.lora.down.weight", f"{NAME}_to_k.lora_down.weight"),
        (f"unet.{PATH}.to_k.lora.up.weight", f"{NAME}_to_k.lora_up.weight"),
        (f"unet.{PATH}.to_out.0.lora_A.weight", f"{NAME}_to_out_0.lora_down.weight"),
        (f"unet.{PATH}.to_v.lora_B.default.weight", f"{NAME}_to_v.lora_up.weight"),
        (f"{PATH}.processor.to_q_lora.down.weight", f"{NAME}_to_q.lora_down.weight"),
        (f"unet.{PATH}.processor.to_out_lora.up.weight", f"{NAME}_to_out_0.lora_up.weight"),
        (f"unet.{PATH.replace('down_blocks.1', 'mid_block')}.to_k.lora_linear_layer.up.weight",
         f"{NAME.replace('down_blocks_1', 'mid_block')}_to_k.lora_up.weight"),
        (f"{NAME}_to_k.lora_down.weight", f"{NAME}_to_k.lora_down.weight"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight",) * 2,
    ],
)  # fmt: skip
def test_every_generation_of_names_is_read(theirs, ours):
    tensor = torch.rand(4, 8)
    assert as_kohya({theirs: tensor}, {}) == {ours: tensor}


def test_without_settings_the_scale_is_one_and_with_them_it_is_theirs(tmp_path):
    """alpha / rank as kohya scales; alpha / sqrt(rank) for rank-stabilised LoRA; patterns come first."""
    lora = {f"unet.{PATH}.to_{x}.lora_A.weight": torch.rand(4, 8) for x in "kv"}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(lora, path)
    assert not [key for key in read_lora_file(path)[0] if key.endswith("alpha")]

    settings = {"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {"attn2.to_v": 2}}
    for rslora, scale in ((False, 1.0), (True, math.sqrt(4))):
        text = json.dumps(settings | {"unet.use_rslora": rslora})
        save_file(lora, path, {"lora_adapter_metadata": text})
        found, metadata = read_lora_file(path)
        assert metadata["lora_adapter_metadata"] == text
        assert float(found[f"{NAME}_to_k.alpha"]) == 8 * scale
        assert float(found[f"{NAME}_to_v.alpha"]) == 2 * scale


def test_a_magnitude_is_a_column():
    found = as_kohya({f"unet.{PATH}.to_k.lora_magnitude_vector": torch.rand(8)}, {})
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == {f"{NAME}_to_k.dora_scale": (8, 1)}


def test_a_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "cat.safetensors"
    path.write_bytes(b"not a lora")
    with pytest.raises(ValueError, match=r"lora_name: cat\.safetensors is no safetensors file"):
        read_lora_file(path)
