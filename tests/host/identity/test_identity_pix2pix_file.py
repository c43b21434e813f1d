"""A full-size SD 1.5 InstructPix2Pix UNet in diffusers' layout, with random weights."""

import pytest
import torch
from safetensors.torch import save_file


def small_unet():
    """diffusers' UNet of SD 1.5 with 8 channels, without memory: names and shapes."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(in_channels=8, cross_attention_dim=768).state_dict()


def test_every_weight_of_diffusers_finds_its_name(in_process_host):
    from inlay.nodes.loaders import original_keys

    state = small_unet()
    renamed = original_keys(state)
    assert len(renamed) == len(state)
    assert renamed["input_blocks.0.0.weight"].shape == (320, 8, 3, 3)
    assert renamed["output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 768)


def test_other_files_are_named(kit, in_process_host):
    folder = in_process_host.models / "diffusion_models"
    folder.mkdir(exist_ok=True)
    in_process_host.folder_paths.add_model_folder_path("diffusion_models", str(folder))
    save_file({"input_blocks.0.0.weight": torch.zeros(2)}, folder / "original.safetensors")
    with pytest.raises(ValueError, match="is no UNet in diffusers' layout"):
        kit.execute("InlayLoadPix2Pix", "original.safetensors")
    save_file({"conv_in.weight": torch.zeros(8, 8, 3, 3)}, folder / "tiny.safetensors")
    with pytest.raises(ValueError, match=r"is no SD 1\.5 UNet"):
        kit.execute("InlayLoadPix2Pix", "tiny.safetensors")


@pytest.mark.slow
def test_it_predicts_what_diffusers_predicts(kit, in_process_host, memory_turn):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    folder = in_process_host.models / "diffusion_models"
    folder.mkdir(exist_ok=True)
    in_process_host.folder_paths.add_model_folder_path("diffusion_models", str(folder))
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(in_channels=8, cross_attention_dim=768).eval()
    save_file(theirs.state_dict(), folder / "pix2pix.safetensors")
    (model,) = kit.execute("InlayLoadPix2Pix", "pix2pix.safetensors")
    assert type(model.model).__name__ == "SD15_instructpix2pix"
    x, context = torch.randn(1, 8, 8, 8), torch.randn(1, 77, 768)
    expected = theirs(x, torch.tensor([500]), context).sample
    got = model.model.diffusion_model.float()(x, torch.tensor([500.0]), context)
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()
