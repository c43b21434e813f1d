"""Train the Fill and the edit model of Flux.1's class on latents of the drawn scenes.

    python -m inlay.lab.models.flux --work DIR --task fill
    python -m inlay.lab.models.flux --work DIR --task edit

The network is the host's own class: hidden 256, 2 double and 4 single blocks. Flow matching (Lipman et al.
2023): x_s = (1 - s) x_0 + s noise, the target is noise - x_0. Fill gets the masked picture's latents and the
mask's 64 pixels of each cell as further channels. Edit gets one to three reference latents: the scene with a
grey hole, and up to two photos of the subject from other sides; it is Fill with differences of low rank,
which keep what Fill knows and need little room in the repository. The text encoder learns with Fill for the
share FROZEN of its steps; then its mean weights are written to DIR/text_encoder.pt and stay as they are, for
all models. For the first WINDOWED share of the steps examples are windows of 12 x 12 cells about the hole, at
two thirds of the cost.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import captions, low_rank, quantised, runs, scene_data
from .files import WEIGHTS
from .flux_blocks import compile_blocks
from .host import open_host
from .latents import Latents
from .text_encoder import TextEncoder, ids_of, trained_text_encoder

SHAPE = {
    "image_model": "flux",
    "out_channels": 16,
    "vec_in_dim": None,
    "context_in_dim": 768,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
CHANNELS = {"fill": 16 + 16 + 64, "edit": 16}
STEPS = {"fill": 6200, "edit": 2400}
BATCH = 48
RATE, DECAY = {"fill": 5e-4, "edit": 1e-3}, {"fill": 1e-2, "edit": 1e-3}
MUON_RATE = 2e-3  # that of the blocks' matrices or of their differences, without those of the modulation
RANK = 64  # of the edit model's differences to Fill
WHOLE, FIXED = "img_in", "guidance_in"  # a layer of it that learns all its weights, and one that learns none
FROZEN = 0.18  # share of Fill's first steps after which the text encoder stays as it is
WINDOWED, WINDOW = {"fill": 0.65, "edit": 0.85}, 12
SUBJECT = {"fill": 0.8, "edit": 0.85}  # share of holes about the subject: its photo shows it
PHOTOS = (1, 1, 1, 2, 1, 0, 1, 2)  # photos of the subject in turn, from step to step
SHORT, LONG, EVERY = 16, 77, 16  # text tokens of most batches, and of one in EVERY
# the host gives a Flux model vae_scale (latent - vae_shift): here that is the encoder's own scale
VAE_SCALE, VAE_SHIFT = 0.3611, 0.1159


def new_flux(task: str, seed: int = 0) -> Any:
    """A fresh float32 transformer of Flux.1's class that can be trained."""
    open_host()
    import comfy.cli_args

    comfy.cli_args.args.use_pytorch_cross_attention = True
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    torch.manual_seed(seed)
    shape = {name: list(value) if isinstance(value, list) else value for name, value in SHAPE.items()}
    build: Any = Flux
    model: Any = build(
        **shape, in_channels=CHANNELS[task], dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            if name.endswith(("mod.lin", "modulation.lin", "adaLN_modulation.1", "final_layer.linear")):
                nn.init.zeros_(layer.weight)
        elif isinstance(layer, nn.RMSNorm):
            nn.init.ones_(layer.weight)
        elif isinstance(layer, nn.LayerNorm):
            # residuals are added in place to what the norm keeps for its gradient
            layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].clone(),))
    # guidance has no effect: the model is used with classifier-free guidance
    nn.init.zeros_(model.guidance_in.out_layer.weight)
    model.guidance_in.requires_grad_(False)
    return model


def edit_state(fill: Mapping[str, Tensor], change: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The edit model's weights: Fill's with a change; of its input layer those of the noisy latents."""
    # tokens list channel by channel, four values each; the noisy latents come first
    state = {**fill, "img_in.weight": fill["img_in.weight"][:, : CHANNELS["edit"] * 4]}
    return low_rank.changed(state, change or {})


def mask_channels(pixels: Tensor) -> Tensor:
    """A mask in pixels (B, 1, H, W) as the host gives it to Fill: (B, 64, H / 8, W / 8)."""
    return F.pixel_unshuffle(pixels, 8)


def sample_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,) in (0, 1): logit-normal (Esser et al. 2024, section 3.1), much noise."""
    return torch.sigmoid(0.9 + 1.2 * torch.randn(count, generator=generator))


def windows_of(rng: np.random.Generator, batch: dict[str, Tensor], window: int) -> dict[str, Tensor]:
    """The `window` x `window` cells about the hole of each example, on the grid of tokens (2 x 2 cells)."""
    rows: dict[str, list[Tensor]] = {name: [] for name in batch}
    for index, hole in enumerate(batch["hole"]):
        start = []
        for axis in (1, 0):
            cells = hole[0].any(axis).nonzero()
            side = hole.shape[-1 - axis]
            first, last = (int(cells[0]), int(cells[-1])) if len(cells) else (side // 2, side // 2)
            wanted = (first + last + 1) // 2 - window // 2 + int(rng.integers(-2, 3))
            # the hole lies inside where it fits
            lowest, highest = max(last + 1 - window, 0), min(first, side - window)
            lowest, highest = -(-lowest // 2) * 2, highest // 2 * 2
            if lowest > highest:
                lowest, highest = 0, (side - window) // 2 * 2
            start.append(int(np.clip(wanted // 2 * 2, lowest, highest)))
        for name, values in batch.items():
            k = 8 if name == "pixels" else 1
            top, left = (k * s for s in start)
            rows[name].append(values[index, :, top : top + k * window, left : left + k * window])
    return {name: torch.stack(values) for name, values in rows.items()}


class TokenLookHead(nn.Module):
    """Predicts what a token's cells show from the image tokens: an auxiliary loss of the training."""

    def __init__(self, width: int, outputs: int = 64):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))
        self.features: Any = None

    def keep(self, module, inputs, output) -> None:
        """A forward hook of a double block; the later blocks add in place, so it keeps a copy."""
        self.features = output[0].clone()

    def forward(self, look: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean square error of the look (B, 16, h, w)."""
        count = look.shape[-1] * look.shape[-2] // 4
        told = self.head(self.features[:, :count].float())
        side = look.shape[-1] // 2
        told = F.pixel_shuffle(told.transpose(1, 2).reshape(len(look), -1, look.shape[-2] // 2, side), 2)
        return (weight * (told - look).square()).mean()


class Training:
    """The modules of one task's training and its loss at any step."""

    def __init__(
        self,
        work: Path,
        task: str,
        steps: int = 0,
        seed: int = 0,
        compiled: bool = False,
        shipped: bool = False,
    ):
        self.work, self.task, self.seed = work, task, seed
        self.model, self.look = new_flux(task, seed), TokenLookHead(SHAPE["hidden_size"])
        if not (work / f"{task}.pt").exists():
            if task == "edit":
                self.start_from_fill()
            elif shipped:
                self.model.load_state_dict(quantised.load(WEIGHTS / "fill.safetensors"))
                runs.save(quantised.load(WEIGHTS / "text.safetensors"), work / "text_encoder.pt")
        if task == "edit":
            low_rank.add_differences(self.model, RANK, (WHOLE, FIXED))
        self.model.double_blocks[-1].register_forward_hook(self.look.keep)
        if compiled:
            compile_blocks(self.model)
        modules: dict[str, nn.Module] = {"model": self.model, "look": self.look}
        known = task == "edit" or (work / "text_encoder.pt").exists()
        self.encoder = trained_text_encoder(work) if known else TextEncoder(seed)
        if task == "fill":  # always among what is trained: a run that is resumed has the same parameters
            modules["text"] = self.encoder.requires_grad_(True)
        self.encoder.to(runs.device())
        blocks = (*self.model.double_blocks.named_parameters(), *self.model.single_blocks.named_parameters())
        self.fit = runs.Fit(
            work / f"{task}.pt", modules, steps or STEPS[task], RATE[task], average=0.998, decay=DECAY[task],
            hidden=[p for name, p in blocks if p.requires_grad and p.ndim == 2 and "mod" not in name],
            hidden_rate=MUON_RATE,
        )  # fmt: skip
        self.frozen = 0 if known else int(FROZEN * self.fit.total)
        self.data: Latents | None = None

    def start_from_fill(self) -> None:
        """Take Fill's mean weights; of its input layer those of the channels that this model has.

        Without a training of Fill they are the shipped ones.
        """
        if (self.work / "fill.pt").exists():
            other = Training(self.work, "fill", seed=self.seed)
            with runs.Averaged(other.fit):
                state = {name: value.clone() for name, value in other.model.state_dict().items()}
                self.look.load_state_dict(other.look.state_dict())
        else:
            state = quantised.load(WEIGHTS / "fill.safetensors")
        self.model.load_state_dict(edit_state(state))

    def freeze_text(self) -> None:
        """Write the text encoder's mean weights for the other models, and use them from here on."""
        with runs.Averaged(self.fit):
            state = {name: value.clone() for name, value in self.encoder.state_dict().items()}
        self.encoder.load_state_dict(state)
        own = {id(p) for p in self.encoder.parameters()}
        for kept, parameter in zip(self.fit.mean, self.fit.parameters, strict=True):
            if id(parameter) in own:
                kept.copy_(parameter.data)
        runs.save(state, self.work / "text_encoder.pt")

    def batch(
        self, rng: np.random.Generator, long: bool, photos_each: int = 1, window: int = 0
    ) -> dict[str, Any]:
        assert self.data
        tensors = self.data.tensors
        scene, hole = self.data.pick(rng, BATCH, subject=SUBJECT[self.task])
        content = tensors["content"][scene, hole].tolist()
        prompts, photos = [], []
        for index, c in zip(scene.tolist(), content, strict=True):
            photos.append(bool(photos_each) and c == 0 and rng.random() < 0.85)
            prompts.append(captions.batch_prompt(rng, self.data.things[index], c, long))
        # a photo makes words unnecessary: often there is only the class, or nothing
        if self.task == "edit":
            for i, (index, has) in enumerate(zip(scene.tolist(), photos, strict=True)):
                if has and rng.random() < 0.5:
                    prompts[i] = (
                        f"a photo of a {self.data.things[index][0]['kind']}" if rng.random() < 0.7 else ""
                    )
        first = torch.from_numpy(rng.integers(2, size=BATCH))
        shown = torch.tensor(photos)[:, None, None, None]
        batch = {
            "latent": tensors["latent"][scene].float(),
            "masked": tensors["masked"][scene, hole].float(),
            "hole": tensors["hole"][scene, hole][:, None].float(),
            "pixels": scene_data.unpacked(tensors["pixels"][scene, hole]),
            "look": tensors["look"][scene].float(),
        }
        if window:
            batch = windows_of(rng, batch, window)
        batch = {name: values.to(runs.device()) for name, values in batch.items()}
        shown = shown.to(runs.device())
        return batch | {
            "photos": [
                torch.where(shown, tensors["photo"][scene, view].to(runs.device()).float(), 0.0)
                for view in (first, 1 - first)[:photos_each]
            ],
            "prompts": prompts,
        }

    def loss_at(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng, generator = runs.draws(self.seed + {"fill": 1, "edit": 2}[self.task], step)
        if step % 100 == 0 or self.data is None:
            self.data = self.data or Latents(self.work, 16)
            self.data.refresh()
        if step == self.frozen > 0:
            self.freeze_text()
        long = step % EVERY == EVERY - 1
        windowed = step < WINDOWED[self.task] * self.fit.total
        batch = self.batch(rng, long, PHOTOS[step % len(PHOTOS)], WINDOW if windowed else 0)
        noise = torch.randn(batch["latent"].shape, generator=generator).to(runs.device())
        sigma = sample_sigmas(BATCH, generator).to(runs.device())
        latent = batch["latent"]
        s = sigma.view(-1, 1, 1, 1)
        x = (1 - s) * latent + s * noise
        weight = 0.2 + 0.8 * batch["hole"]
        with runs.half_precision():
            with torch.set_grad_enabled(step < self.frozen):
                ids = ids_of(batch["prompts"])[:, : LONG if long else SHORT]
                context = self.encoder(ids.to(runs.device())).float()
            output = velocity(self.model, self.task, x, sigma, context, batch)
        error = (weight * (output.float() - (noise - latent)).square()).mean()
        aside = self.look(batch["look"], weight)
        return error + aside, {"error": error.item(), "look": aside.item()}

    def run(self) -> None:
        import comfy.model_management

        # the fused rotary embedding has no gradient; the host does without it while it trains
        comfy.model_management.in_training = True
        try:
            with runs.training_attention():
                self.fit.run(self.loss_at)
        finally:
            comfy.model_management.in_training = False


def velocity(model, task: str, x: Tensor, sigma: Tensor, context: Tensor, given: dict[str, Any]) -> Tensor:
    """The model's noise - x_0 for latents x (B, 16, h, w) at noise levels (B,)."""
    guidance = torch.full((len(x),), 3.5, device=x.device)
    if task != "edit":
        x = torch.cat([x, given["masked"], mask_channels(given["pixels"])], 1)
        return model(x, sigma, context, guidance=guidance)
    return model(x, sigma, context, guidance=guidance, ref_latents=[given["masked"], *given["photos"]])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--task", choices=tuple(STEPS), required=True)
    parser.add_argument("--steps", type=int, default=0, help="0: the task's default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="without a C++ compiler: a quarter slower")
    parser.add_argument("--shipped", action="store_true", help="Fill goes on from the repository's weights")
    a = parser.parse_args()
    Training(a.work, a.task, a.steps, a.seed, not a.eager, a.shipped).run()


if __name__ == "__main__":
    main()
