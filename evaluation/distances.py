"""Compute distances with the user's weights: DreamSim between two images, FID between two sets of images."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common import libraries
from .encoders import ImageEncoder


def load_dreamsim(folder: Path, device: torch.device | str = "cpu") -> Callable[[Tensor, Tensor], float]:
    """Load DreamSim's ensemble (Fu et al. 2023) from `folder`; nothing is downloaded.

    Returns:
        A function from two images (1, 3, H, W) in [0, 1] to their distance.

    Raises:
        ValueError: if its package is not installed or its weights are not in the folder.
    """
    try:
        from dreamsim import dreamsim  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ValueError("DreamSim: its package is not installed; pip install dreamsim.") from None
    if not any(folder.glob("ensemble_lora*")):
        raise ValueError(f"DreamSim: {folder} holds no ensemble_lora weights; unpack its release there.")
    model, _ = dreamsim(pretrained=True, device=str(device), cache_dir=str(folder))

    def distance(a: Tensor, b: Tensor) -> float:
        a, b = (nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True) for x in (a, b))
        return float(model(a.to(device), b.to(device)))

    return distance


class Features(nn.Module):
    """An image encoder as the feature network of a Frechet distance."""

    def __init__(self, encoder: ImageEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) on the CPU."""
        return self.encoder(images).cpu()  # torchmetrics accumulates on the CPU


def frechet_distance(
    generated: Iterable[Tensor], real: Iterable[Tensor], network: ImageEncoder | Path, side: int = 299
) -> float:
    """Return FID (Heusel et al. 2017) between two sets of images, each (1, 3, H, W) in [0, 1]; 0 = equal.

    Args:
        generated: the results.
        real: the reference set.
        network: file of torch-fidelity's Inception weights, or an encoder, which gives a Frechet distance
            other than FID; tables name it.
        side: input side of Inception in pixels; an encoder has its own.

    Raises:
        ValueError: if torch-fidelity is not installed or the file does not exist.
    """
    distance = libraries.torchmetrics().image.fid.FrechetInceptionDistance
    if isinstance(network, Path):
        if not network.is_file():
            raise ValueError(f"FID: there is no file {network} with torch-fidelity's Inception weights.")
        try:
            metric = distance(normalize=True, feature_extractor_weights_path=str(network))
        except ModuleNotFoundError:
            raise ValueError("FID: torch-fidelity is not installed; pip install torch-fidelity.") from None
    else:
        side = network.size
        metric = distance(Features(network), normalize=True, input_img_size=(3, side, side))
    for images, is_real in ((real, True), (generated, False)):
        for image in images:
            small = nn.functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
            metric.update(small, real=is_real)
    return float(metric.compute())
