"""The tiny world's judge: which thing is this, and is it the same one? Trained on renderings alone.

A small convolutional network. Its unit-norm embedding is the tiny world's own image encoder (two renderings
of one thing lie close, whatever the room, pose and light); linear heads on it name class, colour, pattern,
accessory and trim.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ...imaging.object_picture import subject_crops
from .. import world
from .files import WEIGHTS

SIZE = 40  # pixels a side of the crop the judge looks at
MARGIN = 0.05
# the fields of a Thing the judge names, with what they can be
NAMES: dict[str, tuple[str, ...]] = {
    "kind": world.CLASSES,
    "colour": tuple(world.COLOURS),
    "pattern": world.PATTERNS,
    "accessory": world.ACCESSORIES,
    "trim": tuple(world.TRIMS),
}


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in one crop; `sure` holds the probability of each name."""

    kind: str
    colour: str
    pattern: str
    accessory: str
    trim: str
    sure: dict[str, float]


def _stage(channels: int, wider: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, wider, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wider), nn.ReLU(inplace=True))


class Judge(nn.Module):
    """Crops (B, 3, 40, 40) in [0, 1] -> unit-norm embeddings (B, 128); 0.3 M parameters.

    As an image encoder it takes crops of any size and resizes them.
    """

    name = "tiny world's judge"
    size = SIZE
    WIDTH = 128

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            _stage(3, 16, 5, 2), _stage(16, 32, 3, 1), _stage(32, 64, 3, 2), _stage(64, 64, 3, 1),
            _stage(64, 128, 3, 2), _stage(128, 128, 3, 1),
        )  # fmt: skip
        self.embed = nn.Linear(2 * 128, self.WIDTH)
        # a unit vector alone cannot give a head confident logits
        self.heads = nn.ModuleDict(
            {field: nn.Linear(self.WIDTH, len(names)) for field, names in NAMES.items()}
        )
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, crops: Tensor) -> Tensor:
        if crops.shape[-2:] != (SIZE, SIZE):
            crops = F.interpolate(crops, (SIZE, SIZE), mode="bilinear", antialias=True)
        seen = self.trunk(((crops - 0.5) * 4).contiguous(memory_format=torch.channels_last))
        return F.normalize(self.embed(torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1)), dim=1)

    def logits(self, embedding: Tensor) -> dict[str, Tensor]:
        return {field: head(self.scale * embedding) for field, head in self.heads.items()}

    @torch.no_grad()
    def describe(self, images: Tensor, masks: Tensor) -> list[Verdict]:
        """Name what images (B, 3, H, W) in [0, 1] show under masks (B, H, W), a filled box or an outline."""
        logits = self.logits(self(subject_crops(images, masks, SIZE, MARGIN)))
        best = {field: values.softmax(1).max(1) for field, values in logits.items()}
        return [
            Verdict(
                **{field: NAMES[field][int(top.indices[i])] for field, top in best.items()},
                sure={field: float(top.values[i]) for field, top in best.items()},
            )
            for i in range(len(images))
        ]


def load_judge(path: Path = WEIGHTS / "judge.safetensors") -> Judge:
    """The trained judge, ready to look."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return judge.eval().requires_grad_(False)
