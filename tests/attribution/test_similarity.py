"""Similarity of activations: captum's in the same run, and what it gets wrong written out slowly."""

import captum.influence
import pytest
import torch
from captum.influence._core import similarity_influence as theirs
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from robustx.attribution import SimilarityInfluence, cosine_similarity, euclidean_distance
from robustx.engine import ArgumentError, ArgumentTypeError


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).eval()


def data(n: int) -> Tensor:
    return torch.randn(n, 1, 6, 6)


METRICS = [(cosine_similarity, theirs.cosine_similarity), (euclidean_distance, theirs.euclidean_distance)]


@pytest.mark.parametrize(("ours", "captums"), METRICS, ids=["cosine", "euclidean"])
def test_metrics_are_captums_where_nothing_is_zero(ours, captums):
    test, train = torch.randn(4, 2, 3), torch.randn(5, 2, 3)
    assert_close(ours(test, train), captums(test, train))


def test_the_cosine_of_zero_is_what_was_asked_for():
    test, train = torch.eye(2), torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert_close(cosine_similarity(test, train, replace_nan=-2), torch.tensor([[-2.0, 1.0], [-2.0, 0.0]]))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(("ours", "captums"), METRICS, ids=["cosine", "euclidean"])
def test_the_same_as_captum(tmp_path, batch_size, ours, captums):
    model, examples, x = net(), data(8), data(3)
    direction = "max" if ours is cosine_similarity else "min"
    options = {"similarity_direction": direction, "batch_size": batch_size}
    layers = ["0", "3"]
    other = captum.influence.SimilarityInfluence(
        model, layers, TensorDataset(examples), str(tmp_path / "captum"), similarity_metric=captums, **options
    )
    mine = SimilarityInfluence(model, layers, TensorDataset(examples), similarity_metric=ours, **options)
    truth, found = other.influence(x, top_k=4), mine.influence(x, top_k=4)
    assert list(found) == list(truth) == layers
    for layer in layers:
        assert torch.equal(found[layer][0], truth[layer][0])
        assert_close(found[layer][1], truth[layer][1])


def test_the_nearest_of_all_in_batches_of_any_size():
    model, examples, x = net(), data(7), data(2)
    truth = torch.cdist(model(x), model(examples)).topk(5, largest=False)
    for batch_size in (1, 3, 10):  # captum fails where the last batch has fewer rows than are asked for
        near = SimilarityInfluence(
            model, model[3], TensorDataset(examples, torch.zeros(7)), None, "", euclidean_distance, "min", batch_size
        )
        indices, distances = near.influence(x, top_k=5)[model[3]]
        assert torch.equal(indices, truth.indices)
        assert_close(distances, truth.values)
    assert near.influence(x, top_k=99)[model[3]][0].shape == (2, 7)


def test_activations_that_are_zero_are_told():
    model = nn.Sequential(nn.Linear(2, 3, bias=False))
    examples = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    near = SimilarityInfluence(model, "0", examples, batch_size=3)
    with pytest.warns(RuntimeWarning, match="'zero_acts-0'"):
        found = near.influence(torch.tensor([[1.0, 0.0], [2.0, 2.0]]), top_k=4)
    assert found["zero_acts-0"].tolist() == [[0, 1], [1, 1], [0, 3], [1, 3]]
    assert found["0"][0][0].tolist() == [0, 2, 1, 3]  # what is zero comes last
    assert (found["0"][1][:, 2:] == -2).all()


def test_activations_are_kept_and_read_while_they_are_those_of_the_model(tmp_path):
    model, examples, x = net(), data(5), data(2)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))

    def asked(load: bool = True) -> tuple[Tensor, int]:
        calls.clear()
        near = SimilarityInfluence(model, ["0", "3"], TensorDataset(examples), tmp_path, "net", batch_size=2)
        return near.influence(x, top_k=3, load_src_from_disk=load)["3"][1], len(calls)

    state = torch.get_rng_state()
    first, many = asked()
    assert torch.equal(torch.get_rng_state(), state)
    again, few = asked()
    assert torch.equal(first, again)
    assert many - few == 3
    assert asked(load=False)[1] == many
    with torch.no_grad():
        model[0].weight.add_(1)
    assert asked()[1] == many  # captum goes on with the activations of another model
    examples[4] += 1
    assert asked()[1] == many
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".safetensors", ".json"}


def test_what_was_not_written_to_the_end_is_not_read(tmp_path):
    model, x = net(), data(2)

    class Broken(TensorDataset):
        broken = True

        def __getitem__(self, i: int):
            if self.broken and i == 3:
                raise OSError("no such picture")
            return super().__getitem__(i)

    near = SimilarityInfluence(model, "3", Broken(data(5)), tmp_path)
    with pytest.raises(OSError, match="no such picture"):
        near.influence(x)
    Broken.broken = False
    alone = SimilarityInfluence(model, "3", near.influence_src_dataset)
    assert torch.equal(near.influence(x)["3"][0], alone.influence(x)["3"][0])


def test_several_inputs_and_further_arguments():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 3)

        def forward(self, x: Tensor, y: Tensor, times: float = 1.0) -> Tensor:
            return self.a(times * x + y)

    model, x, y = Two(), torch.randn(6, 2), torch.randn(6, 2)
    pairs = [((a, b), 0) for a, b in zip(x, y, strict=True)]
    near = SimilarityInfluence(model, "a", pairs, similarity_metric=euclidean_distance, similarity_direction="min")
    truth = torch.cdist(model(x[:2], y[:2], 2.0), model(x, y)).min(1)
    indices, distances = near.influence((x[:2], y[:2]), additional_forward_args=2.0)["a"]
    assert torch.equal(indices[:, 0], truth.indices)
    assert_close(distances[:, 0], truth.values)


def test_what_cannot_be_is_refused():
    model, examples = net(), TensorDataset(data(3))
    with pytest.raises(ArgumentError, match="'max' or 'min', got 'most'"):
        SimilarityInfluence(model, "0", examples, similarity_direction="most")
    with pytest.raises(ArgumentError, match="no layer '9'"):
        SimilarityInfluence(model, "9", examples)
    with pytest.raises(ArgumentTypeError, match="unknown arguments metric"):
        SimilarityInfluence(model, "0", examples, metric="cosine")
    odd = SimilarityInfluence(model, "3", examples, similarity_metric=lambda a, b: a @ a.T)
    with pytest.raises(ArgumentError, match=r"\[inputs, examples\], here \(2, 1\), got \(2, 2\)"):
        odd.influence(data(2))
    with pytest.raises(ArgumentError, match="top_k must be a whole number of at least 1, got 0"):
        odd.influence(data(2), top_k=0)
    lstm = nn.Sequential(nn.LSTM(2, 2, batch_first=True))
    with pytest.raises(Exception, match="several tensors|rows for"):
        SimilarityInfluence(lstm, "0", torch.randn(3, 4, 2)).influence(torch.randn(2, 4, 2))
