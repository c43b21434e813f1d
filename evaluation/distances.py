"""Distances whose weights are the user's: DreamSim between two pictures, FID between two sets of them."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from .encoders import ImageEncoder


def load_dreamsim(folder: Path, device: torch.device | str = "cpu") -> Callable[[Tensor, Tensor], float]:
    """DreamSim's ensemble (Fu et al. 2023) from `folder`; two pictures (1, 3, H, W) in [0, 1] -> a distance.

    Raises ValueError when its package or its weights are not there: nothing is downloaded.
    """
    try:
        from dreamsim import dreamsim  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ValueError("DreamSim: its package is not here; pip install dreamsim.") from None
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
        return self.encoder(images).cpu()  # where torchmetrics keeps its sums


def frechet_distance(
    made: Iterable[Tensor], real: Iterable[Tensor], network: ImageEncoder | Path, side: int = 299
) -> float:
    """FID (Heusel et al. 2017) of two sets of pictures, each (1, 3, H, W) in [0, 1]; 0 = alike.

    `network` is the file of torch-fidelity's Inception weights, or any encoder of ours: then it is no FID,
    and the table says which encoder. Raises ValueError where torch-fidelity is not installed.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if isinstance(network, Path):
        if not network.is_file():
            raise ValueError(f"FID: there is no file {network} with torch-fidelity's Inception weights.")
        try:
            metric = FrechetInceptionDistance(normalize=True, feature_extractor_weights_path=str(network))
        except ModuleNotFoundError:
            raise ValueError("FID: torch-fidelity is not here; pip install torch-fidelity.") from None
    else:
        side = network.size
        metric = FrechetInceptionDistance(Features(network), normalize=True, input_img_size=(3, side, side))
    for images, is_real in ((real, True), (made, False)):
        for image in images:
            small = nn.functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
            metric.update(small, real=is_real)
    return float(metric.compute())
