"""Shared by every test: `inlay` is this checkout, whatever its folder is called."""

import pytest
from hypothesis import settings

settings.register_profile("inlay", deadline=None)  # how long an example takes says nothing of the code
settings.load_profile("inlay")


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` skip, with the reason, where torch sees no accelerator."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.accelerator.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="torch sees no accelerator"))
