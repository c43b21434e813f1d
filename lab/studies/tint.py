"""Does the room's colour leak into a finetuned subject, and does masked self-attention stop it?

    python dev.py lab tint [--kind fill] [--work DIR] [--models FOLDER] [--subjects 20] [--pilot]

DreamCom, section 4.3, in the tiny world. A subject is learned from four photos with "a photo of sks
mug", which does not name its colour. Then it is painted into the same scenes twice, once with a grey room and
once with a tinted one, by the self-attention layers that are masked: with the UNet DreamCom's four choices of
layers, with Fill all blocks or none. Its colour is the median under its true outline, of what is painted
there: the room's own colour is no leak, and `painted share` says how much of the outline it is not. The shift
from the grey room to the tinted one along the tint, less the shift of the true renderings, is the leak:
positive where the subject takes on the room's colour. A pixel that took it on altogether looks like empty
room, so "whole outline" gives the leak with these pixels, too. A unit of the table is a subject; one JSON
file for each, so an interrupted run goes on. --pilot takes 4 subjects and prints the manipulation check:
with no self-attention masked the leak must differ from zero by two standard errors. Writes tint_KIND.md,
.json and .jpg.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...evaluation.tables import Table
from .. import scenes
from .attention import CHOICES, LAYERS, Masking
from .quality import HELD_OUT, Inpainter, Task, stacked, task_of
from .study import change, rows_of, study_folders, subject_cells, training_parser, write_table
from .subjects import SHOWN, TOKEN, comparison_sheet, finetuned, reference_photos, study_recipe

LEAK, WHOLE, COVERED = "leak along the tint", "leak, whole outline", "painted share"
CHANGED, LEAST = 0.1, 20  # a pixel's channel that changed so much is painted; pixels that make a colour
COLOURS = ("white", "yellow", "pink", "cyan")  # of subjects: light ones show a tint
TINTS = ("red", "green", "blue", "purple")
PILOT = 4
BLOCKS: dict[str, Masking] = {  # of Fill; its words act everywhere: kept in the box, things are missing
    "(a) none": {"self_layers": "none", "cross_strength": 0.0},
    "(b) all": {"self_layers": "all", "cross_strength": 0.0},
    "(c) all, renormalised": {"self_layers": "all", "cross_strength": 0.0, "operator": "renormalised"},
}
WAYS = {"unet": LAYERS, "fill": BLOCKS}


@dataclass(frozen=True)
class TintChoices:
    """Everything that decides a subject's numbers; kept with them."""

    steps: int
    rank: int
    learning_rate: float
    batch_size: int
    scenes: int
    sampling_steps: int
    model: str
    version: int = 2  # raise when the same choices give other numbers


@dataclass(frozen=True)
class TintedSubject:
    """A thing, its photos with masks, and its tasks in grey and in tinted rooms (same scenes, same order)."""

    thing: scenes.Thing
    references: Tensor
    reference_masks: Tensor
    grey: list[Task]
    tinted: list[Task]
    outlines: Tensor  # (n, H, W)
    tints: Tensor  # (n, 2): unit vectors in CIELAB's a and b


def lab_colour(images: Tensor, masks: Tensor) -> Tensor:
    """CIELAB (B, 3) of the median colour of images (B, H, W, 3) under masks (B, H, W)."""
    from skimage.color import rgb2lab

    colours = [image[mask > 0.5].median(0).values for image, mask in zip(images, masks, strict=True)]
    return torch.from_numpy(rgb2lab(torch.stack(colours).double().numpy()))


def along(shift: Tensor, tints: Tensor) -> Tensor:
    """The part of shifts (B, 3) in CIELAB that goes along tints (B, 2), in units of CIELAB."""
    return (shift[:, 1:] * tints).sum(1)


def rooms_of(rng: np.random.Generator) -> tuple[scenes.Room, scenes.Room, Tensor]:
    """A grey room, the same one tinted, and the tint's direction in CIELAB's a and b."""
    from skimage.color import rgb2lab

    room = scenes.sample_room(rng)
    wall, floor = (float(np.mean(colour)) for colour in (room.wall, room.floor))
    grey = replace(room, wall=(wall,) * 3, floor=(floor,) * 3, wall_style="plain")
    tint = np.array(scenes.COLOURS[str(rng.choice(TINTS))])
    in_tint = (tuple(float(v) for v in 0.35 * level + 0.55 * tint) for level in (wall, floor))
    tinted = replace(grey, **dict(zip(("wall", "floor"), in_tint, strict=True)))
    direction = torch.from_numpy(rgb2lab(tint))[1:]
    return grey, tinted, direction / direction.norm()


def tinted_subject(index: int, count: int) -> TintedSubject:
    """Subject number `index` with `count` scenes."""
    rng = np.random.default_rng([HELD_OUT, 11, index])
    kind, colour = scenes.CLASSES[index % len(scenes.CLASSES)], COLOURS[index % len(COLOURS)]
    thing = scenes.sample_thing(rng, kind=kind, colour=colour, pattern="plain", accessory="none")
    references, masks = reference_photos(rng, thing)
    grey, tinted, outlines, tints = [], [], [], []
    for _ in range(count):
        plain, in_tint, direction = rooms_of(rng)
        scene = scenes.sample_scene(rng, thing, plain, others=0, scale=(0.44, 0.60))
        grey.append(task_of(scene, rng))
        tinted.append(task_of(replace(scene, room=in_tint), rng))
        outlines.append(torch.from_numpy(scenes.render(scene).mask > 0.5).float())
        tints.append(direction)
    return TintedSubject(thing, references, masks, grey, tinted, torch.stack(outlines), torch.stack(tints))


def painted(images: Tensor, tasks: list[Task]) -> Tensor:
    """1 where images (n, H, W, 3) differ from the empty rooms, (n, H, W)."""
    return ((images - stacked(tasks, "background")).abs().amax(-1) > CHANGED).float()


def shifts(grey: Tensor, tinted: Tensor, subject: TintedSubject) -> dict[str, Tensor]:
    """How far the subject's colour moves along the tint from the grey rooms to the tinted ones, (n,) each.

    LEAK: of the pixels that are painted in both, NaN for a scene with fewer than LEAST; WHOLE: of the whole
    outline; COVERED: the share of the outline that is painted in both.
    """

    def moved(where: Tensor) -> Tensor:
        return along(lab_colour(tinted, where) - lab_colour(grey, where), subject.tints)

    there = subject.outlines * painted(grey, subject.grey) * painted(tinted, subject.tinted)
    enough = there.sum((1, 2)) >= LEAST
    return {
        LEAK: moved(torch.where(enough[:, None, None], there, subject.outlines)).where(enough, torch.nan),
        WHOLE: moved(subject.outlines),
        COVERED: there.sum((1, 2)) / subject.outlines.sum((1, 2)),
    }


def leaks(shift: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    """The means over scenes of shifts less the true ones, and of the painted share."""
    return {
        LEAK: float((shift[LEAK] - true[LEAK]).nanmean()),
        WHOLE: float((shift[WHOLE] - true[WHOLE]).mean()),
        COVERED: float(shift[COVERED].mean()),
    }


def measure_subject(painter: Inpainter, index: int, choices: TintChoices) -> tuple[dict, dict]:
    """Pictures and numbers of one subject, by the layers that are masked."""
    from ...attention.model_patch import mask_attention

    subject = tinted_subject(index, choices.scenes)
    recipe = study_recipe(painter.model, choices)
    tuned = finetuned(painter, subject, recipe, index, scenes.SIZE)
    prompt = recipe.prompt.format(token=TOKEN, class_name=subject.thing.kind)
    true = shifts(stacked(subject.grey, "truth"), stacked(subject.tinted, "truth"), subject)
    numbers: dict[str, dict[str, float]] = {}
    pictures: dict[str, Tensor] = {"truth": stacked(subject.tinted, "truth")}
    for way, masking in WAYS[painter.kind].items():
        images_of = []
        for tasks in (subject.grey, subject.tinted):
            images, holes, photos = (stacked(tasks, name) for name in ("background", "hole", "photo"))
            model = mask_attention(tuned, [holes], **masking)
            prompts = [prompt] * len(tasks)
            images_of.append(
                painter.paint(images, holes, prompts, photos, index, model, choices.sampling_steps)
            )
        grey, tinted = ((images.cpu() * 255).round() / 255 for images in images_of)  # as they are kept
        numbers[way] = leaks(shifts(grey, tinted, subject), true)
        pictures[way], pictures[f"{way}, grey room"] = tinted, grey
    numbers["the truth"] = {COVERED: float(true[COVERED].mean())}
    return pictures, numbers


def tint_table(results: list[dict], choices: TintChoices, kind: str) -> Table:
    """Means over subjects, with the manipulation check."""
    unmasked, *others = WAYS[kind]
    seen = [result for result in results if not any(np.isnan(result[way][LEAK]) for way in WAYS[kind])]
    rows = rows_of(seen)
    table = Table(f"The colour of a finetuned subject in tinted rooms, {kind}", rows)
    leak = np.array(rows[unmasked][LEAK])
    error = leak.std(ddof=1) / len(leak) ** 0.5 if len(leak) > 1 else float("nan")
    notes = [
        f"{len(seen)} subjects x {choices.scenes} scenes, seed {HELD_OUT}; errors over subjects; units of"
        f" CIELAB. {choices.steps} training steps, rank {choices.rank}, rate {choices.learning_rate:g}.",
        f"Manipulation check: the leak of {unmasked} is {leak.mean() / error:.1f} standard errors from 0.",
    ]
    if len(seen) < len(results):
        notes.append(f"Left out: {len(results) - len(seen)} subjects of which some way painted nothing.")
    pairs = [*((way, unmasked) for way in others), *(pair for pair in CHOICES if {*pair} <= {*rows})]
    notes += [change(table, *pair, measure) for pair in pairs for measure in (LEAK, WHOLE, COVERED)]
    return replace(table, notes=notes)


def main():
    parser = training_parser(__doc__, "tint", 4, PILOT)
    parser.add_argument("--kind", default="unet", choices=list(WAYS))
    a = parser.parse_args()
    out, models = study_folders(a)
    painter = Inpainter(a.kind, models)
    file = painter.fingerprint()
    choices = TintChoices(a.steps, 16, a.rate, 4, a.scenes, a.sampling_steps, file)
    count, folder = PILOT if a.pilot else a.subjects, out / a.kind
    measure = partial(measure_subject, painter, choices=choices)
    results = subject_cells(folder, count, choices, measure)
    write_table(tint_table(results, choices, a.kind), out, f"tint_{a.kind}")
    drawn = [tinted_subject(index, a.scenes) for index in range(min(SHOWN, count))]
    shown = [(s.references[0], s.tinted[0], scenes.caption(s.thing)) for s in drawn]
    sheet = comparison_sheet(folder, shown, list(WAYS[a.kind]))
    sheet.save(out / f"tint_{a.kind}.jpg", quality=88)


if __name__ == "__main__":
    main()
