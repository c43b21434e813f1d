"""Every family a recipe takes, on shallow UNets of the host's own classes with random weights."""

from types import SimpleNamespace

import pytest
import torch

from inlay.families.table import name_of_stored

SMALL_TEXT = {"num_hidden_layers": 3, "intermediate_size": 64}
LINEAR = {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64}
SHAPES = {
    "SD15": {},
    "SD20": {"context_dim": 1024, **LINEAR},
    "SDXL": {
        "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential", **LINEAR,
        "channel_mult": (1, 2), "num_res_blocks": [1, 1], "transformer_depth": [0, 2],
        "transformer_depth_output": [2, 2, 0, 0], "transformer_depth_middle": 2,
    },
}  # fmt: skip
CASES = [
    ("SD20", 9, "EPS", "DreamCom"),
    ("SD20", 4, "V_PREDICTION", "DreamMix"),
    ("SDXL", 9, "EPS", "DreamCom"),
    ("SDXL", 9, "V_PREDICTION", "DreamMix"),
    ("SDXL", 4, "EPS", "DreamMix"),
    ("SD15", 4, "EPS", "DreamMix"),
]


@pytest.fixture(scope="module")
def make_model(in_process_host):
    """A MODEL of a family, its UNet shallow and random."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    from inlay.lab.models.inpainting_unet import SHALLOW, SHAPE, new_unet

    made = {}

    def make(family, channels, prediction):
        if (family, channels, prediction) not in made:
            shape = {**SHAPE, **SHALLOW, **SHAPES[family], "in_channels": channels}
            config = getattr(comfy.supported_models, family)({**shape, "use_temporal_attention": False})
            config.set_inference_dtype(torch.float32, None)
            base = comfy.model_base.SDXL if family == "SDXL" else comfy.model_base.BaseModel
            model = base(config, model_type=comfy.model_base.ModelType[prediction])
            if channels == 9:
                model.set_inpaint()
            generator = torch.Generator().manual_seed(0)
            model.diffusion_model.load_state_dict(new_unet(0, **shape).state_dict())
            for p in model.diffusion_model.parameters():
                if not p.any():
                    p.copy_(0.02 * torch.randn(p.shape, generator=generator))
            cpu = torch.device("cpu")
            made[family, channels, prediction] = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
        return made[family, channels, prediction]

    return make


@pytest.fixture(scope="module")
def clips(in_process_host):
    """A family's own text encoder, made small."""
    import comfy.sd
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
    from comfy.sdxl_clip import SDXLClipModel, SDXLTokenizer
    from comfy.text_encoders.sd2_clip import SD2ClipModel, SD2Tokenizer

    kinds = {
        "SD15": (SD1ClipModel, SD1Tokenizer),
        "SD20": (SD2ClipModel, SD2Tokenizer),
        "SDXL": (SDXLClipModel, SDXLTokenizer),
    }
    made = {}

    def make(family):
        if family not in made:
            model, tokenizer = kinds[family]
            target = SimpleNamespace(clip=model, tokenizer=tokenizer, params={})
            options = {f"clip_{name}_model_config": SMALL_TEXT for name in "lgh"}
            made[family] = comfy.sd.CLIP(target, model_options=options, disable_dynamic=True)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for p in made[family].cond_stage_model.parameters():
                    p.normal_(0, 0.05, generator=generator)
        return made[family]

    return make


@pytest.fixture
def wired(make_model, clips, request):
    family, channels, prediction, recipe = request.param
    with torch.inference_mode():
        model, clip = make_model(family, channels, prediction), clips(family)
    return SimpleNamespace(family=family, model=model, clip=clip, prediction=prediction, recipe=recipe)


@pytest.mark.parametrize("wired", CASES, indirect=True)
def test_the_node_teaches_it(wired, pictures, store_folder, run, weights):
    before = weights(wired.model)
    model, lora, loss, subject, _ = run(
        *pictures, model=wired.model, clip=wired.clip, recipe=wired.recipe, steps=2, preview_every=2
    )
    assert subject.family == name_of_stored(wired.family)
    assert all(torch.isfinite(torch.tensor(loss["loss"])))
    assert len(model.patches) == len(lora) // 3 > 0  # the host's loader finds a layer for every key
    assert all(torch.isfinite(tensor).all() for tensor in lora.values())
    assert any(tensor.any() for key, tensor in lora.items() if key.endswith("lora_up.weight"))
    assert (store_folder.parent / subject.lora).with_suffix(".png").exists()  # the preview sampled it
    state = wired.model.model.state_dict()
    assert all(torch.equal(weight, before[key]) for key, weight in state.items())


@pytest.mark.parametrize("wired", CASES, indirect=True)
def test_the_loss_is_that_of_the_hosts_own_prediction(wired):
    """Of the clean latent: weighed by 1 / sigma^2 it is eq. 1, with v by (sigma^2 + 1) / sigma^2."""
    from inlay.host.models import model_around
    from inlay.training.finetune.data import Examples
    from inlay.training.finetune.pipeline import trainable_model
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import loss_of_pass
    from inlay.training.objective import generator_at

    recipe = RECIPES["DreamCom"].with_choices(rank=4)
    generator = torch.Generator().manual_seed(3)
    latent, masked = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(3, 1, 8, 8)
    mask[..., 2:6, 3:7] = 1
    width = wired.model.model.model_config.unet_config["context_dim"]
    label = torch.randn(1, 2816, generator=generator) if wired.family == "SDXL" else None
    context = torch.randn(1, 77, width, generator=generator)
    examples = Examples(latent, mask, masked, torch.ones_like(mask), context, label)
    with torch.inference_mode(False), torch.enable_grad():
        trainee = trainable_model(wired.model, recipe, torch.float32, 0)
        loss = loss_of_pass(trainee, recipe, examples, None, seed=5, k=2)

        rows = examples.take(torch.tensor([_row(examples, recipe)]))
        drawn = generator_at(5, 2)
        sigma = trainee.diffusion.sigmas[torch.randint(1000, (1,), generator=drawn)]
        noise = torch.randn(1, 4, 8, 8, generator=drawn)
        base = model_around(wired.model, trainee.unet, torch.float32).model
        x = base.model_sampling.noise_scaling(sigma, noise, rows.latent)
        assert trainee.options is not None
        found = base.apply_model(
            x,
            sigma,
            c_concat=torch.cat([rows.mask, rows.masked], 1) if trainee.inpainting else None,
            c_crossattn=rows.context,
            transformer_options=trainee.options(rows),
            **({} if label is None else {"y": label}),
        )
        weight = (sigma**2 + 1) / sigma**2 if wired.prediction == "V_PREDICTION" else 1 / sigma**2
        reference = (weight * (found - rows.latent) ** 2).mean()
    torch.testing.assert_close(loss, reference, rtol=1e-4, atol=0)


def _row(examples, recipe):
    from inlay.training.finetune.data import rows_of_step

    return int(rows_of_step(len(examples), recipe.batch_size, 2, 5))


def test_sdxl_is_given_the_size_of_its_bucket(make_model, in_process_host):
    from inlay.host import models

    with torch.inference_mode():
        model = make_model("SDXL", 9, "EPS")
    pooled = torch.randn(2, 1280)
    square = models.label_embedding(model, pooled, 64, pooled.device)
    assert square is not None
    wanted = model.model.encode_adm(pooled_output=pooled, height=64, width=96, device=pooled.device)
    assert not torch.equal(square, wanted)
    assert torch.equal(models.label_at_size(model, square, 64, 96), wanted)
    assert torch.equal(models.label_at_size(model, square, 64, 64), square)


def test_a_prediction_is_told_by_how_it_is_wired(make_model, in_process_host):
    """ModelSamplingDiscrete turns a noise model into a v model; the trainer follows."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    from inlay.host.models import prediction_of

    with torch.inference_mode():
        model = make_model("SDXL", 9, "EPS")
        node = ModelSamplingDiscrete()
        wired = {kind: node.patch(model, kind, zsnr=False)[0] for kind in ("v_prediction", "eps", "lcm")}
    assert prediction_of(model) == "epsilon"
    assert prediction_of(wired["v_prediction"]) == "v"
    assert prediction_of(wired["eps"]) == "epsilon"
    assert prediction_of(wired["lcm"]) is None


def test_another_familys_subject_is_refused(make_model, clips, pictures, store_folder, run):
    with torch.inference_mode():
        sd2, text = make_model("SD20", 9, "EPS"), clips("SD20")
    subject = run(*pictures, model=sd2, clip=text, steps=1)[3]
    with pytest.raises(ValueError, match=r"previous: sks cat was trained for SD 2 but the model is SD 1\.5"):
        run(*pictures, previous=subject)


def test_a_model_that_the_host_pages_is_trained_on_a_copy_that_stays(
    parts, random_checkpoint, pictures, store_folder, run
):
    """The host's dynamic VRAM needs an accelerator; this patcher says it is one, and refuses to be loaded."""
    import shutil

    import comfy.model_patcher
    import comfy.sd

    class Paged(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

        def load(self, *args, **kwargs):
            pytest.fail("a paged model was loaded in full")

    def reload(path, disable_dynamic):
        assert disable_dynamic
        return comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)

    plain = run(*pictures)
    shutil.rmtree(store_folder)
    base = parts.model
    paged = Paged(base.model, base.load_device, base.offload_device)
    paged.cached_patcher_init = (reload, (str(random_checkpoint),), 0)
    again = run(*pictures, model=paged)
    assert all(torch.equal(plain[1][key], again[1][key]) for key in plain[1])
