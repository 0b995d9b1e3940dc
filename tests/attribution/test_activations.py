"""Activations kept on disk: captum's in the same run, and what an interruption or a change must not spoil."""

from pathlib import Path

import pytest
import torch
from captum._utils.av import AV as CaptumsAV
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from robustx.attribution import AV
from robustx.engine import ArgumentError
from robustx.engine.files import about, digest, read, write


class Counted(nn.Sequential):
    """Counts its calls; ``fail`` in the call of this number."""

    calls, fail = 0, -1

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fail:
            raise KeyboardInterrupt
        return super().forward(x)


def net():
    torch.manual_seed(1)
    return Counted(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def batches(x, size=3, **options):
    return DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=size, **options)


LAYERS = ["0", "2"]


def test_the_same_as_captum(tmp_path):
    model, x = net(), torch.randn(35, 4)
    ours, theirs = str(tmp_path / "a"), str(tmp_path / "b")
    found = AV.generate_dataset_activations(ours, model, "m", LAYERS, batches(x), "data", return_activations=True)
    truth = CaptumsAV.generate_dataset_activations(
        theirs, model, "m", LAYERS, batches(x), "data", return_activations=True
    )
    for mine, other in zip(found, truth, strict=True):
        assert len(mine) == len(other) == 12
        assert_close(list(mine), [other[i] for i in range(12)])
    for asked in (
        (),
        ("data",),
        ("data", "0"),
        ("data", "0", "3"),
        ("data", "0", "30"),
        ("other",),
        (None, "2"),
        (None, "1"),
        (None, None, "11"),
    ):
        assert AV.exists(ours, "m", *asked) == CaptumsAV.exists(theirs, "m", *asked)
    assert len(AV.load(ours, "m")) == len(CaptumsAV.load(theirs, "m")) == 24
    assert not AV.exists(ours, "another")
    files = ["z23a", "z3", "2/z1", "10/z1", "z23b", "z"]
    assert AV.sort_files(files) == ["2/z1", "10/z1", "z", "z3", "z23a", "z23b"]
    assert AV.sort_files(files[:2]) == CaptumsAV.sort_files(files[:2])


def test_nothing_in_a_file_can_run(tmp_path):
    AV.save(tmp_path, "m", "data", "0", torch.ones(2), "0")
    (file,) = tmp_path.rglob("*.*")
    assert file == tmp_path / "av" / "m" / "data" / "0" / "0.safetensors"
    assert_close(read(file), {"0": torch.ones(2)})


def test_layers_by_themselves_and_of_several_tensors(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.last = nn.GRU(3, 2, batch_first=True), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.rnn(x)[0].sum(1))

    model, x = Two(), torch.randn(4, 5, 3)
    found = AV.generate_dataset_activations(tmp_path, model, "m", model.last, [(x,)], return_activations=True)
    assert_close(found[0], model(x))
    AV.save(tmp_path, "m", "data", ["a", "b"], [(torch.ones(1), torch.zeros(2)), torch.ones(3)], "7")
    assert_close(AV.load(tmp_path, "m", "data", "a")[0], (torch.ones(1), torch.zeros(2)))
    assert_close(AV.load(tmp_path, "m", "data", "b")[-1], torch.ones(3))


def test_an_interrupted_run_goes_on(tmp_path):
    model, x = net(), torch.randn(12, 4)
    model.fail = 3
    with pytest.raises(KeyboardInterrupt):
        AV.generate_dataset_activations(tmp_path, model, "m", LAYERS, batches(x))
    assert len(AV.load(tmp_path, "m")) == 4  # two batches of two layers; captum takes this for all
    model.calls, model.fail = 0, -1
    found = AV.generate_dataset_activations(tmp_path, model, "m", "2", batches(x), return_activations=True)
    assert model.calls == 2
    assert_close(torch.cat(list(found)), model(x))
    model.calls = 0
    AV.generate_dataset_activations(tmp_path, model, "m", LAYERS, batches(x))
    assert model.calls == 2  # the other layer
    AV.generate_dataset_activations(tmp_path, model, "m", LAYERS, batches(x))
    assert model.calls == 2
    AV.generate_dataset_activations(tmp_path, model, "m", LAYERS, batches(x), load_from_disk=False)
    assert model.calls == 6


def test_what_changes_is_made_anew(tmp_path):
    model, x = net(), torch.randn(12, 4)

    def kept(of=x, size=3):
        return torch.cat(
            list(AV.generate_dataset_activations(tmp_path, model, "m", "2", batches(of, size), return_activations=True))
        )

    kept()
    with torch.no_grad():
        model[0].weight.neg_()
    assert_close(kept(), model(x))
    changed = x.clone()
    changed[4] = 0
    model.calls = 0
    assert_close(kept(changed), model(changed))
    assert model.calls == 1 + 1  # one batch
    assert_close(kept(x[:7]), model(x[:7]))  # fewer batches than there were
    assert_close(kept(x[:7], 2), model(x[:7]))


def test_a_loader_that_shuffles_leaves_the_random_state(tmp_path):
    model, loader = net(), batches(torch.randn(12, 4), shuffle=True)
    state = torch.get_rng_state()
    AV.generate_dataset_activations(tmp_path, model, "m", "2", loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(RuntimeError, match="no activations of model 'm', layer '0' are kept"):
        AV.load(tmp_path, "m", layer="0")
    with pytest.raises(ArgumentError, match="one for each of 2 layers"):
        AV.save(tmp_path, "m", "data", ["0", "1"], [torch.ones(1)], "0")
    for name in ("", "..", "a/b"):
        with pytest.raises(ArgumentError, match="become folders"):
            AV.save(tmp_path, "m", name, "0", torch.ones(1), "0")
    with pytest.raises(ArgumentError, match="no layer 'x'"):
        AV.generate_dataset_activations(tmp_path, net(), "m", "x", batches(torch.randn(2, 4)))
    model = net()
    with pytest.raises(ArgumentError, match="parts of the model"):
        AV.generate_dataset_activations(tmp_path, model, "m", model, batches(torch.randn(2, 4)))
    AV.save(tmp_path, "m", "data", "0", torch.ones(1), "0")
    with pytest.raises(IndexError, match="there are 1 batches"):
        AV.load(tmp_path, "m")[1]


def test_files_are_whole_or_not_there(tmp_path):
    file = tmp_path / "a" / "b.safetensors"
    write(file, {"x": torch.ones(2)}, {"of": "one"})
    with pytest.raises(Exception, match=r"."):
        write(file, {"x": torch.ones(2)}, {"of": 1})  # no word
    assert about(file) == {"of": "one"}
    write(file, {"x": torch.arange(6).view(2, 3).T, "y": torch.tensor(True)}, {})
    assert_close(read(file), {"x": torch.arange(6).view(2, 3).T, "y": torch.tensor(True)})
    assert about(file) == {}
    assert [f.name for f in Path(file.parent).iterdir()] == ["b.safetensors"]


def test_names_for_what_is_held():
    same = digest({"a": torch.ones(2, 3), "b": [1, "x"]})
    assert digest({"a": torch.ones(3, 2).T, "b": [1, "x"]}) == same
    others = [
        {"a": torch.ones(3, 2), "b": [1, "x"]},
        {"a": torch.ones(2, 3).double(), "b": [1, "x"]},
        {"a": torch.ones(2, 3), "b": [1, "y"]},
    ]
    assert len({same, *map(digest, others)}) == 4
    assert digest(torch.ones(2, dtype=torch.bfloat16)) != digest(torch.empty(0))
