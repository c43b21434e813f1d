from types import SimpleNamespace

import pytest


@pytest.fixture
def parts(random_tiny):
    """MODEL, CLIP and VAE of a 9-channel checkpoint."""
    return SimpleNamespace(**dict(zip(("model", "clip", "vae"), random_tiny(9), strict=True)))
