"""Score results against their cases with every measure whose weights are given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..imaging.boxes import Box
from ..imaging.masks import fill_box
from ..imaging.references import SUFFIXES, read_reference
from .crops import subject_crops
from .encoders import ImageEncoder, TextImageEncoder
from .metrics import background_lpips, background_ssim, text_similarity
from .readers import Case, References, pictures

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
    return read_reference(picture, None)[0].movedim(-1, 1)


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
        mask = load_picture(case.hole)[:, 0]
    return (resized(mask[:, None], size)[:, 0] > 0.5).float()


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
    """Return case name -> measures for every case that has a result in `folder`.

    Args:
        folder: the results.
        cases: of the benchmark.
        measures: the networks.
        stem: name of the image, if a result is a folder of several.
        on_progress: called with the number of scored cases.

    Raises:
        ValueError: if no case has a result.
    """
    results = {case: result for case in cases if (result := find_result(folder, case, stem))}
    if not results:
        raise ValueError(f"{folder} holds no result; the first would be {folder / cases[0].name}.png.")
    scores = {}
    for done, (case, result) in enumerate(results.items(), 1):
        scores[case.name] = measures.of(case, result)
        on_progress(done)
    return scores
