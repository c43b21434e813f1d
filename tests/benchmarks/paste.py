"""Is only the box changed? Planted drifts and casts on photographs, and what crop and paste cost.

    python dev.py bench paste                     200 cases of each kind (some 15 minutes), then sizes
    python dev.py bench paste --cases 26          fewer
    python dev.py bench paste --only sizes        one of both, drift, cast, nothing, impossible,
                                                  outside, bits, sizes
    python dev.py bench paste --pictures FOLDER   pictures of a real model instead: NAME.original.png,
                                                  NAME.painted.png and NAME.mask.png for each NAME

The photographs and their licences are listed in lab/studies/planted_drift.py. A case's error is the largest
distance, over the rim of the mask, between the found position and the planted one. Colour differences are
CIEDE2000 between the original and the painted photograph without its noise and other content, both blurred
with a standard deviation of 2 pixels, in a band of 8 pixels around the mask so far as the painted picture
shows it: so a wrong alignment counts too. Every row states mean +- standard error, median and 95th
percentile over the cases.
"""

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from inlay.evaluation.tables import Mean
from inlay.imaging.boxes import Box
from inlay.imaging.colour_match import FIELD, LAB, delta_e, rgb_to_lab
from inlay.imaging.crop import SizeOptions, crop_pictures, plan_crops
from inlay.imaging.masks import fill_box
from inlay.imaging.paste import (
    CHANGED,
    GRADIENT,
    PasteOptions,
    compare,
    measure_colours,
    paste_paintings,
    recoloured,
    sample_painted,
    whole_pictures,
)
from inlay.imaging.registration import AFFINE, SHIFT_AND_SCALE
from inlay.lab.studies.planted_drift import Case, photographs, plant

BAND = 8  # pixels around the mask in which colours are compared
BLUR = 2.0  # pixels: standard deviation, against the loss of detail where a picture is sampled twice
OPTIONS = {
    "plain crop and paste": PasteOptions(),
    "smooth field only": PasteOptions(colour=FIELD),
    "shift and scale only": PasteOptions(align=SHIFT_AND_SCALE),
    "shift and scale, mean and deviation": PasteOptions(align=SHIFT_AND_SCALE, colour=LAB),
    "shift and scale, smooth field": PasteOptions(align=SHIFT_AND_SCALE, colour=FIELD),
}
BEST = OPTIONS["shift and scale, smooth field"]
SIZES = ((1024, 1024), (2048, 2048), (4000, 6000))
SHARE = 0.05


def tensor(image: np.ndarray) -> torch.Tensor:
    """(1, H, W, ...) in 32 bits."""
    return torch.from_numpy(np.ascontiguousarray(image)).float()[None]


def measured(case: Case) -> dict[str, tuple[float, float, bool]]:
    """(largest error at the rim in pixels, dE00 there, whether it was aligned) of each option."""
    crop = whole_pictures(tensor(case.original), tensor(case.mask))
    band = ndimage.binary_dilation(case.mask, iterations=BAND) & ~case.mask & case.visible(2 * BLUR)
    if not band.any():
        raise ValueError(f"{case.photograph}: nothing around the mask is visible in the painted picture.")
    truth = rgb_to_lab(torch.from_numpy(ndimage.gaussian_filter(case.original, (BLUR, BLUR, 0))[band]))
    rim, results, compared = case.rim, {}, {}
    for label, options in OPTIONS.items():
        if options.align not in compared:
            compared[options.align] = compare(crop, crop.places[0], tensor(case.painted), options)
        work = compared[options.align]
        found = rim @ work.to_painted[:2, :2].T + work.to_painted[:2, 2]
        error = float(np.linalg.norm(found - case.position(rim), axis=1).max())
        correction, *_ = measure_colours(work, options)
        clean = sample_painted(tensor(case.clean), work.to_painted, *case.mask.shape)[0]
        clean = recoloured(clean, correction).double().numpy()
        colours = torch.from_numpy(ndimage.gaussian_filter(clean, (BLUR, BLUR, 0))[band])
        applied = bool(work.alignment and work.alignment.applies)
        results[label] = error, float(delta_e(rgb_to_lab(colours), truth).mean()), applied
    return results


def row(label: str, *columns: list[float]) -> str:
    """One line of a table: mean +- standard error, median and 95th percentile of each column."""
    cells = []
    for values in columns:
        mean, middle, high = Mean.of(values), np.median(values), np.quantile(values, 0.95)
        cells.append(f"{mean.mean:.3f} +- {mean.error:.3f} | {middle:.3f} | {high:.3f}")
    return f"| {label} | " + " | ".join(cells) + " |"


HEAD = "| | px mean | median | 95 % | dE00 mean | median | 95 % |\n|---|---:|---:|---:|---:|---:|---:|"


def planted(title: str, cases: int, **kind: bool) -> None:
    """Print a table of all options over the cases of one kind."""
    print(f"\n**{title}** (n = {cases}, seeds 0 to {cases - 1})\n\n{HEAD}", flush=True)
    results: dict[str, list[tuple[float, float, bool]]] = {label: [] for label in OPTIONS}
    for seed in range(cases):
        for label, values in measured(plant(seed, **kind)).items():
            results[label].append(values)
        if seed % 20 == 19:  # it takes minutes: show how far it is
            so_far = np.median([v[:2] for v in results["shift and scale, smooth field"]], 0)
            print(f"{seed + 1} cases, medians so far {so_far.round(3)}", file=sys.stderr, flush=True)
    for label, values in results.items():
        errors, colours, _ = zip(*values, strict=True)
        print(row(label, list(errors), list(colours)), flush=True)
    errors, colours, applied = zip(*results["shift and scale, smooth field"], strict=True)
    within = sum(error < 0.5 for error in errors) / cases
    print(f"\nShift and scale, smooth field: {within:.1%} of the cases within 0.5 px,", end=" ")
    print(
        f"{sum(colour < 2 for colour in colours) / cases:.1%} below 2 dE00, moved: {sum(applied)} of {cases}"
    )


def nothing_planted(cases: int) -> None:
    """Count what is moved or recoloured although there is nothing to mend."""
    print(f"\n**Nothing planted** (n = {cases})\n")
    for damage in (False, True):
        moved = recolours = 0
        largest = 0.0
        for seed in range(cases):
            case = plant(seed, drift=False, cast=False, damage=damage)
            crop = whole_pictures(tensor(case.original), tensor(case.mask))
            work = compare(crop, crop.places[0], tensor(case.painted), BEST)
            moved += bool(work.alignment and work.alignment.applies)
            recolours += measure_colours(work, BEST)[0] is not None
            image = paste_paintings(crop, tensor(case.painted), BEST).image
            inside = torch.from_numpy(case.mask)
            largest = max(largest, float((image - tensor(case.painted))[0][inside].abs().max()))
        kind = "noise and JPEG" if damage else "as it was"
        print(f"{kind}: moved {moved}, recoloured {recolours} of {cases};", end=" ")
        print(f"largest change {255 * largest:.2f} / 255")


def impossible(_: int = 0) -> None:
    """Print what is reported where no alignment exists."""
    rng = np.random.default_rng(0)
    x = np.mgrid[:400, :400][1]
    stripes, ramp = 0.5 + 0.3 * np.sin(x / 5), x / 400
    noise = lambda: rng.normal(0, 0.01, (400, 400))  # noqa: E731
    pairs = {
        "one colour": (np.full((400, 400), 0.5), np.full((400, 400), 0.5)),
        "noise only": (0.5 + noise(), 0.5 + noise()),
        "a gradient with noise": (ramp + noise(), ramp + noise()),
        "stripes with noise": (stripes + noise(), np.roll(stripes, 3, 1) + noise()),
        "another photograph": (plant(0).original[:400, :400].mean(-1), plant(3).original[:300].mean(-1)),
    }
    print("\n**Alignment impossible**\n")
    for name, (first, second) in pairs.items():
        pictures = [tensor(np.repeat(image[..., None], 3, -1)) for image in (first, second)]
        report(name, pictures[0], pictures[1], fill_box(Box(100, 120, 240, 300), 400, 400))
    case = plant(0)
    report(
        "nothing outside the mask",
        tensor(case.original),
        tensor(case.painted),
        torch.ones(1, *case.mask.shape),
    )


def report(name: str, original: torch.Tensor, painted: torch.Tensor, mask: torch.Tensor) -> None:
    crop = whole_pictures(original, mask)
    alignment = compare(crop, crop.places[0], painted, BEST).alignment
    assert alignment is not None
    print(f"{name}: {alignment.reason or 'MOVED'}")


def outside_changed(original: np.ndarray, painted: np.ndarray, known: np.ndarray) -> float:
    """Share of the known pixels that differ as bytes."""
    pair = [(255 * image.clip(0, 1)).round().astype(np.uint8) for image in (original, painted)]
    return float((pair[0] != pair[1]).any(-1)[known].mean())


def outside(cases: int) -> None:
    """Compare the pixels outside the soft edge before and after pasting."""
    before, after = [], []
    for seed in range(cases):
        case = plant(seed)
        crop = whole_pictures(tensor(case.original), tensor(case.mask))
        image = paste_paintings(crop, tensor(case.painted), BEST).image[0].numpy()
        known = np.asarray(ndimage.distance_transform_edt(~case.mask)) > BEST.feather
        before.append(outside_changed(case.original, case.painted, known))
        after.append(outside_changed(case.original, image, known))
    print(f"\n**Pixels outside the soft edge that changed** (n = {cases})\n")
    print(f"as painted {Mean.of(before).text(4)}, pasted {Mean.of(after).text(4)}")


def bits(cases: int) -> None:
    """Compare every bit outside the soft edge, and the saved bytes, in five times as many random pictures."""
    rng, wrong, count = np.random.default_rng(0), 0, 5 * cases
    for number in range(count):
        height, width, batch = (int(n) for n in rng.integers(1, (97, 97, 4)))
        image = torch.from_numpy(rng.integers(0, 256, (batch, height, width, 3)).astype(np.float32) / 255)
        mask = torch.from_numpy(
            (rng.random((batch, height, width)) < rng.choice([0, 0.01, 0.2])).astype(np.float32)
        )
        mask[:, rng.integers(height), rng.integers(width)] = 1
        size = SizeOptions(megapixels=float(rng.uniform(0.0005, 0.01)), multiple=int(rng.choice([1, 8, 16])))
        crop = plan_crops(image, mask, size_options=size)
        painted = torch.from_numpy(rng.random((batch, crop.height, crop.width, 3), np.float32))
        feather = int(rng.integers(0, 12))
        options = list(OPTIONS.values())[number % len(OPTIONS)]
        result = paste_paintings(crop, painted, replace(options, feather=feather)).image
        distance = np.stack([np.asarray(ndimage.distance_transform_edt(m.numpy() < 0.5)) for m in mask])
        outside = torch.from_numpy(distance > feather)
        saved = [np.clip(255.0 * x[outside].numpy(), 0, 255).astype(np.uint8) for x in (result, image)]
        wrong += not torch.equal(result[outside], image[outside]) or not np.array_equal(saved[0], saved[1])
    print(
        f"\n**Bits outside the soft edge** ({count} random sizes, masks and batches)\n\n{wrong} cases differ"
    )


# -- pictures of a real model -------------------------------------------------------------


def real_pictures(folder: Path) -> None:
    """Print the seam of a model's own pictures with each option; the drift is not known here."""
    names = sorted(file.name.removesuffix(".original.png") for file in folder.glob("*.original.png"))
    if not names:
        raise SystemExit(f"{folder} holds no NAME.original.png; see --help.")
    seams: dict[str, list[float]] = {label: [] for label in OPTIONS}
    before, after, moved = [], [], 0
    for name in names:
        original, painted, mask = (
            read(folder / f"{name}.{kind}.png") for kind in ("original", "painted", "mask")
        )
        inside = mask[..., 0] > 0.5
        crop = whole_pictures(tensor(original), tensor(inside))
        known = np.asarray(ndimage.distance_transform_edt(~inside)) > BEST.feather
        for label, options in OPTIONS.items():
            work = compare(crop, crop.places[0], tensor(painted), options)
            _, _, difference = measure_colours(work, options)
            seams[label].append(difference)
            if options == BEST:
                moved += bool(work.alignment and work.alignment.applies)
        if painted.shape == original.shape:
            before.append(outside_changed(original, painted, known))
        image = paste_paintings(crop, tensor(painted), BEST).image[0].numpy()
        after.append(outside_changed(original, image, known))
    print(f"**{folder.name}** (n = {len(names)}), moved: {moved}\n")
    print("| | dE00 of the surroundings | median | 95 % |\n|---|---:|---:|---:|")
    for label, values in seams.items():
        print(row(label, values))
    changed = Mean.of(before).text(4) if before else "another size"
    print(
        f"\nPixels outside the soft edge that changed: as painted {changed}, pasted {Mean.of(after).text(4)}"
    )


def read(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB")) / 255.0


# -- time and memory ----------------------------------------------------------------------


def resident(peak: bool) -> float:
    """MiB this process holds, or held at most since `forget_peak`; Linux only, else 0."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    key = "VmHWM" if peak else "VmRSS"
    return sum(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def forget_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5", encoding="utf-8")


def spent(job: Callable[[], object], runs: int = 3) -> tuple[float, float, float, object]:
    """Median seconds by the clock and of the processor, MiB at the peak beyond the start, and the result."""
    clock, work, memory, result = [], [], [], None
    for _ in range(runs):
        result = None
        forget_peak()
        start, begun, busy = resident(False), time.perf_counter(), time.process_time()
        result = job()
        clock.append(time.perf_counter() - begun)
        work.append(time.process_time() - busy)
        memory.append(resident(True) - start)
    return float(np.median(clock)), float(np.median(work)), max(memory), result


def sizes(_: int = 0) -> None:
    """Print time and memory of crop and paste at 1, 4 and 24 megapixels, with a crop of 1 megapixel."""
    torch.set_num_threads(2)
    print(f"\n**Time and memory** (mask {SHARE:.0%}, crop 1024 x 1024, two threads, median of 3 runs)\n")
    print("| picture | step | seconds | processor seconds | MiB at the peak | finished picture MiB |")
    print("|---|---|---:|---:|---:|---:|")
    photo = tensor(photographs()["astronaut"]).movedim(-1, 1)
    for height, width in SIZES:
        image = torch.nn.functional.interpolate(photo, (height, width), mode="bicubic", antialias=True)
        image = image.clamp(0, 1).movedim(1, -1).contiguous()
        side = round((SHARE * height * width) ** 0.5)
        top, left = (height - side) // 2, (width - side) // 2
        mask = fill_box(Box(top, left, top + side, left + side), height, width)
        name, finished = f"{height * width / 1e6:.0f} MP", image.numel() * 4 / 2**20

        def line(step: str, result: tuple, name=name, finished=finished) -> object:
            clock, work, memory, value = result
            print(
                f"| {name} | {step} | {clock:.2f} | {work:.2f} | {memory:.0f} | {finished:.0f} |", flush=True
            )
            return value

        def cropped(image=image, mask=mask):
            crop = plan_crops(image, mask, size_options=SizeOptions())
            return crop, crop_pictures(crop)

        crop, picture = line("crop", spent(cropped))
        moved = torch.roll(picture, (3, 5), (1, 2)) * 0.95 + 0.02
        for step, options in {
            "paste": PasteOptions(),
            "paste: shift and scale, smooth field": BEST,
            "paste: affine, mean and deviation": PasteOptions(align=AFFINE, colour=LAB),
            "paste: gradient domain": PasteOptions(blend=GRADIENT),
            "paste: what changed": PasteOptions(area=CHANGED, align=SHIFT_AND_SCALE, colour=FIELD),
        }.items():
            line(
                step,
                spent(lambda options=options, crop=crop, moved=moved: paste_paintings(crop, moved, options)),
            )


PARTS = {
    "both": lambda cases: planted("Shift, scale and cast, with noise and JPEG", cases),
    "drift": lambda cases: planted("Shift and scale, with noise and JPEG", cases, cast=False),
    "cast": lambda cases: planted("Cast, with noise and JPEG", cases, drift=False),
    "nothing": nothing_planted,
    "impossible": impossible,
    "outside": outside,
    "bits": bits,
    "sizes": sizes,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--pictures", type=Path, help="a folder with a real model's pictures")
    arguments = parser.parse_args()
    if arguments.pictures:
        return real_pictures(arguments.pictures)
    print(f"{len(photographs())} photographs: {', '.join(photographs())}")
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part(arguments.cases)


if __name__ == "__main__":
    main()
