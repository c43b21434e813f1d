"""DreamMix's and diffusers' own files on the host's models: both UNets get the same, answers compared."""

import json
import shutil
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2],
    "transformer_depth_middle": 2, "context_dim": 48, "use_spatial_transformer": True,
    "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 64,
    "num_head_channels": 64, "legacy": False, "dtype": torch.float32,
}  # fmt: skip


@pytest.fixture(scope="module")
def diffusers():
    return cast(Any, import_module("diffusers"))  # loosely typed: it hides its classes from type checkers


@pytest.fixture
def sdxl(in_process_host, diffusers):
    """A shallow, narrow SDXL in the host and in diffusers, with the same random weights: `.model .unet`."""
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    unet = diffusers.UNet2DConditionModel(
        in_channels=4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=48,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(1, 1),
        transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    ).eval()  # fmt: skip
    config = comfy.supported_models.SDXL(dict(SDXL))
    base: Any = config.get_model({}, "", device=torch.device("cpu"))
    names = comfy.utils.unet_to_diffusers(SDXL)
    base.diffusion_model.load_state_dict({names[key]: w.clone() for key, w in unet.state_dict().items()})
    cpu = torch.device("cpu")
    return SimpleNamespace(model=comfy.model_patcher.ModelPatcher(base, cpu, cpu), unet=unet)


def train(unet, **changes):
    """PEFT's adapter as DreamMix's script adds it, with weights that matter."""
    from peft import LoraConfig

    settings: Any = {"r": 4, "lora_alpha": 4, "target_modules": ["to_k", "to_v", "to_out.0"]} | changes
    unet.add_adapter(LoraConfig(init_lora_weights="gaussian", **settings))
    generator = torch.Generator().manual_seed(0)
    for name, weight in unet.named_parameters():
        if "lora_B" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)


def ask(sdxl, model=None):
    """What diffusers answers, or what the host's MODEL does: the same noisy latent, words and sizes."""
    import comfy.model_management

    generator = torch.Generator().manual_seed(1)
    x, context, text = (torch.randn(2, *s, generator=generator) for s in ((4, 8, 8), (7, 48), (16,)))
    t, sizes = torch.tensor([500.0, 20.0]), torch.full((2, 6), 64.0)
    with torch.inference_mode():
        if model is None:
            added = {"text_embeds": text, "time_ids": sizes}
            return sdxl.unet(x, t, encoder_hidden_states=context, added_cond_kwargs=added).sample
        comfy.model_management.load_models_gpu([model])
        y = torch.cat([text, sdxl.unet.add_time_proj(sizes.flatten()).view(2, -1)], 1)
        return model.model.diffusion_model(x, t, context=context, y=y)


def close(ours, theirs):
    return (ours - theirs).norm() <= 1e-4 * theirs.norm()


def save(diffusers, unet, folder, metadata=None):
    """As DreamMix's script keeps it: pytorch_lora_weights.safetensors in the folder."""
    from diffusers.utils import convert_state_dict_to_diffusers  # pyright: ignore[reportPrivateImportUsage]
    from peft.utils import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    diffusers.StableDiffusionXLPipeline.save_lora_weights(
        folder, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata
    )
    return folder / "pytorch_lora_weights.safetensors"


def load(in_process_host, path, model, **changes):
    """InlayLoadSubject's outputs for a file, brought to models/loras."""
    from inlay.nodes import InlayLoadSubject

    shutil.copy(path, in_process_host.models / "loras" / path.name)
    inputs = {"strength": 1.0, "token": "sks", "class_name": "teapot"} | changes
    node: Any = InlayLoadSubject.PREPARE_CLASS_CLONE(None)
    with torch.inference_mode():
        return node.execute(model, path.name, **inputs).result


def test_without_a_lora_both_say_the_same(sdxl):
    assert close(ask(sdxl, sdxl.model), ask(sdxl))


def test_dreammixs_file_is_read(sdxl, diffusers, in_process_host, tmp_path):
    plain = ask(sdxl)
    train(sdxl.unet)
    path = save(diffusers, sdxl.unet, tmp_path)
    patched, clip, lora, subject = load(in_process_host, path, sdxl.model)
    assert not close(ask(sdxl), plain)
    assert close(ask(sdxl, patched), ask(sdxl))
    assert clip is None
    assert len(patched.patches) == len(lora) // 2 > 0  # the host knew every key
    assert subject.words == "sks teapot"
    assert subject.family == "sdxl"
    assert close(ask(sdxl, sdxl.model), plain)


def test_the_strength_it_was_trained_with_is_kept(sdxl, diffusers, in_process_host, tmp_path):
    """alpha 8 of rank 4: newer diffusers says so in the file's metadata."""
    train(sdxl.unet, lora_alpha=8)
    settings = sdxl.unet.peft_config["default"].to_dict()
    known = ("r", "lora_alpha", "target_modules", "use_rslora", "alpha_pattern")
    metadata = {name: sorted(v) if isinstance(v := settings[name], set) else v for name in known}
    path = save(diffusers, sdxl.unet, tmp_path, metadata)
    assert close(ask(sdxl, load(in_process_host, path, sdxl.model)[0]), ask(sdxl))


def test_a_file_for_another_model_and_a_nameless_one_are_refused(sdxl, in_process_host, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"lora_unet_elsewhere.lora_up.weight": torch.rand(4, 4)}, path)
    with pytest.raises(ValueError, match=r"no weight of other\.safetensors belongs to this model \(SDXL\)"):
        load(in_process_host, path, sdxl.model)
    with pytest.raises(ValueError, match=r"token: other\.safetensors does not say it"):
        load(in_process_host, path, sdxl.model, token="")


def test_inlays_own_file_says_what_it_is(sdxl, in_process_host, tmp_path):
    from safetensors.torch import save_file

    from inlay.training.finetune.subject import Subject

    own = Subject("sks", "mug", "a photo of sks mug", "inlay/mug.safetensors", "DreamCom", "sdxl", 1, 0, 4)
    down, up = torch.rand(4, 48), torch.rand(64, 4)
    name = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    path = tmp_path / "mug.safetensors"
    save_file(tensors, path, {"inlay": own.to_json()})
    patched, _, lora, subject = load(in_process_host, path, sdxl.model, token="", class_name="")
    assert subject == replace(own, lora="mug.safetensors")  # where it was found, for `previous`
    assert lora.keys() == tensors.keys()
    twice = load(in_process_host, path, patched, token="", class_name="")[0]
    assert [len(patches) for patches in twice.patches.values()] == [2]
    assert load(in_process_host, path, sdxl.model, strength=0.0)[0] is not None
    foreign = Subject("sks", "mug", "", "inlay/mug.safetensors", "DreamCom", "SD15", 1, 0, 4)
    save_file(tensors, path, {"inlay": foreign.to_json()})
    with pytest.raises(ValueError, match=r"sks mug was trained for SD 1\.5 but the model is SDXL"):
        load(in_process_host, path, sdxl.model, token="", class_name="")


def test_other_programs_notes_beside_a_lora_are_passed_over(sdxl, in_process_host, tmp_path):
    """AUTOMATIC1111 and Forge keep theirs as <lora>.json."""
    from safetensors.torch import save_file

    from inlay.training.finetune.subject import Subject

    name = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": torch.rand(4, 48), f"{name}.lora_up.weight": torch.rand(64, 4)}
    path, beside = tmp_path / "noted.safetensors", in_process_host.models / "loras" / "noted.json"
    save_file(tensors, path)
    notes = {"description": "a cup", "sd version": "SDXL", "activation text": "sks", "notes": ""}
    beside.write_text(json.dumps(notes), encoding="utf-8")
    assert load(in_process_host, path, sdxl.model)[3].words == "sks teapot"
    with pytest.raises(ValueError, match=r"token: noted\.safetensors does not say it"):
        load(in_process_host, path, sdxl.model, token="")
    own = Subject("sks", "mug", "", "inlay/mug.safetensors", "DreamCom", "sdxl", 1, 0, 4)
    save_file(tensors, path, {"inlay": own.to_json()})
    found = load(in_process_host, path, sdxl.model, token="", class_name="")[3]
    assert found == replace(own, lora="noted.safetensors")
    foreign = {"class_name": "mug", "version": 1}
    beside.write_text(json.dumps(foreign), encoding="utf-8")
    assert load(in_process_host, path, sdxl.model, token="", class_name="")[3] == found
    damaged = json.loads(own.to_json()) | {"steps": "many"}
    beside.write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lora_name: the subject in noted\.json is damaged"):
        load(in_process_host, path, sdxl.model)


@pytest.mark.slow
def test_a_whole_unet_that_diffusers_trained_opens_in_the_hosts_loader(
    diffusers, in_process_host, memory_turn, tmp_path
):
    """DreamCom's released code saves a pipeline; its UNet is a full-size SD 1.5 inpainting one."""
    import comfy.sd

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(in_channels=9, cross_attention_dim=768, sample_size=64).eval()
    unet.save_pretrained(tmp_path / "unet")
    x, t, context = torch.randn(1, 9, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, 768)
    with torch.inference_mode():
        path = str(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
        model: Any = comfy.sd.load_diffusion_model(path, {"dtype": torch.float32})
        ours = model.model.diffusion_model(x, t, context=context)
        theirs = unet(x, t, encoder_hidden_states=context).sample
    assert model.model.concat_keys
    assert close(ours, theirs)
