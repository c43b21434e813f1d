"""What the edit model changes outside the box, and what pasting leaves of that, in the tiny world.

    python dev.py lab paste [--work DIR] [--models FOLDER] [--scenes 100]

The edit model paints the whole picture anew, from the scene with a grey box and a photo of the subject, and
the result is pasted by the mask, with and without alignment and colour match. Outside: pixels beyond the
soft edge. Seam: the mean colour step across the box's border in 1/255, less that of the true rendering.
Writes paste.md, paste.json and paste.png.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.colour_match import FIELD, LAB
from ...imaging.paste import PasteOptions, paste_paintings, whole_pictures
from ...imaging.registration import SHIFT_AND_SCALE
from .. import scenes
from .attention import SceneBench, grid_of
from .quality import Inpainter, Task, edge_step, stacked, task_of
from .study import study_folders, study_parser, write_table

SEED, SCENES, FEATHER = 44, 100, 4
BEFORE = "as the model painted it"
WAYS = {
    "pasted": PasteOptions(feather=FEATHER),
    "pasted, aligned": PasteOptions(feather=FEATHER, align=SHIFT_AND_SCALE),
    "pasted, colours matched": PasteOptions(feather=FEATHER, colour=LAB),
    "pasted, aligned, colours matched": PasteOptions(feather=FEATHER, align=SHIFT_AND_SCALE, colour=LAB),
    "pasted, aligned, smooth colour field": PasteOptions(
        feather=FEATHER, align=SHIFT_AND_SCALE, colour=FIELD
    ),
}
OUTSIDE, SHARE, SEAM = "change outside, 1/255", "share of pixels changed outside", "seam, 1/255"


def beyond_edge(holes: Tensor) -> Tensor:
    """1 beyond the soft edge of holes (B, H, W), else 0."""
    return 1 - F.max_pool2d(holes[:, None], 2 * FEATHER + 1, 1, FEATHER)[:, 0]


def measured(images: Tensor, tasks: Sequence[Task], true_seams: Sequence[float]) -> dict[str, list[float]]:
    """The measures of pictures (n, H, W, 3) in [0, 1]."""
    outside = beyond_edge(stacked(tasks, "hole"))
    difference = (images - stacked(tasks, "background")).abs()
    area = outside.sum((1, 2)).clamp(min=1)
    changed = ((255 * difference).round() > 0).any(-1)
    return {
        OUTSIDE: (255 * (difference.mean(-1) * outside).sum((1, 2)) / area).tolist(),
        SHARE: ((changed * outside).sum((1, 2)) / area).tolist(),
        SEAM: [mine - true for mine, true in zip(edge_step(images, tasks), true_seams, strict=True)],
    }


def paste_study(bench: SceneBench, count: int) -> tuple[Table, Image.Image]:
    """Change outside and seam of `count` scenes, as painted and by every way of pasting."""
    rng = np.random.default_rng(SEED)
    tasks = [task_of(scenes.sample_scene(rng), rng) for _ in range(count)]
    true_seams = edge_step(stacked(tasks, "truth"), tasks)
    shown = {BEFORE: bench.paint(tasks, {}, repaint=True)}
    crop = whole_pictures(stacked(tasks, "background"), stacked(tasks, "hole"))
    shown |= {way: paste_paintings(crop, shown[BEFORE], options).image for way, options in WAYS.items()}
    rows = {way: measured(images, tasks, true_seams) for way, images in shown.items()}
    notes = [
        f"{count} scenes of {scenes.SIZE} px, seed {SEED}; soft edge {FEATHER} pixels; errors over scenes.",
        "Seam: less the true rendering's. Share of pixels: those with another byte in any channel.",
    ]
    table = Table("The edit model's picture, pasted", rows, notes)
    plain, *others = WAYS
    differences = [f"{way} - {plain}: seam {table.difference(way, plain, SEAM).text()}." for way in others]
    few = {name: shown[name] for name in (BEFORE, plain, others[-1])}
    return Table(table.title, rows, [*notes, *differences]), grid_of(tasks, few)


def main():
    parser = study_parser(__doc__, "paste")
    parser.add_argument("--scenes", type=int, default=SCENES)
    a = parser.parse_args()
    out, models = study_folders(a)
    with torch.inference_mode():
        table, picture = paste_study(SceneBench(Inpainter("edit", models)), a.scenes)
    write_table(table, out, "paste")
    picture.save(out / "paste.png")


if __name__ == "__main__":
    main()
