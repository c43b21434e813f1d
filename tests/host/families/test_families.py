"""Every row of the table agrees with the host: detection, LoRA targets, latents, token counts."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.families.layout import IMAGE_KIND, REFERENCE, TEXT, TOKEN_ORDERS, length_of
from inlay.families.table import CHANNELS, FAMILIES, FILL, FLUX2_SCHEDULE, NO_REFERENCES, find_family, named
from inlay.lab.models.tiny_transformers import TINY

ROWS = [row.name for row in FAMILIES]


@pytest.mark.parametrize("name", ROWS)
def test_the_full_model_is_recognised_and_its_latents_fit_the_row(full_size, name):
    from inlay.host.families import family_of, working_side

    row = named(name)
    _, config, model = full_size(name)
    assert config is not None
    assert family_of(model) is row
    assert (config.latent_format.latent_dimensions == 3) == row.time_axis
    assert working_side(model) == row.side
    reads = config.unet_config.get("in_channels")
    assert not row.channels or reads == row.channels
    assert (row.condition == CHANNELS) == (not row.transformer)
    assert (row.condition == FILL) == (reads == 96)


# Linear layers of all blocks, counted in the trainers' lists (attention and feed-forward, no modulation).
LAYERS = {
    "sd15": 16 * 10, "sdxl": 70 * 10, "flux1": 19 * 8 + 38 * 2, "flux2-klein": 5 * 8 + 20 * 2,
    "qwen-image": 60 * 12, "z-image": 30 * 5, "krea2": 28 * 8, "anima": 28 * 10,
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_lora_targets_are_linear_layers_of_every_block(full_size, name):
    row = named(name)
    network, _, _ = full_size(name)
    target = re.compile(row.lora.targets)
    found = [path for path, module in network.named_modules() if target.fullmatch(path)]
    kinds = dict(network.named_modules())
    assert all(isinstance(kinds[path], torch.nn.Linear) for path in found)
    assert len(found) == LAYERS.get(name, len(found)) > 0


@pytest.mark.parametrize("name", TINY)
def test_lora_targets_load_under_the_names_of_the_usual_tools(in_process_host, name):
    import comfy.lora
    import comfy.utils

    from inlay.lab.models.tiny_transformers import tiny_transformer

    row, model = named(name), tiny_transformer(name)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    network = model.get_model_object("diffusion_model")
    for path, _ in network.named_modules():
        if re.fullmatch(row.lora.targets, path):
            assert keys[f"diffusion_model.{path}"] == f"diffusion_model.{path}.weight"
            assert f"lora_unet_{path.replace('.', '_')}" in keys
    if row.lora.diffusers:
        names = getattr(comfy.utils, row.lora.diffusers)(model.model.model_config.unet_config)
        weights = set(network.state_dict())
        assert {place if isinstance(place, str) else place[0] for place in names.values()} & weights


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(7, 10), (8, 6)])
def test_the_layout_has_the_length_of_the_attention(in_process_host, name, size):
    """The longest sequence that the network attends over, with two references where it reads them."""
    import comfy.sample

    from inlay.host.families import family_of, layout_of
    from inlay.lab.models.tiny_transformers import random_latent, random_prompt, tiny_transformer

    row, model = named(name), tiny_transformer(name)
    assert family_of(model) is row
    latent = random_latent(model, *size)
    references = [random_latent(model, 4, 6), random_latent(model, 5, 3)]
    extras: dict = {} if row.references == NO_REFERENCES else {"reference_latents": references}
    if row.reference_method:
        extras["reference_latents_method"] = row.reference_method
    lengths = set()

    def override(function, q, k, v, heads, *args, **kwargs):
        lengths.add(q.shape[2 if kwargs.get("skip_reshape") else 1])
        return function(q, k, v, heads, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    prompt = random_prompt(name, 1, **extras)
    with torch.inference_mode():
        comfy.sample.sample(
            model, latent, 1, 1.0, "euler", "simple", prompt, prompt, latent * 0, seed=1, disable_pbar=True
        )
    network = model.get_model_object("diffusion_model")
    text = 512 if name.startswith("flux2") else prompt[0][0].shape[1]
    reads = TEXT in TOKEN_ORDERS[type(network).__name__].order  # else cross-attention has the text
    shapes = [tuple(reference.shape) for reference in extras.get("reference_latents", ())]
    spans = layout_of(network, latent.shape, text, shapes)
    assert spans is not None
    assert length_of(spans) == max(lengths)
    counted = sum(span.count for span in spans if span.kind == TEXT and not span.number)
    assert counted == (text if reads else 0)
    assert [span.grid for span in spans if span.kind == IMAGE_KIND] == (
        [size] if name.startswith("flux2") or name == "lens" else [(-(-size[0] // 2), -(-size[1] // 2))]
    )
    assert sum(span.kind == REFERENCE for span in spans) == len(shapes)


def model_of(config: str, path: str | None = None, **facts) -> Any:
    base = SimpleNamespace(model_config=type(config, (), {"unet_config": facts})())
    return SimpleNamespace(model=base, cached_patcher_init=path and (None, (path, {})))


@pytest.mark.parametrize(
    ("config", "file", "steps", "cfg"),
    [
        ("Flux2", "flux-2-klein-4b-fp8.safetensors", 4, 1.0),
        ("Flux2", "flux-2-klein-base-4b.safetensors", 20, 5.0),
        ("Flux2", None, 20, 5.0),
        ("ZImage", "z_image_turbo_bf16.safetensors", 8, 1.0),
        ("ZImage", "z_image_bf16.safetensors", 25, 4.0),
        ("Krea2", "krea2_turbo.safetensors", 8, 1.0),
        ("SD15", "dreamshaper.safetensors", 30, 4.0),
    ],
)
def test_settings_follow_the_family_and_the_words_of_the_file_name(in_process_host, config, file, steps, cfg):
    from inlay.host.families import settings_of

    settings = settings_of(model_of(config, file and f"/models/base/{file}"))
    assert settings is not None
    assert (settings.steps, settings.cfg) == (steps, cfg)


def test_kontext_is_told_from_dev_by_its_file_alone(in_process_host):
    from inlay.host.families import settings_of

    for file, guidance in (("flux1-dev.safetensors", 3.5), ("flux1-dev-kontext_fp8_scaled.safetensors", 2.5)):
        settings = settings_of(model_of("Flux", file))
        assert settings is not None
        assert settings.guidance == guidance


def test_every_setting_names_a_sampler_and_a_scheduler_of_the_host(in_process_host):
    import comfy.samplers

    for row in FAMILIES:
        for settings in (row.settings, *(variant for _, variant in row.variants)):
            assert settings.sampler in comfy.samplers.KSampler.SAMPLERS
            assert settings.scheduler in [*comfy.samplers.KSampler.SCHEDULERS, FLUX2_SCHEDULE]


def test_a_model_without_a_row_gets_one_sentence(in_process_host):
    from inlay.host.families import family_of, require_family

    model = model_of("HiDream")
    assert family_of(model) is None
    with pytest.raises(ValueError, match="no settings for HiDream models; blending and pasting back work"):
        require_family(model)
    assert find_family("SDXLRefiner", {}) is None
