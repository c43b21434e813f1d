"""Image encoders for the measures of likeness: one small protocol, and transformers folders behind it.

An encoder is anything with a `name` (it stands in every table), a `size` and a call from pictures to
unit-norm vectors; the tiny world brings its own. Nothing is downloaded: a folder is the user's.
"""

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.text_files import read_json

CLASS_TOKEN_MODELS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")


class ImageEncoder(Protocol):
    """Pictures (B, 3, H, W) in [0, 1] -> unit-norm embeddings (B, D)."""

    @property
    def name(self) -> str:
        """The backbone, as it should stand in a table."""
        ...

    @property
    def size(self) -> int:
        """The side of the square pictures it was made for, in pixels."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor: ...


class TextImageEncoder(ImageEncoder, Protocol):
    """An image encoder whose space holds sentences too, as CLIP's does."""

    def text(self, prompts: list[str]) -> Tensor:
        """Sentences -> unit-norm embeddings (B, D)."""
        ...


class TransformersEncoder:
    """A vision transformer's class token: DINO (ViT), DINOv2 and DINOv3 in transformers' layout."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        from transformers import AutoImageProcessor

        self.model = self._load(folder).eval().requires_grad_(False).to(device)
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.name = f"{self.model.config.model_type} ({folder.name})"
        kept = getattr(self.processor, "crop_size", None) or self.processor.size
        self.size = int(kept.get("height") or kept["shortest_edge"])

    def _load(self, folder: Path):
        from transformers import AutoModel

        return AutoModel.from_pretrained(folder, local_files_only=True, weights_only=True)

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        made_to_fit = images.shape[-2:] == (self.size, self.size)  # no second crop of a subject's square
        pixels = self.processor(
            images=list(images.cpu()),
            do_rescale=False,
            return_tensors="pt",
            **({"do_resize": False, "do_center_crop": False} if made_to_fit else {}),
        )["pixel_values"]
        return F.normalize(self._embed(pixels.to(self.model.device, self.model.dtype)).float(), dim=-1)


class ClipEncoder(TransformersEncoder):
    """CLIP's projected embeddings of pictures and sentences (Radford et al. 2021)."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        super().__init__(folder, device)
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        words = self.model.text_model(**tokens.to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(words).float(), dim=-1)


def load_image_text_encoder(folder: Path, device: torch.device | str = "cpu") -> TransformersEncoder:
    """The encoder in a transformers folder (config.json, weights, preprocessor_config.json), by model type.

    Weights come from safetensors, or from a pickle through `weights_only=True`. Raises ValueError for a
    folder that holds no CLIP or DINO.
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
