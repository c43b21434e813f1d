"""Measure an insertion: similarity to the subject and to the prompt, and preservation of the background.

Every function returns one number per image (B,), so that tables can give standard errors. Images are
(B, 3, H, W) in [0, 1], masks (B, H, W) with 1 = subject.
"""

from pathlib import Path

import torch
from torch import Tensor

from ..common import libraries
from ..imaging.object_picture import subject_crops
from .encoders import ImageEncoder, TextImageEncoder

LPIPS_BACKBONES = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


def subject_similarity(
    encoder: ImageEncoder, images: Tensor, masks: Tensor, references: Tensor, reference_masks: Tensor
) -> Tensor:
    """Return the mean cosine similarity (B,) of each image's subject to the R references; higher is better.

    CLIP-I and DINO of DreamBooth (Ruiz et al. 2023, sec. 4.1) on the subject's region: everything outside the
    masks is grey. Values are in [-1, 1]. Images and references may differ in size.
    """
    embeddings = encoder(subject_crops(images, masks, encoder.size))
    reference_embeddings = encoder(subject_crops(references, reference_masks, encoder.size))
    return (embeddings @ reference_embeddings.T).mean(1)


def text_similarity(encoder: TextImageEncoder, images: Tensor, prompts: list[str]) -> Tensor:
    """Return CLIP-T: the cosine similarity (B,) of each whole image and its prompt; higher is better."""
    return (encoder(images) * encoder.text(prompts)).sum(1)


def background_ssim(images: Tensor, originals: Tensor, masks: Tensor) -> Tensor:
    """Return the structural similarity (B,) to the original outside the mask, at most 1 (Wang et al. 2004).

    The hole is filled from the original, so that windows across its edge find no difference there; the mean
    is taken over the pixels outside.
    """
    inside = masks[:, None] > 0.5
    filled = torch.where(inside, originals, images)
    _, local = libraries.torchmetrics().functional.image.structural_similarity_index_measure(
        filled, originals, data_range=1.0, reduction="none", return_full_image=True
    )
    outside = (~inside).expand_as(local)
    return (local * outside).sum((1, 2, 3)) / outside.sum((1, 2, 3))


def background_lpips(images: Tensor, originals: Tensor, masks: Tensor, backbone: str = "alex") -> Tensor:
    """Return the LPIPS distance (B,) to the original; 0 = equal (Zhang et al. 2018).

    The hole is filled from the original. The mean is taken over the whole image, as in published tables, so a
    large hole makes it small.

    Raises:
        ValueError: if torchvision's weights of the backbone are not on this machine; nothing is downloaded.
    """
    _check_lpips(backbone)
    lpips = libraries.torchmetrics().functional.image.learned_perceptual_image_patch_similarity
    filled = torch.where(masks[:, None] > 0.5, originals, images)
    pairs = zip(filled.split(1), originals.split(1), strict=True)
    scores = [
        lpips(a, b, net_type=backbone, normalize=True)  # pyright: ignore[reportArgumentType]
        for a, b in pairs
    ]
    return torch.stack(scores)


def _check_lpips(backbone: str) -> None:
    url = getattr(libraries.torchvision().models, LPIPS_BACKBONES[backbone]).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not file.is_file():
        raise ValueError(
            f"LPIPS: the weights of its backbone are missing; put {file.name} into {file.parent}."
        )


def lab_colour(images: Tensor, masks: Tensor) -> Tensor:
    """Return the mean colour (B, 3) under each mask in CIE L*a*b* (D65), from sRGB images.

    Raises:
        ValueError: if a mask is empty.
    """
    inside = (masks > 0.5).cpu()
    if not inside.flatten(1).any(1).all():
        raise ValueError("mask: it is empty, so the subject has no colour; paint over the subject.")
    lab = torch.from_numpy(
        libraries.skimage_color().rgb2lab(images.detach().cpu().double().movedim(1, -1).numpy())
    )
    weight = inside[..., None].double()
    return (lab * weight).sum((1, 2)) / weight.sum((1, 2))


def colour_error(images: Tensor, masks: Tensor, truths: Tensor, truth_masks: Tensor) -> Tensor:
    """Return CIEDE2000 (B,) between the subjects' mean colours; about 1 is just noticeable (CIE 142-2001)."""
    colours, true_colours = lab_colour(images, masks), lab_colour(truths, truth_masks)
    difference = libraries.skimage_color().deltaE_ciede2000
    return torch.from_numpy(difference(colours.numpy(), true_colours.numpy()))
