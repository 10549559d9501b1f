"""Trees as bytes: everything comes back, in the same order in memory."""

import io
from pickle import UnpicklingError

import pytest
import torch

from metatrain.training.packed import pack, read
from metatrain.types import MetaGradient

GENERATOR = torch.Generator().manual_seed(0)


def back(tree: object, more: int = 0) -> object:
    packed = pack(tree)
    return read(packed.as_bytes(packed.size + more))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(3, 5, generator=GENERATOR),
        torch.rand(2, 3, 4, 4, generator=GENERATOR).to(memory_format=torch.channels_last),
        torch.rand(7, generator=GENERATOR, dtype=torch.float64),
        torch.tensor([True, False, True]),
        torch.tensor(3),
        torch.empty(0, 4),
        torch.rand(3, 4, generator=GENERATOR).t(),
        torch.rand(4, generator=GENERATOR).bfloat16(),
        torch.rand(2, requires_grad=True),
    ],
)
@pytest.mark.parametrize("more", [0, 100])
def test_a_tensor_comes_back_with_type_strides_and_alignment(tensor, more):
    _, found = back([torch.ones(1, dtype=torch.uint8), tensor], more)
    assert (found.dtype, found.shape, found.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    assert torch.equal(found, tensor)
    assert not found.requires_grad
    assert found.data_ptr() % 64 == 0 or not found.numel()


def test_a_tensor_with_repeats_or_gaps_comes_back_without_them():
    for tensor in (torch.rand(3, 1).expand(3, 4), torch.rand(6, 6)[::2, ::3]):
        found = back(tensor)
        assert torch.equal(found, tensor)
        assert found.is_contiguous()


def test_a_tree_of_tensors_and_plain_values_comes_back():
    tree = {"b": [1, None, ("text", torch.arange(3))], "a": {"x": torch.ones(2), "y": 0.5}, "c": b"bytes"}
    found = back(tree)
    assert list(found) == ["b", "a", "c"]
    assert found["b"][:2] == [1, None]
    assert found["b"][2][0] == "text"
    assert torch.equal(found["b"][2][1], torch.arange(3))
    assert (found["a"]["y"], found["c"]) == (0.5, b"bytes")


def test_what_comes_back_can_be_saved_tensor_by_tensor():
    found = back([torch.zeros(100_000), torch.empty(0), torch.ones(3, dtype=torch.int64)])
    for tree, least in ((found, 400_000), (found[2], 0)):
        saved = io.BytesIO()
        torch.save(tree, saved)
        assert least < len(saved.getvalue()) < least + 4000


def test_it_takes_the_bytes_of_the_numbers_and_little_more():
    grads = {f"layer.{number}": torch.zeros(1000) for number in range(10)}
    assert 40_000 < pack(tuple(MetaGradient(grads, {}, torch.tensor(1)))).size < 48_000


def test_what_would_run_code_is_refused():
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        back({"x": breakpoint})
