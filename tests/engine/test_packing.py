"""Packing: several tensors of an example are one row, and come back as they were."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from robustx.engine import Packing
from robustx.engine.packing import finest, flat, row_sums

H, BF, S, D = torch.float16, torch.bfloat16, torch.float32, torch.float64
SHAPES = [[(3,)], [()], [(2, 3), (4,)], [(2, 2, 2), (), (1, 5)], [(0,), (3,)], [(0,)]]
every = pytest.mark.parametrize("shapes", SHAPES, ids=str)


@every
@pytest.mark.parametrize("b", [0, 1, 5])
@pytest.mark.parametrize("dtypes", [[H, BF, S], [BF, BF, BF], [D, H, S], [S, S, S]], ids=str)
def test_what_is_packed_comes_back(shapes, b, dtypes):
    tensors = [torch.randn(b, *s).to(t) for s, t in zip(shapes, dtypes, strict=False)]
    packing = Packing.of(tensors)
    z = packing.pack(tensors)
    by_hand = [t.double().numpy().reshape(b, int(np.prod(t.shape[1:]))) for t in tensors]
    assert np.array_equal(z.double().numpy(), np.concatenate(by_hand, 1))
    assert packing.sizes == [v.shape[1] for v in by_hand]
    for t, back, part in zip(tensors, packing.unpack(z), packing.split(z), strict=True):
        assert back.dtype == t.dtype and torch.equal(back, t)
        assert part.dtype == z.dtype and torch.equal(part, t.to(z.dtype))
    assert torch.equal(flat(tensors[0]), tensors[0].reshape(b, by_hand[0].shape[1]))
    assert_close(row_sums([t.double() for t in tensors]).numpy(), sum(v.sum(1) for v in by_hand))


@pytest.mark.parametrize(
    "dtypes, row", [([H], S), ([BF], S), ([H, BF], S), ([S], S), ([D], D), ([H, D], D), ([S, torch.int64], S)], ids=str
)
def test_rows_have_the_widest_dtype_and_never_less_than_float32(dtypes, row):
    assert Packing.of([torch.zeros(2, 3, dtype=t) for t in dtypes]).dtype == row


def test_memory_formats_do_not_matter():
    x = torch.randn(4, 3, 5, 5)
    packing = Packing.of([x])
    for same in (x.to(memory_format=torch.channels_last), x.transpose(1, 3).contiguous().transpose(1, 3)):
        assert not same.is_contiguous() and torch.equal(packing.pack([same]), x.flatten(1))
    assert torch.equal(packing.pack([x[::2]]), x.flatten(1)[::2])


def test_any_number_of_rows_is_unpacked():
    packing = Packing.of([torch.zeros(2, 3, 4), torch.zeros(2, 5)])
    first, second = packing.unpack(z := torch.randn(7, 17))
    assert torch.equal(first.flatten(1), z[:, :12]) and torch.equal(second, z[:, 12:])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64], ids=str)
def test_what_cannot_be_moved_is_refused(dtype):
    tensors = [torch.zeros(2, 3), torch.zeros(2, 3, dtype=dtype)]
    with pytest.raises(TypeError, match=f"tensor 1 has dtype {dtype}.*embedding layer.*additional_forward_args"):
        Packing.of(tensors).pack(tensors)


def test_finest():
    assert finest(torch.zeros(1, dtype=H)).dtype == D
