"""The pictures of a training."""

import numpy as np
import pytest
import torch
from PIL import Image

from inlay.training.finetune.progress import MAX_STRIP_SAMPLES, WIDTH, draw_curve, draw_strip, image_to_tensor


def test_a_note_is_written_into_the_curve():
    plain, noted = draw_curve([3.0, 2.0, 1.0], "cat"), draw_curve([3.0, 2.0, 1.0], "cat", notes=["look out"])
    assert plain.shape == noted.shape
    left = plain.shape[2] // 2  # the last loss stands at the right, beside the title
    changed = [
        (other != plain)[0, :, :left].any(-1).any(-1).nonzero()
        for other in (draw_curve([3.0, 2.0, 1.0], "hat"), noted, draw_curve([1.0, 2.0, 3.0], "cat"))
    ]
    title, note, curve = ((rows.min(), rows.max()) for rows in changed)
    assert title[1] < note[0]
    assert note[1] < curve[0]


@pytest.mark.parametrize("count", [1, 3, 6, 40])
@pytest.mark.parametrize("shape", [(64, 64, 3), (96, 64, 3), (300, 500, 3)])
def test_samples_stand_side_by_side_from_the_first_to_the_last(count, shape):
    samples = {
        (n + 1) * 10: torch.full(shape, 40 + 200 * (n + 1) // count, dtype=torch.uint8) for n in range(count)
    }
    strip = np.asarray(draw_strip(samples))
    assert strip.shape[1] == WIDTH
    middle = strip[strip.shape[0] // 3]
    step = WIDTH // MAX_STRIP_SAMPLES
    shown = [int(middle[column * step + step // 2, 0]) for column in range(min(count, MAX_STRIP_SAMPLES))]
    assert shown == sorted(set(shown))
    assert shown[0] == int(samples[10][0, 0, 0])
    assert shown[-1] == int(samples[count * 10][0, 0, 0])


def test_a_stored_strip_is_the_same_picture(tmp_path):
    strip = draw_strip({5: torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8)})
    strip.save(tmp_path / "cat.png")
    assert torch.equal(image_to_tensor(Image.open(tmp_path / "cat.png")), image_to_tensor(strip))
