"""Results against their cases: every measure that the weights at hand allow, one number per picture."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..imaging.boxes import Box
from ..imaging.masks import fill_box
from ..imaging.picture_files import SUFFIXES, read_mask, read_picture
from ..imaging.references import read_reference
from .crops import subject_crops
from .encoders import ImageEncoder, TextImageEncoder
from .metrics import background_lpips, background_ssim, text_similarity
from .readers import Case, References, pictures

Distance = Callable[[Tensor, Tensor], float]  # of two pictures (1, 3, H, W) in [0, 1]


@dataclass
class Measures:
    """What to measure with: encoders by the measure's name, CLIP for prompts, LPIPS' backbone, DreamSim."""

    encoders: dict[str, ImageEncoder] = field(default_factory=dict)
    clip: TextImageEncoder | None = None
    lpips: str | None = None
    dreamsim: Distance | None = None
    known: dict[tuple[str, References], Tensor] = field(default_factory=dict)  # subjects embedded before

    @torch.inference_mode()
    def of(self, case: Case, result: Path) -> dict[str, float]:
        """The measures of one picture; those of the background only where the case has one."""
        image = load_picture(result)
        hole = hole_of(case, image.shape[-2:])
        whole = hole is None
        region = image.new_ones(1, *image.shape[-2:]) if hole is None else hole
        if (beside := foreground_of(result, image.shape[-2:])) is not None:
            region, whole = beside, False
        scores = {}
        for name, encoder in self.encoders.items() if case.references else ():
            seen = encoder(subject_crops(image, region, encoder.size))
            scores[name] = float((seen @ self.subject(encoder, case.references, whole).T).mean())
        if self.clip and case.caption:
            scores["CLIP-T"] = float(text_similarity(self.clip, image, [case.caption]))
        if self.dreamsim and case.references:
            shown = subject_crops(image, region, 224)
            distances = [self.dreamsim(shown, crop) for crop in self.crops(case.references, 224, whole)]
            scores["DreamSim"] = sum(distances) / len(distances)
        if hole is not None and case.background:
            original = resized(load_picture(case.background), image.shape[-2:])
            scores["SSIM"] = float(background_ssim(image, original, hole))
            if self.lpips:
                scores["LPIPS"] = float(background_lpips(image, original, hole, self.lpips))
        return scores

    def subject(self, encoder: ImageEncoder, references: References, whole: bool) -> Tensor:
        """The references' embeddings (R, D); subjects alone, or their whole pictures."""
        key = (f"{encoder.name} {whole}", references)
        if key not in self.known:
            self.known[key] = encoder(torch.cat(self.crops(references, encoder.size, whole)))
        return self.known[key]

    @staticmethod
    def crops(references: References, size: int, whole: bool) -> list[Tensor]:
        loaded = [read_reference(picture, mask) for picture, mask in references]
        return [
            subject_crops(image.movedim(-1, 1), torch.ones_like(mask) if whole else mask, size)
            for image, mask in loaded
        ]


def load_picture(picture: Path) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return read_picture(picture, "picture")[..., :3].movedim(-1, 1)


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """To (height, width), antialiased; the very same tensor where it has that size."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return torch.nn.functional.interpolate(image, tuple(size), mode="bicubic", antialias=True).clamp(0, 1)


def hole_of(case: Case, size: Sequence[int]) -> Tensor | None:
    """The case's hole (1, H, W) on a result of that size, or None; 1 = hole."""
    if case.hole is None:
        return None
    if isinstance(case.hole, Box):
        assert case.background, "a box is in the pixels of a background"
        height, width = load_picture(case.background).shape[-2:]
        mask = fill_box(case.hole.clamp(height, width), height, width)
    else:
        mask = read_mask(case.hole, "hole")
    return (resized(mask[:, None], size)[:, 0] > 0.5).float()


def foreground_of(result: Path, size: Sequence[int]) -> Tensor | None:
    """The subject's mask (1, H, W) in `<result>_mask.png` beside a result, or None without that file.

    Raises ValueError when it is empty.
    """
    file = result.with_name(f"{result.stem}_mask.png")
    if not file.is_file():
        return None
    mask = (resized(read_mask(file, "mask")[:, None], size)[:, 0] > 0.5).float()
    if not mask.any():
        raise ValueError(f"mask: {file} is empty; paint over the subject, or remove it.")
    return mask


def find_results(folder: Path, case: Case, stem: str | None = None) -> list[Path]:
    """All pictures of a case: `find_result`, or the composites `<stem>_1` to `<stem>_N` in its folder."""
    found = pictures(folder / case.name)
    stems = {re.sub(r"_\d+$", "", p.stem) for p in found}
    if len(found) > 1 and (stems == {stem} or (stem is None and len(stems) == 1)):
        return found
    result = find_result(folder, case, stem)
    return [] if result is None else [result]


def mean_of(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each measure over pictures of one case."""
    return {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}


def find_result(folder: Path, case: Case, stem: str | None = None) -> Path | None:
    """The case's picture: `<name>.<suffix>`, or the one in the folder `<name>` (the one called `stem`).

    Raises ValueError when the folder holds several and none is named.
    """
    for suffix in SUFFIXES:
        if (file := folder / f"{case.name}{suffix}").is_file():
            return file
    found = [p for p in pictures(folder / case.name) if stem in (None, p.stem)]
    if len(found) > 1:
        names = ", ".join(p.stem for p in found)
        raise ValueError(f"{folder / case.name} holds several pictures; choose with --picture: {names}.")
    return found[0] if found else None


def score_folder(
    folder: Path,
    cases: Sequence[Case],
    measures: Measures,
    stem: str | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, float]]:
    """Case name -> measures, of every case that has a result in `folder`; the mean of several composites.

    Raises ValueError when no case has one.
    """
    found = {case: results for case in cases if (results := find_results(folder, case, stem))}
    if not found:
        raise ValueError(f"{folder} holds no result; the first would be {folder / cases[0].name}.png.")
    scores = {}
    for done, (case, results) in enumerate(found.items(), 1):
        scores[case.name] = mean_of([measures.of(case, result) for result in results])
        tell(done)
    return scores
