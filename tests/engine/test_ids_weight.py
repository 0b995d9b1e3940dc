"""Ids are light, what a layer makes of them is not: first batches are small there."""

import torch
from torch import nn

from robustx.engine import Layer, Probe
from robustx.engine.memory import PILOT


def test_first_batches_at_an_embedding_are_as_small_as_what_stands_there_is_large():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 4000), nn.Flatten(), nn.LazyLinear(1)).eval()
    ids = torch.randint(0, 5, (64, 40))
    net(ids)
    seen = []
    net[2].register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    f = Probe(net, (ids,), at=Layer(net[0]))
    point = f.point
    seen.clear()
    _, grad = f.grad(point)
    assert seen[0] == PILOT[0]
    assert torch.allclose(grad[0], net[2].weight[0])
