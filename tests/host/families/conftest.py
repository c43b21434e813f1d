"""The host's networks at full size, without memory for their weights."""

from types import SimpleNamespace

import pytest

from inlay.lab.models.full_transformers import full_network


@pytest.fixture(scope="session")
def full_size(in_process_host):
    """Opens (network, the host's configuration of its file, a stand-in MODEL) for one of our family names."""
    import comfy.model_detection

    opened = {}

    def open_network(name):
        if name not in opened:
            network = full_network(name)
            config = comfy.model_detection.model_config_from_unet(network.state_dict(), "")
            base = SimpleNamespace(model_config=config, model_type=SimpleNamespace(name="FLOW"))
            opened[name] = network, config, SimpleNamespace(model=base)
        return opened[name]

    return open_network
