"""Score results against their cases with every measure whose weights are given."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..common.files import SUFFIXES
from ..imaging.boxes import Box
from ..imaging.masks import fill_box
from ..imaging.object_picture import subject_crops
from ..imaging.picture_files import read_mask, read_picture
from ..imaging.references import read_reference
from .benchmark_datasets import Case, References, pictures
from .encoders import ImageEncoder, TextImageEncoder
from .metrics import background_lpips, background_ssim, text_similarity

Distance = Callable[[Tensor, Tensor], float]  # of two pictures (1, 3, H, W) in [0, 1]


@dataclass
class Measures:
    """The networks to measure with: encoders by measure, CLIP for prompts, LPIPS' backbone and DreamSim."""

    encoders: dict[str, ImageEncoder] = field(default_factory=dict)
    clip: TextImageEncoder | None = None
    lpips: str | None = None
    dreamsim: Distance | None = None
    embedding_cache: dict[tuple[str, References], Tensor] = field(default_factory=dict)

    @torch.inference_mode()
    def of(self, case: Case, result: Path) -> dict[str, float]:
        """Return the measures of one result; those of the background only if the case has one."""
        image = load_picture(result)
        hole = hole_of(case, image.shape[-2:])
        whole_image = hole is None
        region = image.new_ones(1, *image.shape[-2:]) if hole is None else hole
        if (beside := foreground_of(result, image.shape[-2:])) is not None:
            region, whole_image = beside, False
        scores = {}
        for name, encoder in self.encoders.items() if case.references else ():
            embedding = encoder(subject_crops(image, region, encoder.size))
            scores[name] = float((embedding @ self.subject(encoder, case.references, whole_image).T).mean())
        if self.clip and case.caption:
            scores["CLIP-T"] = float(text_similarity(self.clip, image, [case.caption]))
        if self.dreamsim and case.references:
            crop = subject_crops(image, region, 224)
            distances = [
                self.dreamsim(crop, reference) for reference in self.crops(case.references, 224, whole_image)
            ]
            scores["DreamSim"] = sum(distances) / len(distances)
        if hole is not None and case.background:
            original = resized(load_picture(case.background), image.shape[-2:])
            scores["SSIM"] = float(background_ssim(image, original, hole))
            if self.lpips:
                scores["LPIPS"] = float(background_lpips(image, original, hole, self.lpips))
        return scores

    def subject(self, encoder: ImageEncoder, references: References, whole_image: bool) -> Tensor:
        """Return the embeddings (R, D) of the references: of the subjects only, or of the whole images."""
        key = (f"{encoder.name} {whole_image}", references)
        if key not in self.embedding_cache:
            self.embedding_cache[key] = encoder(torch.cat(self.crops(references, encoder.size, whole_image)))
        return self.embedding_cache[key]

    @staticmethod
    def crops(references: References, size: int, whole_image: bool) -> list[Tensor]:
        """Return the reference images (1, 3, size, size), cropped to their subjects or whole."""
        loaded = [read_reference(picture, mask) for picture, mask in references]
        return [
            subject_crops(image.movedim(-1, 1), torch.ones_like(mask) if whole_image else mask, size)
            for image, mask in loaded
        ]


def load_picture(picture: Path) -> Tensor:
    """Return an image file as (1, 3, H, W) in [0, 1]."""
    return read_picture(picture, "picture")[..., :3].movedim(-1, 1)


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Return the image resized to (height, width) with antialiasing; the same tensor if it has that size."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return torch.nn.functional.interpolate(image, tuple(size), mode="bicubic", antialias=True).clamp(0, 1)


def hole_of(case: Case, size: Sequence[int]) -> Tensor | None:
    """Return the case's hole (1, H, W) for a result of the given size, 1 = hole; None if it has no hole."""
    if case.hole is None:
        return None
    if isinstance(case.hole, Box):
        assert case.background, "a box needs the size of a background"
        height, width = load_picture(case.background).shape[-2:]
        mask = fill_box(case.hole.clamp(height, width), height, width)
    else:
        mask = read_mask(case.hole, "hole")
    return (resized(mask[:, None], size)[:, 0] > 0.5).float()


def foreground_of(result: Path, size: Sequence[int]) -> Tensor | None:
    """Return the subject's mask (1, H, W) in `<result>_mask.png` beside a result, or None without that file.

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
    """Return the mean of each measure over pictures of one case."""
    return {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}


def find_result(folder: Path, case: Case, stem: str | None = None) -> Path | None:
    """Return the case's result, None if there is none.

    It is `<name>.<suffix>`, or an image in the folder `<name>`: the one called `stem`, or the only one.

    Raises:
        ValueError: if the folder has several images and no `stem` is given.
    """
    for suffix in SUFFIXES:
        if (file := folder / f"{case.name}{suffix}").is_file():
            return file
    candidates = [p for p in pictures(folder / case.name) if stem in (None, p.stem)]
    if len(candidates) > 1:
        names = ", ".join(p.stem for p in candidates)
        raise ValueError(f"{folder / case.name} holds several pictures; choose with --picture: {names}.")
    return candidates[0] if candidates else None


def score_folder(
    folder: Path,
    cases: Sequence[Case],
    measures: Measures,
    stem: str | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, float]]:
    """Return case name -> measures of every case with a result in `folder`; the mean of several composites.

    Args:
        folder: the results.
        cases: of the benchmark.
        measures: the networks.
        stem: name of the image, if a result is a folder of several.
        on_progress: called with the number of scored cases.

    Raises:
        ValueError: if no case has a result.
    """
    found = {case: results for case in cases if (results := find_results(folder, case, stem))}
    if not found:
        raise ValueError(f"{folder} holds no result; the first would be {folder / cases[0].name}.png.")
    scores = {}
    for done, (case, results) in enumerate(found.items(), 1):
        scores[case.name] = mean_of([measures.of(case, result) for result in results])
        on_progress(done)
    return scores
