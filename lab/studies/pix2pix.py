"""An object into a picture without a mask: is it there, is it right, and is the picture still the same?

    python dev.py lab pix2pix --work DIR [--rows NAME ...] [--scenes 200] [--out DIR]

Held-out scenes with one or two things standing about; what is to be inserted is shown in another room, pose
and light. Rows: the embedding optimizer with all of the UNet's layers trained; one linear projection in its
place; all layers but the cross-attention. What a row needs is trained in DIR first (see train_pix2pix;
--minutes ends the training for now, and rows that are not ready are left out); `optimizer` without --work is
what the repository ships. One JSON file a cell under OUT/cells: an interrupted run goes on where it was.
Writes pix2pix.md, .json and .jpg (24 scenes, not chosen), and guidance.md, .json and .jpg: the two scales.
"""

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...evaluation.tables import Mean, Table
from .. import scenes
from ..models import assemble, files, host, identity, low_rank, quantised, runs
from ..models.classifier import SceneClassifier, trained_classifier
from ..models.image_conditioner import PICTURES, ImageConditioner, Numbers, loaded
from ..models.object_training import part_of, shipped_unet
from ..models.train_imprint import is_ready, new_encoder
from ..models.train_pix2pix import VARIANTS, Trainer, new_adapter
from . import picture_grid as sheets
from .insertion_cases import HELD, VERSION, held_out_scene, measured, true_numbers
from .quality import HELD_OUT, PRECISION, SAMPLING, load_checkpoint
from .result_cache import cell, fingerprint, pictures_of
from .study import change, study_folders, study_parser, write_table

ROWS = {
    "optimizer": "embedding optimizer",
    "projection": "linear projection",
    "no_cross_attention": "optimizer, cross-attention frozen",
}
TRUTH = "the truth"
CHUNK = 20  # scenes in a cell
OBJECT_SCALES, IMAGE_SCALES = (1.0, 2.0, 4.0, 7.0), (1.0, 1.5, 2.5)


@dataclass(frozen=True)
class InsertionChoices:
    """Everything that decides a cell's numbers; kept with them, so that a changed run starts anew."""

    object_scale: float
    image_scale: float
    sampler: str
    scheduler: str
    steps: int
    trained: str
    scenes: int = VERSION


class Inserter:
    """A row's models in the host: MODEL and VAE of its checkpoint, and what sees the object."""

    def __init__(self, path: Path, conditioner: ImageConditioner):
        host.open_host()
        self.model, _, self.vae = load_checkpoint(path)
        self.conditioner = conditioner

    @torch.inference_mode()
    def insert(self, sources: Tensor, objects: Tensor, seed: int, how: InsertionChoices) -> Tensor:
        """Objects (B, S, S, 3) into sources (B, H, W, 3) with the guider of Insert Object Without Mask."""
        import comfy.sample
        import comfy.samplers

        from ...sampling.identity import as_conditioning, two_scale_guider

        rows, uncond = self.conditioner.rows(objects)
        source = self.vae.encode(sources)
        guider = two_scale_guider(
            self.model,
            as_conditioning(rows),
            as_conditioning(uncond),
            source,
            how.object_scale,
            how.image_scale,
        )
        sampling = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, how.scheduler, how.steps)
        latent = torch.zeros_like(source)
        painted = guider.sample(
            comfy.sample.prepare_noise(latent, seed),
            latent,
            comfy.samplers.sampler_object(how.sampler),
            sigmas,
            disable_pbar=True,
            seed=seed,
        )
        return self.vae.decode(painted).clamp(0, 1).cpu()

    @torch.inference_mode()
    def recoded(self, pictures: Tensor) -> Tensor:
        return self.vae.decode(self.vae.encode(pictures)).clamp(0, 1).cpu()


def inserter_of(row: str, work: Path | None, out: Path) -> Inserter:
    """A row's models, from the trainings or the shipped files."""
    encoder, adapter = new_encoder("dino").eval(), new_adapter(VARIANTS[row].projection).eval()
    if work is None:
        paths = identity.install(out / "models")
        loaded(paths["optimizer"], encoder, adapter)
        return Inserter(paths["pix2pix"], ImageConditioner(encoder, adapter))
    loaded(work / f"pix2pix_{row}.safetensors", encoder, adapter)
    state = runs.load(work / f"pix2pix_{row}.pt")
    assert state
    unet = low_rank.changed(shipped_unet(8).state_dict(), low_rank.change_of(part_of(state, "unet")))
    parts = {"unet": unet, "autoencoder4": quantised.load(files.WEIGHTS / "autoencoder4.safetensors")}
    path = assemble.write_checkpoint(out / "models" / f"{row}.safetensors", parts)
    return Inserter(path, ImageConditioner(encoder, adapter))


class Row:
    """A row's inserter, opened when its first cell is missing."""

    def __init__(self, name: str, work: Path | None, out: Path, classifier: SceneClassifier):
        self.name, self.work, self.out, self.classifier = name, work, out, classifier
        self.inserter: Inserter | None = None
        self.folder = out / "cells"

    def numbers(self, count: int, choices: InsertionChoices, tag: str = "") -> Numbers:
        """Scene by scene; cells that the same choices made before are read back."""
        numbers = []
        for path, first, last in self.cells(count, tag):
            numbers += cell(path, choices, lambda first=first, last=last: self.make(first, last, choices))
        return numbers

    def cells(self, count: int, tag: str = "") -> list[tuple[Path, int, int]]:
        """The cells of that many scenes: file, first scene, past the last."""
        ends = [(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
        return [(self.folder / f"{self.name}{tag}-{a:03d}-{b - a}.json", a, b) for a, b in ends]

    def pictures(self, count: int, tag: str = "") -> Tensor:
        """What `numbers` with the same count and tag kept beside them."""
        return torch.cat([pictures_of(path)[PICTURES] for path, _, _ in self.cells(count, tag)])

    def make(self, first: int, last: int, choices: InsertionChoices) -> tuple[dict[str, Tensor], Numbers]:
        self.inserter = self.inserter or inserter_of(self.name, self.work, self.out)
        cases = [held_out_scene(index) for index in range(first, last)]
        sources, objects = (torch.stack([getattr(c, field) for c in cases]) for field in ("source", "shown"))
        results, known = (
            self.inserter.insert(sources, objects, first, choices),
            self.inserter.recoded(sources),
        )
        made = zip(cases, results, known, strict=True)
        return {PICTURES: results}, [measured(self.classifier, *one) for one in made]


def by_measure(numbers: Numbers) -> dict[str, list[float]]:
    """Measure -> its values; colours are compared only where something is."""
    return {
        m: [one[m] for one in numbers if m in one] for m in dict.fromkeys(k for one in numbers for k in one)
    }


def pix2pix_table(results: dict[str, Numbers], classifier: SceneClassifier, how: str) -> Table:
    rows = {ROWS.get(name, name): by_measure(numbers) for name, numbers in results.items()}
    notes = [
        f"{how} Classifier: {classifier.name}, on the box of the largest patch that changed. there: such a"
        f" patch is found; class: the classifier, which chooses one of {len(scenes.CLASSES)}, names the right"
        f" one; free: the patch hides at most a tenth of what stood there; {HELD}: both. kept: SSIM to the"
        " source outside the patch's box, everywhere without a patch, against the source through the"
        " autoencoder; dE00 of the patch to the object's true colours in that room.",
    ]
    table = Table("An object into a picture, without a mask", rows, notes)
    for name in list(results)[1:]:
        if name in ROWS:
            notes.append(change(table, ROWS["optimizer"], ROWS[name], HELD))
    return table


def pix2pix_sheet(row: Row, numbers: Numbers, count: int, side: int = 112):
    """The first scenes: object | picture | result, in red where class or place is wrong."""
    cells, pictures = [], row.pictures(len(numbers))
    for index in range(count):
        scene = held_out_scene(index)
        panels = [sheets.shown(x, side) for x in (scene.shown, scene.source, pictures[index])]
        words = scenes.caption(scene.thing).removeprefix("a photo of ")
        cells.append(sheets.Cell(panels, [words], numbers[index][HELD] == 1))
    return sheets.grid("Mask-free insertion into held-out scenes: object | picture | result", cells, 3)


def guidance_tables(row: Row, choices: InsertionChoices, count: int, out: Path) -> None:
    """Both scales against one another on the first scenes: numbers, and a scene's pictures as a grid."""
    rows, panels = {}, []
    for image_scale in IMAGE_SCALES:
        for object_scale in OBJECT_SCALES:
            tag = f"-{object_scale:g}-{image_scale:g}"
            one = replace(choices, object_scale=object_scale, image_scale=image_scale)
            label = f"object {object_scale:g}, image {image_scale:g}"
            rows[label] = by_measure(row.numbers(count, one, tag))
            pictures = row.pictures(count, tag)[:3]
            panels.append(sheets.Cell([sheets.shown(picture, 112) for picture in pictures], [label]))
    table = Table("The two scales of guidance", rows, [f"{count} scenes; see the first table."])
    write_table(table, out, "guidance")
    sheets.grid("Guidance by the object and by the picture", panels, len(OBJECT_SCALES)).save(
        out / "guidance.jpg", quality=88
    )


def parsed() -> argparse.Namespace:
    parser = study_parser(__doc__, "pix2pix")
    sampler, scheduler, steps, _ = SAMPLING["unet"]
    add = parser.add_argument
    add("--rows", nargs="+", choices=list(ROWS), help="default: all, or with the shipped files the first")
    add("--minutes", type=float, default=math.inf, help="of training now")
    add("--scenes", type=int, default=200)
    add("--guidance-scenes", type=int, default=20, help="0 leaves the second table out")
    add("--object-scale", type=float, default=3.0)
    add("--image-scale", type=float, default=1.5)
    add("--steps", type=int, default=steps)
    add("--sampler", default=sampler)
    add("--scheduler", default=scheduler)
    return parser.parse_args()


def trained(row: str, work: Path | None, out: Path) -> list[Path]:
    """The files of what was trained for a row, and of what it stands on."""
    stands_on = [files.WEIGHTS / f"{name}.safetensors" for name in ("unet", "autoencoder4")]
    own = [work / f"pix2pix_{row}.pt"] if work else list(identity.install(out / "models").values())
    return own + stands_on


def main():
    a = parsed()
    out, _ = study_folders(a, trained=False)  # on which the trainings stand, too
    (out / "cells").mkdir(parents=True, exist_ok=True)
    rows = a.rows or (list(ROWS) if a.work else ["optimizer"])
    if a.work:
        rows = [row for row in rows if is_ready(Trainer(a.work, row), a.minutes)]
    elif rows != ["optimizer"]:
        raise SystemExit("Without --work there is only the row optimizer: nothing else is shipped.")
    classifier = trained_classifier(a.work)

    def choices(row: str) -> InsertionChoices:
        marks = fingerprint(*trained(row, a.work, out), classifier, str(PRECISION["unet"]))
        return InsertionChoices(a.object_scale, a.image_scale, a.sampler, a.scheduler, a.steps, marks)

    opened = {row: Row(row, a.work, out, classifier) for row in rows}
    results = {name: row.numbers(a.scenes, choices(name)) for name, row in opened.items()}
    how = f"{a.scenes} held-out scenes with one or two things in them, seed {HELD_OUT}. {a.sampler}"
    how += f" {a.scheduler}, {a.steps} steps, guidance {a.object_scale:g} by the object and"
    how += f" {a.image_scale:g} by the picture."
    table = pix2pix_table(results | {TRUTH: true_numbers(classifier, a.scenes)}, classifier, how)
    write_table(table, out, "pix2pix")
    for name, row in list(opened.items())[:1]:
        print(f"{ROWS[name]}: {HELD} {Mean.of(table.rows[ROWS[name]][HELD]).text()}")
        pix2pix_sheet(row, results[name], min(24, a.scenes)).save(out / "pix2pix.jpg", quality=88)
        if a.guidance_scenes:
            guidance_tables(row, choices(name), a.guidance_scenes, out)
    print(f"pictures: {out / 'pix2pix.jpg'}, {out / 'guidance.jpg'}")


if __name__ == "__main__":
    main()
