"""The zoo: the embedded default is what it says, every door opens, and nothing that is loaded runs code."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from robustx import zoo
from robustx.zoo import embedded

ROOT = Path(__file__).parent.parent
DATA = {"digits": 1797, "breast-cancer": 569}


def correct(model, x, y):
    return (model(x).argmax(1) == y).float().mean().item()


# --- the embedded data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
def test_splits_are_disjoint_complete_and_stratified(name):
    train, test = zoo.data(name, split="train"), zoo.data(name, split="test")
    assert sorted(train.index.tolist() + test.index.tolist()) == list(range(DATA[name]))
    classes = len(test.classes)
    share = test.y.bincount(minlength=classes) / (test.y.bincount(minlength=classes) + train.y.bincount())
    assert (share - 0.25).abs().max() < 0.01
    assert len(set(test.y[:20].tolist())) > 1  # shuffled: a prefix holds more than the first class
    assert zoo.data(name).index.tolist() == test.index.tolist()


def test_splits_never_change():
    assert zoo.data("digits").index[:5].tolist() == [1081, 1707, 927, 713, 262]
    assert zoo.data("breast-cancer").index[:5].tolist() == [512, 457, 439, 298, 37]


def test_digits_are_the_pictures_of_scikit_learn():
    from sklearn.datasets import load_digits

    pixels, y = load_digits(return_X_y=True)
    data = zoo.data("digits")
    assert data.x.shape == (450, 1, 8, 8) and data.x.dtype == torch.float32 and data.y.dtype == torch.int64
    assert (data.kind, data.bounds, data.classes) == ("image", (0.0, 1.0), tuple("0123456789"))
    assert np.array_equal(data.x.flatten(1).numpy() * 16, pixels[data.index])
    assert np.array_equal(data.y, y[data.index])


@pytest.mark.parametrize("split", ["train", "test"])
def test_table_goes_back_to_the_units_of_scikit_learn(split):
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    data = zoo.data("breast-cancer", split=split)
    assert data.x.shape[1:] == (30,) and data.kind == "table" and data.classes == ("malignant", "benign")
    assert data.x.min() >= 0 and data.x.max() <= 1
    raw = torch.from_numpy(table.data[data.index])
    span = torch.tensor([c.high - c.low for c in data.columns], dtype=torch.float64)
    assert ((data.to_units(data.x) - raw).abs() <= 1e-7 * span).all()
    assert_close(data.from_units(raw), data.x)
    assert_close(data.to_units(data.x[0]), data.to_units(data.x)[0])  # one row as well
    assert [c.name for c in data.columns] == list(table.feature_names)


def test_table_is_scaled_by_its_train_rows():
    train = zoo.data("breast-cancer", split="train")
    assert_close(train.x.amin(0), torch.zeros(30))
    assert_close(train.x.amax(0), torch.ones(30))
    assert zoo.data("breast-cancer").columns == train.columns


def test_units_are_what_the_documentation_supports():
    unit = {c.name: c.unit for c in zoo.data("breast-cancer").columns}
    assert unit["worst radius"] == unit["perimeter error"] == "length units"
    assert unit["mean area"] == "square length units" and unit["mean texture"] == "grey levels"
    assert unit["worst concave points"] == unit["mean fractal dimension"] == ""


def test_selection_and_batches_keep_the_index():
    data = zoo.data("digits")
    assert len(data[:20]) == 20 and data[:20].split == "test"
    assert data[[3, 5]].index.tolist() == data.index[[3, 5]].tolist()
    assert data[data.y == 1].y.unique().tolist() == [1]
    assert data[-1].x.shape == (1, 1, 8, 8) and data[torch.tensor(3)].x.shape == (1, 1, 8, 8)
    assert len(data[[]]) == 0
    batches = list(data.batches(100))
    assert [len(y) for _, _, y in batches] == [100, 100, 100, 100, 50]
    assert torch.equal(torch.cat([i for i, _, _ in batches]), data.index)
    assert torch.equal(torch.cat([x for _, x, _ in batches]), data.x)


# --- the embedded models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, least", [("digits", 0.98), ("digits-robust", 0.95), ("breast-cancer", 0.95)])
def test_models_are_accurate_on_the_test_split(name, least):
    entry = zoo.load(name)
    model, data = entry
    assert (entry.model, entry.data, entry.name) == (model, data, name)
    assert not model.training and {p.device.type for p in model.parameters()} == {"cpu"}
    assert correct(model, data.x, data.y) >= least
    assert entry.about["script"] == "examples/train_zoo.py" and entry.about["seed"] == "0"
    assert correct(model, data.x, data.y) == pytest.approx(float(entry.about["clean"]), abs=0.005)


def test_adversarial_training_shows():
    data, after = zoo.data("digits"), {}
    for name in ("digits", "digits-robust"):
        model, x = zoo.model(name), data.x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x), data.y), x)
        after[name] = correct(model, (data.x + 0.15 * grad.sign()).clamp(0, 1), data.y)  # FGSM
    assert after["digits"] < 0.6 and after["digits-robust"] > 0.75


def test_weights_are_small_and_plain():
    files = sorted(embedded.WEIGHTS.iterdir())
    assert [f.name for f in files] == sorted(f"{name}.safetensors" for name in zoo.names())
    assert sum(f.stat().st_size for f in files) < 300_000
    assert sum(p.numel() for p in zoo.digits_cnn().parameters()) == 21_546


def test_training_script_reproduces_the_accuracy(tmp_path):
    """The quickest of the three; the same code trains the others."""
    script = ROOT / "examples" / "train_zoo.py"
    command = [sys.executable, str(script), "--only", "breast-cancer", "--out", str(tmp_path)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "breast-cancer" in done.stdout and "clean" in done.stdout
    model = embedded.load_weights(zoo.table_mlp(), tmp_path / "breast-cancer.safetensors")
    data = zoo.data("breast-cancer")
    assert correct(model, data.x, data.y) >= 0.95


def test_import_loads_torch_and_numpy_only():
    code = "import sys, robustx.zoo; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torchvision", "sklearn", "safetensors", "PIL", "scipy", "matplotlib"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- a user's own ------------------------------------------------------------------------------------------

MINE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NET = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
X, Y = torch.rand(10, 4), torch.arange(10) % 3
PAIR, SET = (X, Y), TensorDataset(X, Y)

class Family:
    @staticmethod
    def net():
        return NET

def net(width=3):
    return nn.Linear(4, width)

def pair():
    return X, Y

def dataset():
    return SET

def loader(size=4):
    return DataLoader(SET, batch_size=size)

def halves(split="train"):
    return (X[:6], Y[:6]) if split == "train" else (X[6:], Y[6:])

def needy(path):
    return path

def nothing():
    return "a string"

def wide():
    return X * 4 - 2, Y
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's in the working directory, which is not on the path."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    path = sys.path[:]
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path
    sys.modules.pop("mine", None)
    assert sys.path == path


def test_model_from_a_factory(mine):
    assert zoo.model("mine:net").out_features == 3
    assert zoo.model("mine:net?width=5").out_features == 5
    assert not zoo.model("mine:Family.net").training


def test_model_instance_is_copied(mine):
    model = zoo.model("mine:NET")
    own = sys.modules["mine"].NET
    assert own.training and not model.training and model is not own
    assert torch.equal(model[0].weight, own[0].weight)


def test_model_with_weights_of_a_file(mine):
    from safetensors.torch import save_model

    saved = nn.Linear(4, 5)
    save_model(saved, "five.safetensors")
    model = zoo.model("mine:net@five.safetensors?width=5")
    assert torch.equal(model.weight, saved.weight) and torch.equal(model.bias, saved.bias)
    with pytest.raises(ValueError, match="'five.safetensors' do not fit Linear: .*size mismatch"):
        zoo.model("mine:net@five.safetensors")
    save_model(nn.Sequential(nn.Linear(4, 3)), "other.safetensors")
    with pytest.raises(ValueError, match="do not fit Linear: .*Missing key"):
        zoo.model("mine:net@other.safetensors")
    Path("torn.safetensors").write_bytes(Path("five.safetensors").read_bytes()[:-8])
    with pytest.raises(ValueError, match="'torn.safetensors' is not a whole safetensors file"):
        zoo.model("mine:net@torn.safetensors")


@pytest.mark.parametrize("name", ["pair", "dataset", "loader", "loader?size=3", "PAIR", "SET"])
def test_data_in_every_form(mine, name):
    data = zoo.data(f"mine:{name}")
    own = sys.modules["mine"]
    assert torch.equal(data.x, own.X) and torch.equal(data.y, own.Y)
    assert data.kind == "table" and data.classes == ("0", "1", "2") and data.name == f"mine:{name}"
    assert torch.equal(data.to_units(data.x).float(), data.x)  # columns without units stand for themselves
    some = zoo.data(f"mine:{name}", limit=4)
    assert torch.equal(some.x, own.X[some.index]) and len(some) == 4


def test_data_takes_a_split_where_it_knows_one(mine):
    assert len(zoo.data("mine:halves")) == 6  # the callable's own default
    assert len(zoo.data("mine:halves", split="test")) == 4
    assert len(zoo.data("mine:halves?split=test")) == 4
    with pytest.raises(ValueError, match="'mine:pair' knows no splits, got split='test'; leave it out"):
        zoo.data("mine:pair", split="test")
    with pytest.raises(ValueError, match="neither options nor a split"):
        zoo.data("mine:PAIR", split="test")


def test_load_joins_a_model_with_data(mine):
    model, data = zoo.load("mine:net", data="mine:pair", limit=7)
    assert model(data.x).shape == (7, 3)
    model, data = zoo.load("mine:net", data=(torch.rand(2, 4), torch.tensor([0, 1])))
    assert model(data.x).shape == (2, 3)
    model, data = zoo.load("digits-robust", data=zoo.data("digits", split="train"), limit=5)
    assert data.split == "train" and len(data) == 5


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("digit", ValueError, r"no model is named 'digit' \(did you mean 'digits'"),
        ("xyz", ValueError, "'xyz'; expected digits, digits-robust, breast-cancer, 'torchvision:...', 'timm:"),
        ("mine:", ValueError, r"a name must read 'package.module:name\[@weights\]\[\?key=value&...\]'"),
        ("mine:net@", ValueError, "a name must read"),
        ("mine:net?width", ValueError, "a name must read"),
        ("no_such:net", ModuleNotFoundError, "needs the module 'no_such', which is neither installed nor in"),
        ("mine.sub:net", ModuleNotFoundError, "needs the module 'mine.sub'"),
        ("broken:net", ModuleNotFoundError, "No module named 'no_such_module_at_all'"),
        ("mine:nett", ValueError, r"'mine' has no 'nett' \(did you mean 'net'"),
        ("mine:net?size=3", ValueError, "cannot be called with size: got an unexpected keyword"),
        ("mine:needy", ValueError, "cannot be called with no arguments: missing a required argument: 'path'"),
        ("mine:nothing", TypeError, "must be or return a torch.nn.Module, got str"),
        ("mine:PAIR", TypeError, "must be or return a torch.nn.Module, got tuple"),
        ("mine:NET?width=3", ValueError, "is a model already and takes no options"),
        ("mine:net@none.safetensors", FileNotFoundError, "there is no weight file 'none.safetensors'"),
        ("mine:net@five.pt", FileNotFoundError, "there is no weight file 'five.pt'"),
        ("mine:net@five.pkl", ValueError, r"weights must be a .safetensors file, or a .pt or .pth .* got 'five.pkl'"),
    ],
)
def test_what_a_model_may_not_be(mine, name, error, message):
    with pytest.raises(error, match=message):
        zoo.model(name)


@pytest.mark.parametrize(
    "source, more, error, message",
    [
        (
            "digit",
            {},
            ValueError,
            r"no data is named 'digit' \(did you mean 'digits'\?\); expected digits, br",
        ),
        ("digit", {}, ValueError, r"'folder:...', a .npz, .safetensors or .csv file or 'package.module:name'"),
        ("digits", {"split": "val"}, ValueError, "split must be 'train' or 'test', got 'val'"),
        ("digits", {"limit": 0}, ValueError, "limit must be at least 1 sample, got 0"),
        ("digits", {"root": "x"}, ValueError, "root is the folder of a torchvision data set, got root='x'"),
        ("mine:nothing", {}, TypeError, "'mine:nothing' must give pairs .sample, label., got str"),
        ("mine:NET", {}, TypeError, "'mine:NET' must give pairs .sample, label., got Linear"),
        ("mine:PAIR?n=3", {}, ValueError, "is data already and takes neither options"),
        ("mine:wide", {}, ValueError, r"leaves its bounds \(0.0, 1.0\); give bounds=\(low, high\)"),
        (3, {}, TypeError, "a pair .x, y. of tensors, a Dataset, a DataLoader or a Data, got int"),
        (
            (torch.rand(3, 2), torch.arange(3)),
            {"split": "test"},
            ValueError,
            "split chooses among named data",
        ),
        ((torch.rand(3, 2), torch.arange(2)), {}, ValueError, "equally long, got 3 samples and 2 labels"),
        ((torch.rand(3, 2), torch.rand(3)), {}, ValueError, "must be whole numbers, one per sample"),
        ((torch.rand(3, 2), torch.eye(3)), {}, ValueError, r"got shape \(3, 3\) of torch.float32"),
        ((torch.rand(2, 2), torch.tensor([0, -1])), {}, ValueError, "must count from 0, got -1"),
        ((torch.full((2, 2), torch.nan), torch.arange(2)), {}, ValueError, "reaches from nan to nan"),
        ((torch.rand(3, 2),), {}, TypeError, "must give pairs .sample, label., got 1 values"),
        ([(torch.rand(2), 0), (torch.rand(3), 1)], {}, ValueError, r"one shape, got \(2,\) and \(3,\)"),
        ([], {}, ValueError, "'data' holds no samples"),
        (DataLoader([]), {}, ValueError, "'data' holds no samples"),
        ([(torch.rand(2), {})], {}, TypeError, "holds a dict where a tensor is needed"),
    ],
)
def test_what_data_may_not_be(mine, source, more, error, message):
    with pytest.raises(error, match=message):
        zoo.data(source, **more)


def test_data_from_arrays_bytes_and_bounds():
    x, y = np.random.rand(5, 3), np.arange(5) % 2
    assert zoo.data((x, y)).x.dtype == torch.float32
    pixels = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(zoo.data((pixels, y)).x, pixels / 255)
    wide = zoo.data((x * 4 - 2, y), bounds=(-2.0, torch.tensor([2.0, 2.0, 3.0])))
    assert wide.bounds[0] == -2.0 and wide.x.min() < 0
    spread = zoo.data(TensorDataset(torch.rand(100, 2), torch.arange(100)), limit=4)
    assert spread.index.tolist() == [0, 25, 50, 75]  # not only the first class of a sorted data set
    assert zoo.data(DataLoader(TensorDataset(torch.rand(9, 2), torch.arange(9)), 2), limit=3).y.tolist() == [
        0,
        1,
        2,
    ]
    named = zoo.as_data((x, y), "pets", classes=["cat", "dog"])
    assert named.classes == ("cat", "dog") and repr(named) == "Data('pets', 5 of 3, 2 classes)"
    with pytest.raises(ValueError, match="labels of 'pets' reach 1, but only 1 classes are named"):
        zoo.as_data((x, y), "pets", classes=["cat"])


def test_a_data_set_beyond_memory_is_refused():
    class Endless:
        def __len__(self):
            return 10**7

        def __getitem__(self, i):
            return torch.zeros(3, 64, 64), 0

    with pytest.raises(ValueError, match="take 457.8 GiB; give limit="):
        zoo.data(Endless())
    assert len(zoo.data(Endless(), limit=3)) == 3


def test_mistakes_in_units_sizes_and_missing_data():
    with pytest.raises(ValueError, match="only a table has columns with units, and 'digits' is of kind 'image'"):
        zoo.data("digits").to_units(torch.rand(2))
    with pytest.raises(ValueError, match="must hold the 30 columns of 'breast-cancer', got shape \\(2, 3\\)"):
        zoo.data("breast-cancer").to_units(torch.rand(2, 3))
    with pytest.raises(ValueError, match="size must be at least 1 sample per batch, got 0"):
        zoo.data("digits").batches(0)
    with pytest.raises(ValueError, match="'torch.nn:Identity' brings no data of its own; name some: load"):
        zoo.load("torch.nn:Identity")


# --- torchvision -------------------------------------------------------------------------------------------


def test_normalized_is_torchvisions_normalize():
    from torchvision.transforms.functional import normalize

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(zoo.Normalized(nn.Identity(), mean, std)(x), normalize(x, mean, std))
    assert zoo.Normalized(nn.Identity(), mean, std)(x.double()).dtype == torch.float64
    assert list(zoo.Normalized(nn.Linear(2, 2), mean, std).state_dict()) == ["model.weight", "model.bias"]


def test_torchvision_model_takes_pixels():
    from torchvision.transforms.functional import normalize

    model = zoo.model("torchvision:resnet18@none")
    assert isinstance(model, zoo.Normalized) and not model.training
    x = torch.rand(1, 3, 64, 64)
    inside = normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.equal(model(x), model.model(inside))
    assert zoo.model("torchvision:resnet18@none?num_classes=7")(x).shape == (1, 7)


def test_torchvision_weights_of_a_file_and_of_the_store(tmp_path, monkeypatch):
    from safetensors.torch import save_model
    from torchvision.models import SqueezeNet1_1_Weights as Weights
    from torchvision.models import squeezenet1_1

    own, x = squeezenet1_1().eval(), torch.rand(1, 3, 64, 64)
    save_model(own, str(tmp_path / "own.safetensors"))
    from_file = zoo.model(f"torchvision:squeezenet1_1@{tmp_path}/own.safetensors")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(own.state_dict(), tmp_path / "hub" / "checkpoints" / Weights.DEFAULT.url.rpartition("/")[2])
    for name in ("", "@DEFAULT", "@IMAGENET1K_V1", "@SqueezeNet1_1_Weights.IMAGENET1K_V1"):
        assert torch.equal(zoo.model(f"torchvision:squeezenet1_1{name}")(x), from_file(x))


@pytest.mark.parametrize(
    "name, message",
    [
        ("torchvision:resnet19", r"torchvision has no classifier 'resnet19' \(did you mean 'resnet"),
        ("torchvision:fcn_resnet50", "no classifier 'fcn_resnet50'"),
        ("torchvision:resnet18@IMAGENET1K_V9", r"'resnet18' has no weights 'IMAGENET1K_V9' \(did you mean '"),
        ("torchvision:resnet18@some", "expected IMAGENET1K_V1, DEFAULT, none or a .safetensors file"),
    ],
)
def test_what_torchvision_does_not_have(name, message):
    with pytest.raises(ValueError, match=message):
        zoo.model(name)


def test_without_network_the_wanted_file_is_named(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(ConnectionError, match=r"no route to host\); put http.*squeezenet1_1-.*into '.*checkpoints'"):
        zoo.model("torchvision:squeezenet1_1")


@pytest.mark.parametrize(
    "code, message",
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "was built for another torch than",
        ),
        ("raise ModuleNotFoundError(name='torchvision')", "torchvision is not installed; run: pip install"),
    ],
)
def test_a_torchvision_that_does_not_work(tmp_path, code, message):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(code)
    run = "from robustx import zoo\ntry: zoo.model('torchvision:resnet18')\nexcept ImportError as e: print(e)"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", run], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert message in done.stdout, done.stderr


def test_torchvision_data_by_its_name():
    data = zoo.data("torchvision:FakeData?size=6&image_size=(3,20,24)&num_classes=4", limit=5)
    assert data.x.shape == (5, 3, 20, 24) and data.kind == "image" and data.bounds == (0.0, 1.0)
    assert data.x.min() >= 0 and data.x.max() <= 1 and data.y.max() < 4


def test_images_are_cropped_for_the_model():
    model, data = zoo.load("torchvision:squeezenet1_1@none", data="torchvision:FakeData?size=2&image_size=(1,32,40)")
    assert data.x.shape == (2, 3, 224, 224) and model(data.x[:1]).shape == (1, 1000)


@pytest.mark.parametrize(
    "name, more, error, message",
    [
        (
            "torchvision:CIFAR11",
            {},
            ValueError,
            r"torchvision has no data set 'CIFAR11' \(did you mean 'CIFAR10",
        ),
        ("torchvision:CIFAR10", {}, ValueError, "'torchvision:CIFAR10' lies in a folder; give it as root="),
        (
            "torchvision:CIFAR10",
            {"root": "nowhere"},
            FileNotFoundError,
            "is not under root='nowhere' .*download=T",
        ),
        ("torchvision:ImageFolder", {"root": "nowhere"}, FileNotFoundError, "is not under root='nowhere'"),
        ("torchvision:FakeData", {"split": "train"}, ValueError, "'torchvision:FakeData' knows no splits"),
        ("torchvision:FakeData?sise=2", {}, ValueError, "cannot be called with transform, sise"),
    ],
)
def test_what_torchvision_data_may_not_be(name, more, error, message):
    with pytest.raises(error, match=message):
        zoo.data(name, **more)
