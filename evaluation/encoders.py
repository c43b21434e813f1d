"""Embed images and sentences for the similarity measures: one protocol, and folders of transformers.

An encoder has a `name` (shown in tables), a `size`, and maps images to unit-norm vectors. Nothing is
downloaded: the folders are the user's.
"""

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import libraries
from ..common.files import read_json

CLASS_TOKEN_MODELS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")


class ImageEncoder(Protocol):
    """Map images (B, 3, H, W) in [0, 1] to unit-norm embeddings (B, D)."""

    @property
    def name(self) -> str:
        """The name of the backbone in tables."""
        ...

    @property
    def size(self) -> int:
        """The side of its square input images in pixels."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the embeddings of images."""
        ...


class TextImageEncoder(ImageEncoder, Protocol):
    """An image encoder that maps sentences to the same space, as CLIP does."""

    def text(self, prompts: list[str]) -> Tensor:
        """Return unit-norm embeddings (B, D) of sentences."""
        ...


class TransformersEncoder:
    """The class token of a vision transformer: DINO (ViT), DINOv2 or DINOv3 in transformers' layout."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        self.model = self._load(folder).eval().requires_grad_(False).to(device)
        self.processor = libraries.transformers().AutoImageProcessor.from_pretrained(
            folder, local_files_only=True
        )
        self.name = f"{self.model.config.model_type} ({folder.name})"
        input_size = getattr(self.processor, "crop_size", None) or self.processor.size
        self.size = int(input_size.get("height") or input_size["shortest_edge"])

    def _load(self, folder: Path):
        return libraries.transformers().AutoModel.from_pretrained(
            folder, local_files_only=True, weights_only=True
        )

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return unit-norm embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        made_to_fit = images.shape[-2:] == (self.size, self.size)  # no second crop of a subject's square
        pixels = self.processor(
            images=list(images.cpu()),
            do_rescale=False,
            return_tensors="pt",
            **({"do_resize": False, "do_center_crop": False} if made_to_fit else {}),
        )["pixel_values"]
        return F.normalize(self._embed(pixels.to(self.model.device, self.model.dtype)).float(), dim=-1)


class ClipEncoder(TransformersEncoder):
    """CLIP's projected embeddings of images and sentences (Radford et al. 2021)."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        super().__init__(folder, device)
        self.tokenizer = libraries.transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Tensor:
        """Return unit-norm embeddings (B, D) of sentences."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        hidden = self.model.text_model(**tokens.to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(hidden).float(), dim=-1)


def load_image_text_encoder(folder: Path, device: torch.device | str = "cpu") -> TransformersEncoder:
    """Load the encoder in a transformers folder (config.json, weights, preprocessor_config.json).

    Weights are read from safetensors, or from a pickle with `weights_only=True`.

    Raises:
        ValueError: if the folder has no CLIP or DINO.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"encoder: {folder} holds no config.json; give the folder of a CLIP or DINO model.")
    kind = read_json(config, "encoder").get("model_type")
    if kind == "clip":
        return ClipEncoder(folder, device)
    if kind in CLASS_TOKEN_MODELS:
        return TransformersEncoder(folder, device)
    raise ValueError(f"encoder: {folder} holds a {kind} model; give the folder of a CLIP or DINO model.")
