"""How good are the tiny models of the tiny world? Held-out prompts, painted into held-out scenes.

    python dev.py lab quality [--work DIR] [--models FOLDER] [--prompts 200] [--only unet fill edit]

Each scene is rendered without its subject; a model paints the caption into the box that the subject and its
shadow would take (the edit model also gets a photo of the subject from another side). The classifier,
trained on renderings alone, gives class and colour. Beside it: the share of the truth's mean absolute
gradient in the box, the colour step at the box's edge less the truth's in 1/255, and how well the truth
passes the autoencoders. The target of each figure stands in its column's name. Writes quality.md,
quality.json and a sheet of 24 pictures for each model. Models come from FOLDER, else they are assembled from
the trainings in DIR.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.boxes import Box
from ...imaging.composite import paste_back
from ...imaging.latent_mask import inpaint_pictures
from ...imaging.masks import fill_box
from .. import scenes
from ..models import autoencoders, scene_data
from ..models.classifier import SceneClassifier, Verdict, trained_classifier
from ..models.host import compute_in_own_type, open_host
from . import picture_grid
from .result_cache import fingerprint, pictures_once
from .study import study_folders, study_parser, write_table

HELD_OUT = 424_243  # no training draws from this seed
BATCH = 25
# sampler, scheduler, steps and guidance of each model. Of 40 prompts in other scenes (seed 777) Fill painted
# class and colour right in .55 with guidance 4, .675 with 7 and .625 with 10.
SAMPLING: dict[str, tuple[str, str, int, float]] = {
    "unet": ("dpmpp_2m_sde", "sgm_uniform", 20, 4.0),
    "fill": ("euler", "simple", 20, 7.0),
    "edit": ("euler", "simple", 20, 3.0),
}
# The others compute in float32. In bfloat16 the UNet takes half the time on CPU cores that know this format.
PRECISION = {"unet": torch.bfloat16}


@dataclass(frozen=True)
class Task:
    """A background (H, W, 3) in [0, 1], the box to fill, what belongs there, its photo and the truth.

    `outline` (H, W) is 1 where the thing is seen in the truth.
    """

    background: Tensor
    box: Box
    thing: scenes.Thing
    photo: Tensor
    truth: Tensor
    outline: Tensor

    @property
    def hole(self) -> Tensor:
        return fill_box(self.box, *self.background.shape[:2])[0]


def as_image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).float() / 255


def held_out_tasks(count: int) -> list[Task]:
    """Every class in every colour as evenly as `count` allows; all else at random."""
    colours, tasks = list(scenes.COLOURS), []
    for index in range(count):
        rng = np.random.default_rng([HELD_OUT, index])
        kind = scenes.CLASSES[index % len(scenes.CLASSES)]
        colour = colours[index // len(scenes.CLASSES) % len(colours)]
        scene = scenes.sample_scene(rng, subject=scenes.sample_thing(rng, kind=kind, colour=colour))
        tasks.append(task_of(scene, rng))
    return tasks


def task_of(scene: scenes.Scene, rng: np.random.Generator) -> Task:
    """The task of painting a scene's subject into it; `rng` draws the photo."""
    truth, empty = scenes.render(scene), scenes.render(replace(scene, subject=None))
    reach = truth.reach()
    assert reach
    assert scene.subject
    photo = as_image(scene_data.photo(rng, scene.subject))
    outline = torch.from_numpy(truth.mask > 0.5).float()
    return Task(as_image(empty.image), Box(*reach), scene.subject, photo, as_image(truth.image), outline)


def stacked(tasks: Sequence[Task], name: str) -> Tensor:
    return torch.stack([getattr(task, name) for task in tasks])


def model_file(kind: str, models: Path) -> Path:
    """Where `assemble` writes the model of that kind."""
    if kind == "unet":
        return models / "checkpoints" / "inlay_tiny.safetensors"
    return models / "diffusion_models" / f"inlay_tiny_{kind}.safetensors"


def load_checkpoint(path: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a tiny UNet's checkpoint, the UNet computed in its PRECISION."""
    import comfy.sd

    options = {"dtype": PRECISION["unet"]}
    loaded: Any = comfy.sd.load_checkpoint_guess_config(str(path), model_options=options)
    model, clip, vae = loaded[:3]
    compute_in_own_type(model)
    return model, clip, vae


class Inpainter:
    """A tiny model with its autoencoder and text encoder, opened by the host's own loaders."""

    def __init__(self, kind: str, models: Path):
        open_host()
        import comfy.sd
        import comfy.utils

        self.kind, self.files = kind, [model_file(kind, models)]
        if kind == "unet":
            self.model, self.clip, self.vae = load_checkpoint(self.files[0])
        else:
            text, vae = (
                models / "text_encoders" / "inlay_tiny_clip.safetensors",
                models / "vae" / "inlay_tiny_16.safetensors",
            )
            self.files += [text, vae]
            self.model = comfy.sd.load_diffusion_model(str(self.files[0]))
            self.clip: Any = comfy.sd.load_clip([str(text)], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)
            self.vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(vae)))
        self.opened = fingerprint(*self.files)

    def fingerprint(self, *classifier: SceneClassifier) -> str:
        """Names what decides a picture's numbers beside a study's own choices."""
        precision = str(PRECISION.get(self.kind, torch.float32))
        return fingerprint(self.opened, *classifier, str(SAMPLING[self.kind]), precision)

    def encode(self, prompt: str) -> Tensor:
        """The rows (1, L, 768) of a prompt."""
        return self.clip.encode_from_tokens(self.clip.tokenize(prompt))

    @torch.inference_mode()
    def sample(
        self,
        images: Tensor,
        holes: Tensor,
        prompts: Sequence[str] | Tensor,
        photos: Tensor | None,
        seed: int,
        model: Any = None,
        steps: int = 0,
        repaint: bool = False,
        uncond: Tensor | None = None,
        cfg: float = 0.0,
    ) -> Tensor:
        """Latents (B, C, h, w) of images (B, H, W, 3) in [0, 1], their holes (B, H, W) painted.

        `prompts` are words or their encoded rows (B, L, 768), `uncond` the rows (1, L, 768) that stand for
        none. `model` is a patched clone of the painter's own; steps 0 and cfg 0 are those of SAMPLING. With
        `repaint` the whole picture is painted anew, which the edit model can do: it reads the scene as a
        reference.
        """
        import comfy.sample

        sampler, scheduler, usual, guidance = SAMPLING[self.kind]
        image, masked, hole = inpaint_pictures(images, holes, 8)
        if self.kind == "edit":
            shown = [] if photos is None else [self.vae.encode(photos)]
            condition = {"reference_latents": [self.vae.encode(masked), *shown]}
        else:
            condition = {"concat_latent_image": self.vae.encode(masked), "concat_mask": hole[:, None]}
        latent = self.vae.encode(image)
        rows = prompts if isinstance(prompts, Tensor) else torch.cat([self.encode(p) for p in prompts])
        none = self.encode("") if uncond is None else uncond
        return comfy.sample.sample(
            model or self.model, comfy.sample.prepare_noise(latent, seed), steps or usual, cfg or guidance,
            sampler, scheduler, [[rows, condition]], [[none, condition]], latent,
            noise_mask=None if repaint else hole[:, None],
            disable_pbar=True, seed=seed,
        )  # fmt: skip

    @torch.inference_mode()
    def decode(self, latents: Tensor, images: Tensor) -> Tensor:
        """Pictures of the latents in [0, 1], as large as `images`."""
        return self.vae.decode(latents)[:, : images.shape[1], : images.shape[2]].clamp(0, 1)

    def paint(
        self, images: Tensor, holes: Tensor, *given: Any, repaint: bool = False, **options: Any
    ) -> Tensor:
        """Fill holes of images; without `repaint` all else keeps its bits. Arguments as in `sample`."""
        decoded = self.decode(self.sample(images, holes, *given, repaint=repaint, **options), images)
        return decoded if repaint else paste_back(images, decoded, holes)

    def paint_all(self, tasks: Sequence[Task], folder: Path | None = None) -> Tensor:
        """The captions painted into the boxes (n, H, W, 3), in batches that are kept in `folder`."""
        painted = []
        for start in range(0, len(tasks), BATCH):
            part = tasks[start : start + BATCH]
            images, holes, photos = (stacked(part, name) for name in ("background", "hole", "photo"))
            prompts = [scenes.caption(task.thing) for task in part]
            name = fingerprint(self.fingerprint(), images, holes, photos, str(prompts), str(start))
            painted.append(
                pictures_once(
                    folder, name, lambda given=(images, holes, prompts, photos, start): self.paint(*given)
                )
            )
            print(f"{self.kind}: painted {start + len(part)} of {len(tasks)}", flush=True)
        return torch.cat(painted)


def gradient_share(images: Tensor, tasks: Sequence[Task]) -> list[float]:
    """The mean absolute gradient in each task's box, as a share of the truth's."""
    shares = []
    for image, task in zip(images, tasks, strict=True):
        rows, columns = task.box.slices
        mine, true = (autoencoders.gradient(x[rows, columns].movedim(-1, 0)) for x in (image, task.truth))
        shares.append(float(mine / true))
    return shares


def edge_step(images: Tensor, tasks: Sequence[Task]) -> list[float]:
    """Mean colour step across each box's border, in 1/255."""
    steps = []
    for image, task in zip(images, tasks, strict=True):
        across = (task.hole.diff(dim=0) != 0)[..., None], (task.hole.diff(dim=1) != 0)[..., None]
        jumps = (image.diff(dim=0).abs(), image.diff(dim=1).abs())
        total = sum(float((jump * at).sum()) for jump, at in zip(jumps, across, strict=True))
        steps.append(255 * total / 3 / max(sum(float(at.sum()) for at in across), 1))
    return steps


def psnr(images: Tensor, truth: Tensor) -> list[float]:
    return (-10 * (images - truth).square().mean((1, 2, 3)).clamp(min=1e-10).log10()).tolist()


def scored(
    classifier: SceneClassifier, images: Tensor, tasks: Sequence[Task]
) -> tuple[dict[str, list[float]], list[Verdict]]:
    """The measures of pictures (n, H, W, 3), and what the classifier names in their boxes."""
    verdicts = classifier.describe(images.movedim(-1, 1), stacked(tasks, "hole"))
    right = {
        name: [
            float(getattr(v, name) == getattr(t.thing, name)) for v, t in zip(verdicts, tasks, strict=True)
        ]
        for name in ("kind", "colour", "pattern", "accessory")
    }
    true_steps = edge_step(stacked(tasks, "truth"), tasks)
    return {
        "class": right["kind"],
        "colour": right["colour"],
        "class and colour": [k * c for k, c in zip(right["kind"], right["colour"], strict=True)],
        "pattern": right["pattern"],
        "accessory": right["accessory"],
        "gradient (>= .85)": gradient_share(images, tasks),
        "step at the edge (<= 5)": [
            mine - true for mine, true in zip(edge_step(images, tasks), true_steps, strict=True)
        ],
    }, verdicts


def through(vae: Any, images: Tensor) -> Tensor:
    """Pictures (n, H, W, 3) encoded and decoded."""
    with torch.inference_mode():
        return torch.cat([vae.decode(vae.encode(part)).clamp(0, 1) for part in images.split(BATCH)]).cpu()


def sheet(title: str, painted: Tensor, tasks: Sequence[Task], verdicts: Sequence[Verdict], count: int = 24):
    """Pictures drawn at random, not chosen; the text of those whose class or colour is wrong is red."""
    cells, side = [], 176
    for i in np.random.default_rng(HELD_OUT).permutation(len(tasks))[:count]:
        task, verdict = tasks[i], verdicts[i]
        good = verdict.kind == task.thing.kind and verdict.colour == task.thing.colour
        lines = [
            scenes.caption(task.thing).removeprefix("a photo of "),
            f"classifier: {verdict.colour} {verdict.pattern} {verdict.kind}",
        ]
        panels = [picture_grid.shown(task.background, side, task.box), picture_grid.shown(painted[i], side)]
        cells.append(picture_grid.Cell(panels, lines, good))
    return picture_grid.grid(title, cells, 4)


def main():
    parser = study_parser(__doc__, "quality")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--only", nargs="*", choices=list(SAMPLING), help="default: what is trained")
    a = parser.parse_args()
    out, models = study_folders(a)
    kinds = a.only or [kind for kind in SAMPLING if model_file(kind, models).exists()]
    classifier, tasks = trained_classifier(a.work), held_out_tasks(a.prompts)
    truth = stacked(tasks, "truth")
    rows: dict[str, dict[str, list[float]]] = {}
    for kind in kinds:
        painter = Inpainter(kind, models)
        coded = f"the truth through the autoencoder of {4 if kind == 'unet' else 16} channels"
        if coded not in rows:
            recoded = through(painter.vae, truth)
            rows[coded] = {
                **scored(classifier, recoded, tasks)[0],
                "PSNR dB (>= 29)": psnr(recoded, truth),
            }
        painted = painter.paint_all(tasks, out / "pictures")
        target = ">= .90" if kind == "unet" else ">= .85"
        numbers, verdicts = scored(classifier, painted, tasks)
        rows[f"painted by {kind} (class and colour {target})"] = numbers
        title = f"{kind}: held-out scenes with the box | result"
        sheet(title, painted, tasks, verdicts).save(out / f"quality_{kind}.jpg", quality=88)
    rows["the truth"] = scored(classifier, truth, tasks)[0]
    notes = [f"{a.prompts} held-out prompts and scenes of {scenes.SIZE} px, seed {HELD_OUT}."]
    notes += ["{}: {} {}, {} steps, guidance {:g}.".format(kind, *SAMPLING[kind]) for kind in kinds]
    write_table(Table("Quality of the tiny models", rows, notes), out, "quality")


if __name__ == "__main__":
    main()
