"""Weights in few bits: what comes back, how far it is off, and how much room it takes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inlay.lab.models import quantised


@given(st.integers(2, 8), st.integers(1, 200), st.integers(0, 1000))
def test_a_stream_of_bits_comes_back(bits, count, seed):
    most = 2 ** (bits - 1) - 1
    values = torch.randint(-most, most + 1, (count,), generator=torch.Generator().manual_seed(seed))
    stream = quantised.to_stream(values.to(torch.int8), bits)
    assert len(stream) == -(-count * bits // 8)
    assert torch.equal(quantised.from_stream(stream, count, bits).long(), values)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("bits", "most"), [(8, 0.008), (6, 0.03), (5, 0.065), (4, 0.13)])
def test_the_error_of_normal_weights(tmp_path, bits, most):
    """Root mean square error as a share of the weights': about half a step over the square root of three."""
    weight = 0.02 * normal(96, 40, 3, 3)
    quantised.save({"w": weight}, tmp_path / "w.safetensors", lambda name: bits)
    error = quantised.load(tmp_path / "w.safetensors")["w"] - weight
    assert most / 2 < float(error.square().mean().sqrt() / weight.square().mean().sqrt()) < most


def test_a_file_holds_every_kind_of_tensor(tmp_path):
    state = {
        "matrix": normal(5, 70), "row": normal(1, 9), "vector": normal(7), "scalar": torch.tensor(0.5),
        "zeros": torch.zeros(4, 8), "count": torch.tensor([3]),
    }  # fmt: skip
    path = tmp_path / "w.safetensors"
    quantised.save(state, path, lambda name: 6)
    loaded = quantised.load(path)
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        assert loaded[name].shape == value.shape
        assert torch.allclose(loaded[name].float(), value.float(), atol=0.12)
    assert not loaded["zeros"].any()
    assert loaded["count"].dtype == torch.int64


def test_five_bits_take_five_bits_and_a_quarter(tmp_path):
    quantised.save({"w": normal(512, 512)}, tmp_path / "w.safetensors", lambda name: 5)
    size = (tmp_path / "w.safetensors").stat().st_size
    assert size < 512 * 512 * 5.25 / 8 + 600
