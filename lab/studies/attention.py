"""What masked attention does in the tiny world (DreamCom, sections 4.2 and 4.3, and its supplement).

    python dev.py lab attention [--work DIR] [--models FOLDER] [--only words light photo]
        [--steps N] [--pilot]

words: is the thing painted when the background holds one of its class, colour and pattern? Words everywhere
       against words in the box only, each with and without that twin; the interaction is the claim. For the
       UNet and for Fill.
light: the UNet's box in a room with a lamp at one side, by masked self-attention layers: the seam at the
       box's edge, and the error of the shading's direction.

photo: the edit model paints the whole picture anew, from the scene and a photo of the subject, which acts
       everywhere or in the box only. Its influence is how far the latents move when the photo is one of
       another thing, with the same words and noise, outside and inside the box; also how much of the picture
       outside the box changes at all, and how much the box looks like the subject.

--pilot takes 20 scenes and prints the manipulation check: without a mask the thing must be missing beside
its twin in 15 of 100 scenes, or there is no fault to mend. Writes a table (Markdown and JSON) and a picture
for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.composite import paste_back
from ...imaging.object_picture import subject_crops
from .. import scenes
from ..models.classifier import MARGIN, NOTHING, SIZE, SceneClassifier, trained_classifier
from . import picture_grid
from .quality import Inpainter, Task, edge_step, stacked, task_of
from .result_cache import fingerprint, pictures_once
from .study import change, study_folders, study_parser, write_table

Masking = dict[str, Any]  # options of mask_attention; none: the model as it is

BATCH, SHOWN, PILOT = 20, 8, 20
COUNTS = {"words": 100, "light": 240, "photo": 100}
WORDS: dict[str, Masking] = {"words everywhere": {}, "words in the box only": {"self_layers": "none"}}
LAYERS: dict[str, Masking] = {
    "(a) none": {"self_layers": "none"},
    "(b) all": {"self_layers": "all"},
    "(c) the decoder's outer": {"self_layers": "decoder_outer"},
    "(d) all but (c), the paper's": {"self_layers": "paper"},
}
# what the paper says of them: open outer layers harmonise; and which to choose
CHOICES = (
    ("(d) all but (c), the paper's", "(b) all"),
    ("(c) the decoder's outer", "(d) all but (c), the paper's"),
)
ONE_BOX: Masking = {"photos": [(1, 1.0)]}
PHOTO: dict[str, Masking] = {
    "photo everywhere": {},
    "photo and words in the box only": {"self_layers": "none", "operator": "renormalised", **ONE_BOX},
    "the same, and the box apart": {"self_layers": "all", "operator": "renormalised", **ONE_BOX},
    "the same, masked after softmax": {"self_layers": "all", "operator": "paper", **ONE_BOX},
}
MISSING_CHECK = 0.15
TOKEN, OUTSIDE = 16, "influence outside"  # pixels of a token's side
SEEDS = {"words": 41, "light": 42, "photo": 43}


def twin_scenes(seed: int, tries: int = 200) -> tuple[scenes.Scene, scenes.Scene]:
    """A scene whose background holds a thing of the subject's looks clear of it, and the one without it."""
    rng = np.random.default_rng([SEEDS["words"], seed])
    for _ in range(tries):
        scene = scenes.sample_scene(rng, scenes.sample_thing(rng), others=0, scale=(0.40, 0.50))
        subject = scene.subject
        assert subject
        looks = {name: getattr(subject, name) for name in ("kind", "colour", "pattern")}
        other = scenes.sample_thing(rng, **looks, accessory="none")
        beside = scenes.sample_scene(rng, other, scene.room, others=0, scale=(0.36, 0.44)).subject
        assert beside
        both = replace(scene, others=(beside,))
        picture = scenes.render(both)
        reach = picture.reach()
        if not reach or len(picture.masks) < 2:
            continue
        top, left, bottom, right = reach
        whole = float(picture.masks[1].sum())
        if whole > 200 and float(picture.masks[1][top:bottom, left:right].sum()) < 0.01 * whole:
            return both, scene
    raise RuntimeError(f"No scene with a twin was found within {tries} tries.")


def photos(seed: int) -> np.random.Generator:
    """What draws the photo of a task's subject."""
    return np.random.default_rng([seed, 7])


def lit_scene(seed: int) -> scenes.Scene:
    """A plain thing with a lamp at one side."""
    rng = np.random.default_rng([SEEDS["light"], seed])
    thing = scenes.sample_thing(rng, pattern="plain", accessory="none", emblems=())
    return scenes.sample_scene(rng, thing, others=0, scale=(0.44, 0.60))


@dataclass
class SceneBench:
    """Paints tasks with a model of one kind, the attention masked in one way."""

    painter: Inpainter
    steps: int = 0  # 0: the usual number
    folder: Path | None = None  # where pictures are kept, for a run that goes on

    def latents(
        self, tasks: Sequence[Task], masking: Masking, photos: Tensor, repaint: bool = False, seed: int = 0
    ) -> Tensor:
        """Latents (n, C, h, w) of the tasks' words and these photos (n, H, W, 3), before they are decoded.

        Every BATCH has a seed of its own, the first one `seed`.
        """
        from ...attention.model_patch import mask_attention

        found = []
        for start in range(0, len(tasks), BATCH):
            part, shown = tasks[start : start + BATCH], photos[start : start + BATCH]
            images, holes = (stacked(part, name) for name in ("background", "hole"))
            prompts = [scenes.caption(task.thing) for task in part]
            model = mask_attention(self.painter.model, [holes], **masking) if masking else None
            found.append(
                self.painter.sample(images, holes, prompts, shown, seed + start, model, self.steps, repaint)
            )
        return torch.cat(found)

    def decode(self, latents: Tensor, tasks: Sequence[Task]) -> Tensor:
        """Pictures (n, H, W, 3) of the latents, as large as the tasks' backgrounds."""
        images = stacked(tasks, "background")
        return torch.cat([self.painter.decode(part, images) for part in latents.split(BATCH)]).cpu()

    def paint(self, tasks: Sequence[Task], masking: Masking, repaint: bool = False) -> Tensor:
        """The tasks' pictures; without `repaint` all but the holes keeps its bits."""

        def painted(part: Sequence[Task], start: int) -> Tensor:
            latents = self.latents(part, masking, stacked(part, "photo"), repaint, start)
            decoded = self.decode(latents, part)
            if repaint:
                return decoded
            return paste_back(stacked(part, "background"), decoded, stacked(part, "hole"))

        pictures = []
        for start in range(0, len(tasks), BATCH):
            part = tasks[start : start + BATCH]
            seen = [stacked(part, name) for name in ("background", "hole", "photo")]
            words = [scenes.caption(task.thing) for task in part]
            options = (masking, self.steps, repaint, start, words)
            name = fingerprint(self.painter.fingerprint(), *seen, str(options))
            pictures.append(
                pictures_once(self.folder, name, lambda part=part, start=start: painted(part, start))
            )
        return torch.cat(pictures)


def shading(images: Tensor, masks: Tensor) -> Tensor:
    """How much brighter the right half of the thing is than its left half, as a share of its brightness.

    Args:
        images: (B, H, W, 3) in [0, 1].
        masks: (B, H, W), the thing's outline; its halves lie left and right of the outline's mean column.

    Returns:
        (B,): (mean of the right half - mean of the left half) / mean of both.
    """
    light = images @ images.new_tensor([0.2126, 0.7152, 0.0722])
    columns = torch.arange(images.shape[2], dtype=images.dtype)
    middle = (masks * columns).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)
    right = masks * (columns > middle[:, None, None])
    left = masks - right
    halves = [(light * part).sum((1, 2)) / part.sum((1, 2)).clamp(min=1) for part in (left, right)]
    return 2 * (halves[1] - halves[0]) / (halves[0] + halves[1]).clamp(min=1e-6)


def words_study(bench: SceneBench, classifier: SceneClassifier, count: int) -> tuple[Table, Image.Image]:
    """Is the thing there? With and without a twin, words everywhere or in the box only."""
    rows: dict[str, dict[str, list[float]]] = {}
    shown: dict[str, Tensor] = {}
    backgrounds: list[Task] = []
    pairs = [twin_scenes(seed) for seed in range(count)]
    for place, which in {"with a twin": 0, "without": 1}.items():
        tasks = [task_of(pair[which], photos(SEEDS["words"])) for pair in pairs]
        for way, masking in WORDS.items():
            images = bench.paint(tasks, masking)
            verdicts = classifier.describe(images.movedim(-1, 1), stacked(tasks, "hole"))
            rows[f"{way}, {place}"] = {
                "missing": [float(v.kind == NOTHING) for v in verdicts],
                "right class": [float(v.kind == t.thing.kind) for v, t in zip(verdicts, tasks, strict=True)],
            }
            if which == 0:
                shown[way] = images
                backgrounds = tasks
    everywhere, inside = WORDS
    table = Table(f"Words in the box only, {bench.painter.kind}", rows)
    gain = [
        np.subtract(rows[f"{everywhere}, {place}"]["missing"], rows[f"{inside}, {place}"]["missing"])
        for place in ("with a twin", "without")
    ]
    rows["interaction"] = {"missing": (gain[0] - gain[1]).tolist()}
    check = float(np.mean(rows[f"{everywhere}, with a twin"]["missing"]))
    notes = [
        f"{count} scenes, seed {SEEDS['words']}. Missing: the classifier names nothing in the box.",
        f"Manipulation check: missing beside a twin without a mask {check:.3f}, needed {MISSING_CHECK}.",
        "Interaction: how many fewer are missing with the mask beside a twin, less the same without one.",
        change(table, f"{inside}, with a twin", f"{everywhere}, with a twin", "missing"),
        change(table, f"{inside}, with a twin", f"{everywhere}, with a twin", "right class"),
    ]
    return replace(table, notes=notes), grid_of(backgrounds, shown)


def light_study(bench: SceneBench, count: int) -> tuple[Table, Image.Image]:
    """Seam and direction of light by the self-attention layers that are masked."""
    rows: dict[str, dict[str, list[float]]] = {}
    shown: dict[str, Tensor] = {}
    lit = [lit_scene(seed) for seed in range(count)]
    tasks = [task_of(scene, photos(SEEDS["light"])) for scene in lit]
    masks = torch.stack([torch.from_numpy(scenes.render(scene).mask > 0.5).float() for scene in lit])
    truth = stacked(tasks, "truth")
    wanted, true_step = shading(truth, masks), edge_step(truth, tasks)
    for way, masking in LAYERS.items():
        images = bench.paint(tasks, masking)
        got = shading(images, masks)
        step = [mine - true for mine, true in zip(edge_step(images, tasks), true_step, strict=True)]
        rows[way] = {
            "step at the edge": step,
            "error of the shading": (got - wanted).abs().tolist(),
            "right side": (got.sign() == wanted.sign()).float().tolist(),
        }
        shown[way] = images
    table, (unmasked, *others) = Table("A lamp at one side, by self-attention layers masked", rows), LAYERS
    notes = [
        f"{count} scenes, seed {SEEDS['light']}. Step at the edge: in 1/255, less the true rendering's.",
        "Shading: how much brighter the right half of the thing's true outline is than the left, as a share.",
        f"Manipulation check: the true shading's mean size is {float(wanted.abs().mean()):.3f}.",
    ]
    pairs = [*((way, unmasked) for way in others), *CHOICES]
    notes += [change(table, *pair, measure) for pair in pairs for measure in table.measures]
    return replace(table, notes=notes), grid_of(tasks, shown)


def photo_study(bench: SceneBench, classifier: SceneClassifier, count: int) -> tuple[Table, Image.Image]:
    """What the photo of the subject changes outside the box, and how well it is followed inside."""
    rng = np.random.default_rng(SEEDS["photo"])
    tasks = [task_of(scenes.sample_scene(rng), rng) for _ in range(count)]
    background, outside = stacked(tasks, "background"), 1 - stacked(tasks, "hole")
    photo = stacked(tasks, "photo")
    others = photo.roll(1, 0)  # of another task's thing
    touched = F.max_pool2d(1 - outside[:, None], TOKEN)  # tokens with a pixel of the hole
    with torch.no_grad():
        wanted = classifier(subject_crops(photo.movedim(-1, 1), torch.ones(photo.shape[:3]), SIZE, MARGIN))
    rows: dict[str, dict[str, list[float]]] = {}
    shown: dict[str, Tensor] = {}
    for way, masking in PHOTO.items():
        latents, other = (
            bench.latents(tasks, masking, shots, repaint=True).cpu() for shots in (photo, others)
        )
        moved = (latents - other).abs().mean(1, keepdim=True) / latents.std()
        inside = F.interpolate(touched, latents.shape[-2:])
        shown[way] = images = bench.decode(latents, tasks)
        area = outside.sum((1, 2)).clamp(min=1)  # a hole may be the whole picture
        altered = ((images - background).abs().mean(-1) * outside).sum((1, 2)) / area
        with torch.no_grad():
            own = classifier(subject_crops(images.movedim(-1, 1), 1 - outside, SIZE, MARGIN))
        rows[way] = {
            OUTSIDE: mean_over(moved, 1 - inside),
            "influence inside": mean_over(moved, inside),
            "change outside, 1/255": (255 * altered).tolist(),
            "subject similarity": (own * wanted).sum(1).tolist(),
        }
    table, (everywhere, *masked) = Table("A photo that acts in the box only", rows), PHOTO
    left = [np.mean(rows[way][OUTSIDE]) / np.mean(rows[everywhere][OUTSIDE]) for way in masked]
    notes = [
        f"{count} scenes, seed {SEEDS['photo']}. Influence: mean absolute difference of the latents between"
        " this photo and one of another thing, in standard deviations of the latents; outside: tokens without"
        " a pixel of the hole. Change outside: mean difference to the background; similarity to the photo by"
        f" {classifier.name}.",
        *(
            f"{way}: {share:.3f} of the influence outside is left."
            for way, share in zip(masked, left, strict=True)
        ),
        *(change(table, way, everywhere, measure) for way in masked for measure in table.measures),
    ]
    return replace(table, notes=notes), grid_of(tasks, shown)


def mean_over(values: Tensor, where: Tensor) -> list[float]:
    """The mean of each example's values (n, 1, h, w) where `where` is 1; 0 where it is nowhere."""
    return ((values * where).sum((1, 2, 3)) / where.sum((1, 2, 3)).clamp(min=1)).tolist()


def grid_of(tasks: Sequence[Task], results: dict[str, Tensor], side: int = 144) -> Image.Image:
    """The first scenes: the box | every way | the truth."""
    cells = []
    for index, task in enumerate(tasks[:SHOWN]):
        panels = [picture_grid.shown(task.background, side, task.box)]
        panels += [picture_grid.shown(images[index], side) for images in results.values()]
        panels.append(picture_grid.shown(task.truth, side))
        cells.append(picture_grid.Cell(panels, [scenes.caption(task.thing).removeprefix("a photo of ")]))
    return picture_grid.grid(" | ".join(["the box", *results, "the truth"]), cells, 2)


def main():
    parser = study_parser(__doc__, "attention")
    parser.add_argument("--only", nargs="*", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--kinds", nargs="*", default=["unet", "fill"], choices=["unet", "fill"])
    parser.add_argument("--scenes", type=int, default=0, help="0: 100, for light 240")
    parser.add_argument("--steps", type=int, default=0, help="of the sampler; 0: as in `lab quality`")
    parser.add_argument("--pilot", action="store_true", help=f"{PILOT} scenes")
    a = parser.parse_args()
    out, models = study_folders(a)
    kept = out / "pictures"
    count = {name: PILOT if a.pilot else a.scenes or COUNTS[name] for name in COUNTS}
    classifier: Any = trained_classifier(a.work)
    studies: dict[str, Callable[[], tuple[Table, Image.Image]]] = {}
    if "words" in a.only:
        for kind in a.kinds:
            studies[f"words_{kind}"] = lambda kind=kind: words_study(
                SceneBench(Inpainter(kind, models), a.steps, kept), classifier, count["words"]
            )
    if "light" in a.only and "unet" in a.kinds:
        studies["light"] = lambda: light_study(
            SceneBench(Inpainter("unet", models), a.steps, kept), count["light"]
        )
    if "photo" in a.only:
        studies["photo"] = lambda: photo_study(
            SceneBench(Inpainter("edit", models), a.steps), classifier, count["photo"]
        )
    for name, study in studies.items():
        table, picture = study()
        write_table(table, out, name)
        picture.save(out / f"{name}.png")


if __name__ == "__main__":
    main()
