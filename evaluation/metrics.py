"""Measures of an insertion: is it the subject, is it what the words say, is the background left alone?

Every function gives one number per picture (B,), so that tables can say how sure a mean is. Pictures are
(B, 3, H, W) in [0, 1], masks (B, H, W) with 1 = subject.
"""

from pathlib import Path

import torch
from torch import Tensor

from .crops import subject_crops
from .encoders import ImageEncoder, TextImageEncoder

LPIPS_BACKBONES = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


def subject_similarity(
    encoder: ImageEncoder, images: Tensor, masks: Tensor, references: Tensor, reference_masks: Tensor
) -> Tensor:
    """Mean cosine (B,), in [-1, 1], of each picture's subject to those of all R references; more is better.

    CLIP-I and DINO of DreamBooth (Ruiz et al. 2023, sec. 4.1) on the subjects' own regions: everything
    outside the masks is grey. Pictures and references may differ in size.
    """
    seen = encoder(subject_crops(images, masks, encoder.size))
    known = encoder(subject_crops(references, reference_masks, encoder.size))
    return (seen @ known.T).mean(1)


def text_similarity(encoder: TextImageEncoder, images: Tensor, prompts: list[str]) -> Tensor:
    """CLIP-T: the cosine (B,) of each whole picture and its prompt; higher is better."""
    return (encoder(images) * encoder.text(prompts)).sum(1)


def background_ssim(images: Tensor, originals: Tensor, masks: Tensor) -> Tensor:
    """Structural similarity (B,) to the original outside the mask, at most 1 (Wang et al. 2004).

    The hole shows the original in both pictures, so that windows over its edge see no difference in there,
    and the mean is taken over the pixels outside.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    inside = masks[:, None] > 0.5
    filled = torch.where(inside, originals, images)
    _, local = structural_similarity_index_measure(
        filled, originals, data_range=1.0, reduction="none", return_full_image=True
    )
    outside = (~inside).expand_as(local)
    return (local * outside).sum((1, 2, 3)) / outside.sum((1, 2, 3))


def background_lpips(images: Tensor, originals: Tensor, masks: Tensor, backbone: str = "alex") -> Tensor:
    """LPIPS distance (B,) to the original with the hole filled from it; 0 = alike (Zhang et al. 2018).

    The mean runs over the whole picture, as in published tables, so a large hole makes it small. Raises
    ValueError where torchvision's weights of the backbone are not on this machine: nothing is downloaded.
    """
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    _check_lpips(backbone)
    filled = torch.where(masks[:, None] > 0.5, originals, images)
    pairs = zip(filled.split(1), originals.split(1), strict=True)
    scores = [
        learned_perceptual_image_patch_similarity(a, b, net_type=backbone, normalize=True)  # pyright: ignore[reportArgumentType]
        for a, b in pairs
    ]
    return torch.stack(scores)


def _check_lpips(backbone: str) -> None:
    import torchvision

    address = getattr(torchvision.models, LPIPS_BACKBONES[backbone]).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[-1]
    if not file.is_file():
        raise ValueError(
            f"LPIPS: the weights of its backbone are not here; put {file.name} into {file.parent}."
        )


def lab_colour(images: Tensor, masks: Tensor) -> Tensor:
    """The mean colour (B, 3) under each mask in CIE L*a*b* (D65), from sRGB.

    Raises ValueError for an empty mask.
    """
    from skimage.color import rgb2lab

    inside = (masks > 0.5).cpu()
    if not inside.flatten(1).any(1).all():
        raise ValueError("mask: it is empty, so it shows no colour; paint over the subject.")
    lab = torch.from_numpy(rgb2lab(images.detach().cpu().double().movedim(1, -1).numpy()))
    weight = inside[..., None].double()
    return (lab * weight).sum((1, 2)) / weight.sum((1, 2))


def colour_error(images: Tensor, masks: Tensor, truths: Tensor, truth_masks: Tensor) -> Tensor:
    """CIEDE2000 (B,) between the subjects' mean colours; 1 is just noticeable, 0 is none (CIE 142-2001)."""
    from skimage.color import deltaE_ciede2000

    seen, wanted = lab_colour(images, masks), lab_colour(truths, truth_masks)
    return torch.from_numpy(deltaE_ciede2000(seen.numpy(), wanted.numpy()))
