"""SubjectFinetune as the host runs it, on a shallow SD 1.5-shaped checkpoint with random weights."""

import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.lab.models.tiny_transformers import RandomText, tiny_transformer, tiny_vae


@pytest.fixture(scope="package")
def random_checkpoint(in_process_host, host_work) -> Path:
    from inlay.lab.models import assemble

    parts = assemble.random_checkpoint(0)
    return assemble.write_checkpoint(host_work / "random" / "tiny.safetensors", parts)


@pytest.fixture
def stopped_in_step(in_process_host, monkeypatch):
    """A context in which the node's training ends in a step: by an interrupt, or by the error given."""
    from comfy.model_management import InterruptProcessingException

    from inlay.nodes import subject_finetune

    @contextmanager
    def stopped(number, error=InterruptProcessingException):
        class Stopping(subject_finetune.NodeProgress):
            def __call__(self, step, loss):
                if step == number:
                    raise error

        with monkeypatch.context() as patch:
            patch.setattr(subject_finetune, "NodeProgress", Stopping)
            with pytest.raises(error):
                yield

    return stopped


@pytest.fixture(scope="package")
def parts(random_checkpoint):
    """`.model`, `.clip`, `.vae`, as the stock loader gives them."""
    import comfy.sd

    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(random_checkpoint))
    return SimpleNamespace(model=model, clip=clip, vae=vae)


@pytest.fixture(scope="package")
def pictures():
    """Three references of different sizes with their masks, as list inputs arrive."""
    generator = torch.Generator().manual_seed(0)
    images, masks = [], []
    for height, width in ((64, 64), (72, 64), (64, 90)):
        images.append(torch.rand(1, height, width, 3, generator=generator))
        mask = torch.zeros(1, height, width)
        mask[:, 16:48, 20:50] = 1
        masks.append(mask)
    return images, masks


@pytest.fixture
def store_folder(in_process_host) -> Path:
    """An empty store for this test."""
    folder = in_process_host.models / "loras" / "inlay"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def run(parts):
    """Runs the node and returns its outputs: every input a list, inference mode on."""
    from comfy_api.latest import io

    from inlay.nodes.subject_finetune import SubjectFinetune

    def execute(images, masks, **changes):
        inputs = {
            "class_name": "cat", "token": "sks", "recipe": "DreamCom", "steps": 3, "rank": 4,
            "learning_rate": 1e-3, "batch_size": 2, "seed": 7, "resolution": 64,
        } | changes  # fmt: skip
        number = inputs.pop("node_id", None)
        hidden: Any = number and {"hidden_inputs": {io.Hidden.unique_id: number}}
        node: Any = SubjectFinetune.PREPARE_CLASS_CLONE(hidden)
        wired = inputs.pop("model", parts.model), inputs.pop("clip", parts.clip), inputs.pop("vae", parts.vae)
        with torch.inference_mode():
            return node.execute(
                *([part] for part in wired), images, masks=masks,
                **{name: value if isinstance(value, list) else [value] for name, value in inputs.items()},
            ).result  # fmt: skip

    return execute


@pytest.fixture
def predict():
    """What a MODEL answers to one fixed noisy latent, patches applied as the sampler would."""
    import comfy.model_management

    def answer(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        x, concat, context = (
            torch.randn(1, *shape, generator=generator) for shape in ((4, 8, 8), (5, 8, 8), (77, 768))
        )
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([model])
            network = model.model
            return network.apply_model(x, torch.tensor([1.0]), c_concat=concat, c_crossattn=context).clone()

    return answer


@pytest.fixture
def weights():
    """A copy of all the weights of a MODEL."""
    return lambda model: {key: weight.clone() for key, weight in model.model.state_dict().items()}


@pytest.fixture(scope="package")
def opened(in_process_host):
    """MODEL, CLIP and VAE of one of our family names, made once."""
    made = {}

    def open_family(name: str) -> SimpleNamespace:
        if name not in made:
            with torch.inference_mode():
                made[name] = SimpleNamespace(
                    model=tiny_transformer(name, seed=1), clip=RandomText(name), vae=tiny_vae(name)
                )
        return made[name]

    return open_family


@pytest.fixture
def train(opened, run, pictures):
    """Runs the node on a family and returns its outputs."""

    def execute(name: str, **changes):
        parts = opened(name)
        wired = {
            "model": parts.model,
            "clip": parts.clip,
            "vae": parts.vae,
            "resolution": 64,
            "batch_size": 1,
        }
        shown = changes.pop("images", pictures[0]), changes.pop("masks", pictures[1])
        return run(*shown, **(wired | {"preview_every": 2, "steps": 2} | changes))

    return execute


@pytest.fixture
def answer():
    """What a MODEL answers to one fixed noisy latent, patches applied as the sampler would."""
    import comfy.model_management

    from inlay.host.training import text_values
    from inlay.lab.models.tiny_transformers import random_latent, random_prompt

    def predict(name, model):
        with torch.inference_mode():
            x = random_latent(model, 4, 4)
            values = text_values(random_prompt(name, 5))
            comfy.model_management.load_models_gpu([model])
            made = model.model.extra_conds(noise=x, device=x.device, **values)
            conds = {
                k: v.process_cond(batch_size=1, area=None, device=x.device).cond for k, v in made.items()
            }
            return model.model.apply_model(x, torch.tensor([0.6]), **conds).clone()

    return predict
