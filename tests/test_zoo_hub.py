"""Models and data of timm, the Hugging Face Hub and RobustBench by name, offline: tiny ones, made here."""

import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from robustx import zoo
from robustx.zoo import hub

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")


class Evil:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def noise():
    """A picture of random colours, 48 wide and 40 high."""
    return Image.fromarray(np.random.RandomState(0).randint(256, size=(40, 48, 3), dtype=np.uint8))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of one's own, and a cache of the Hub in it, with no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "reachable", lambda url: False)
    return tmp_path


def cached(here, name, *files):
    """Puts files into the cache of the Hub as if they had been fetched from a repository."""
    place = here / "hub" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    for file in files:
        shutil.copy(file, place / "snapshots" / ("0" * 40))


# --- timm --------------------------------------------------------------------------------------------------


def test_timm_takes_pixels_and_tells_its_size(noise):
    torch.manual_seed(0)
    model, data = zoo.load("timm:test_vit@none?num_classes=7", data=[(noise, 3)])
    assert data.x.shape == (1, 3, 40, 48)  # data themselves stay as they are
    config = timm.data.resolve_model_data_config(model.model)
    assert (config["mean"], config["std"]) == (tuple(model.mean.tolist()), tuple(model.std.tolist()))
    x = model.prepare(noise)[None]
    assert x.shape == (1, *config["input_size"]) and x.min() >= 0 and x.max() <= 1
    own = model.model(timm.data.create_transform(**config)(noise)[None])
    assert_close(model(x), own) and model(x).shape == (1, 7)


def test_timm_resizes_folders(here, noise):
    (here / "pets" / "cat").mkdir(parents=True)
    noise.save(here / "pets" / "cat" / "0.png")
    model, data = zoo.load("timm:test_vit@none", data="folder:pets")
    assert torch.equal(data.x[0], model.prepare(noise)) and not model.training


def test_timm_weights_of_a_file_and_of_the_cache(here):
    own = timm.create_model("test_vit", pretrained=False).eval()
    save_file(own.state_dict(), "model.safetensors")
    cached(here, "timm/test_vit.r160_in1k", "model.safetensors")
    x = torch.rand(1, 3, 160, 160)
    models = [zoo.model(f"timm:{name}") for name in ("test_vit@model.safetensors", "test_vit", "test_vit.r160_in1k")]
    for model in models:
        assert torch.equal(model(x), own((x - 0.5) / 0.5))


def test_a_pickle_among_the_weights_of_timm_is_refused(here):
    torch.save({"weight": Evil(here / "trace")}, "pytorch_model.bin")
    cached(here, "timm/test_vit.r160_in1k", "pytorch_model.bin")
    missing = here / "hub" / "models--timm--test_vit.r160_in1k" / ".no_exist" / ("0" * 40)
    missing.mkdir(parents=True)
    for name in ("model.safetensors", "open_clip_model.safetensors"):
        (missing / name).touch()  # the Hub has said that they are not there
    with pytest.raises(ValueError, match="the weights of 'timm:test_vit' hold more than weights and were not loaded"):
        zoo.model("timm:test_vit")
    assert not (here / "trace").exists()


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("test_vitt", ValueError, r"timm has no model 'test_vitt' \(did you mean 'test_vit'"),
        ("test_vit.zz", ValueError, "no weights 'test_vit.zz' .*it has test_vit.r160_in1k, and random"),
        ("resnet61q.none", ValueError, "timm has no weights"),
        ("test_vit?num_classes=3", ValueError, "would have a last layer without weights; say '@none' or '@file'"),
        ("test_vit@none?depht=3", ValueError, "has an option that does not fit: .*'depht'"),
        ("test_vit@none?pretrained=True", ValueError, "may not set 'pretrained': the zoo decides it"),
        ("test_vit@none?in_chans=1", ValueError, "may not set 'in_chans'"),
        ("test_vit@my.safetensors", FileNotFoundError, "there is no weight file 'my.safetensors'"),
        (
            "test_vit",
            ConnectionError,
            r"needs timm/test_vit.r160_in1k of http.*not in the cache '.*hub'.*hf download timm/test_vit.r160_in1k'",
        ),
        ("hf_hub:me/net", ConnectionError, "needs me/net of https"),
    ],
)
def test_what_timm_does_not_have(here, name, error, message):
    with pytest.raises(error, match=message):
        zoo.model(f"timm:{name}")


def test_a_model_is_no_data():
    with pytest.raises(ValueError, match="'timm:test_vit' names a model, and data were asked for"):
        zoo.data("timm:test_vit")


# --- Hugging Face models -----------------------------------------------------------------------------------


def vit(folder, dtype=torch.float32, **processor):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, num_labels=3
    )
    net = transformers.ViTForImageClassification(config).to(dtype).eval()
    net.save_pretrained(folder)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    made = transformers.ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=mean, image_std=std, **processor)
    made.save_pretrained(folder)
    return net, made


def test_hf_gives_logits_of_pixels(here, noise):
    net, processor = vit("vit")
    cached(here, "me/vit", *(here / "vit").iterdir())
    inside = net(**processor(images=noise, return_tensors="pt")).logits
    for name in ("hf:./vit", f"hf:{here}/vit", "hf:vit", "hf:me/vit", f"hf:me/vit@{'0' * 40}"):
        model = zoo.model(name)
        assert not model.training and model.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
        x = model.prepare(noise)[None]
        assert x.shape == (1, 3, 16, 16) and x.min() >= 0 and x.max() <= 1
        assert_close(model(x), inside)


def test_hf_data_are_resized_for_the_model(here, noise):
    vit("vit")
    (here / "pets" / "cat").mkdir(parents=True)
    noise.save(here / "pets" / "cat" / "0.png")
    model, data = zoo.load("hf:./vit", data="folder:pets")
    assert torch.equal(data.x[0], model.prepare(noise)) and model(data.x).shape == (1, 3)


def test_hf_weights(here, noise):
    net, _ = vit("vit", torch.bfloat16)
    model = zoo.model("hf:./vit")
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # half precision is widened
    torch.manual_seed(1)
    assert zoo.model("hf:./vit@none")(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    torch.save(net.float().state_dict(), "own.pt")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(zoo.model("hf:./vit@own.pt")(x), model(x))


def test_hf_pickles_are_refused(here):
    net, _ = vit("vit")
    os.remove("vit/model.safetensors")
    torch.save({"weight": Evil(here / "trace")}, "vit/pytorch_model.bin")
    with pytest.raises(ValueError, match=r"vit' cannot be read as 'hf:./vit': .*model.safetensors"):
        zoo.model("hf:./vit")
    assert not (here / "trace").exists()


def test_hf_code_beside_the_weights_is_not_run(here):
    vit("vit")
    config = (here / "vit" / "config.json").read_text()
    auto = '"auto_map": {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"}, "model_type": "evil",'
    (here / "vit" / "config.json").write_text(
        config.replace("{", "{" + auto, 1).replace('"model_type": "vit"', '"n": 0')
    )
    (here / "vit" / "evil.py").write_text(f"import os\nos.mkdir({str(here / 'trace')!r})\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        zoo.model("hf:./vit")
    assert not (here / "trace").exists()


def test_hf_without_a_classifier_is_refused(here):
    net, _ = vit("vit")
    net.vit.save_pretrained("vit")
    with pytest.raises(ValueError, match=r"the weights of 'hf:./vit' leave classifier.bias, .* random"):
        zoo.model("hf:./vit")


def test_hf_colours_that_cannot_go_inside_are_refused(here):
    vit("vit", rescale_factor=1 / 127.5)
    with pytest.raises(ValueError, match="does more to colours than to subtract its mean"):
        zoo.model("hf:./vit")
    vit("plain", do_normalize=False)
    assert zoo.model("hf:./plain").std.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("me/net", ConnectionError, r"needs me/net of https://.*not in the cache '.*hub'.*run 'hf download me/net'"),
        ("./net", FileNotFoundError, "there is no folder 'net'; paths start at"),
        ("me/net?trust_remote_code=True", ValueError, "may not set 'trust_remote_code'"),
    ],
)
def test_what_hf_does_not_have(here, name, error, message):
    import huggingface_hub

    with pytest.raises(error, match=message):
        zoo.model(f"hf:{name}")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


# --- Hugging Face data -------------------------------------------------------------------------------------


def table(noise, **more):
    features = {"number": datasets.Value("int64"), "picture": datasets.Image()}
    columns = {"number": [5, 6, 7], "picture": [noise] * 3, "kind": [0, 1, 0]}
    features["kind"] = datasets.ClassLabel(names=["cat", "dog"])
    return datasets.Dataset.from_dict(columns | more, features=datasets.Features(features))


def test_hf_data_of_a_folder(here, noise):
    table(noise).save_to_disk("saved")
    datasets.DatasetDict(test=table(noise), train=table(noise).select([1])).save_to_disk("splits")
    (here / "parquet").mkdir()
    table(noise).to_parquet("parquet/test.parquet")
    for name in ("hf:./saved", "hf:./splits", f"hf:./parquet?cache_dir={here}/cache"):
        data = zoo.data(name)
        assert data.classes == ("cat", "dog") and data.y.tolist() == [0, 1, 0] and data.x.shape == (3, 3, 40, 48)
        assert np.array_equal(255 * data.x[0], np.asarray(noise, dtype=np.float32).transpose(2, 0, 1))
    assert zoo.data("hf:./splits", split="train").y.tolist() == [1]
    vit("vit")
    assert zoo.load("hf:./vit", data="hf:./saved", limit=2).data.x.shape == (2, 3, 16, 16)
    assert zoo.data("hf:./saved?label=number&image=picture").y.tolist() == [5, 6, 7]
    assert zoo.data("hf:./saved?size=(5,7)&mode=L").x.shape == (3, 1, 5, 7)


@pytest.mark.parametrize(
    "name, split, error, message",
    [
        ("saved?label=nummer", None, ValueError, r"has no column 'nummer' \(did you mean 'number'\?\); it has number"),
        ("plain", None, ValueError, r"has 0 columns of kind ClassLabel; name one of number, picture as '\?label=...'"),
        ("splits", "val", ValueError, "cannot be read with split='val'"),
        ("empty", None, ValueError, "cannot be read as"),
    ],
)
def test_what_hf_data_may_not_be(here, noise, name, split, error, message):
    table(noise).save_to_disk("saved")
    table(noise).remove_columns("kind").save_to_disk("plain")
    datasets.DatasetDict(test=table(noise)).save_to_disk("splits")
    (here / "empty").mkdir()
    with pytest.raises(error, match=message):
        zoo.data(f"hf:./{name}", split=split)


def test_hf_data_without_network(here):
    with pytest.raises(ConnectionError, match="needs datasets/me/pets .*hf download --repo-type dataset me/pets'"):
        zoo.data("hf:me/pets")


def test_an_image_bomb_in_hf_data_is_refused(here):
    Image.new("1", (5200, 5000)).save("bomb.png")
    bomb = (here / "bomb.png").read_bytes()
    assert len(bomb) < 10_000
    table({"path": None, "bytes": bomb}).save_to_disk("saved")
    with pytest.raises(ValueError, match="an image is larger than 25,000,000 pixels"):
        zoo.data("hf:./saved")


# --- RobustBench -------------------------------------------------------------------------------------------

STAND_IN = """
from enum import Enum
from torch import nn
class D(Enum):
    cifar_10 = "cifar10"
class T(Enum):
    Linf = "Linf"
model_dicts = {D.cifar_10: {T.Linf: {
    "Small2020": {"model": lambda: nn.Linear(4, 3), "gdrive_id": "abc"},
    "Many2021": {"model": lambda: nn.Linear(4, 3), "gdrive_id": ["d", "e"]},
    "Elsewhere2022": {"model": None, "gdrive_id": None},
}}}
"""
LOADING = """
import torch
from pathlib import Path
from urllib.error import URLError
from .model_zoo import model_dicts, D, T
def load_model(model_name, model_dir="./models", dataset="cifar10", threat_model="Linf"):
    entry = model_dicts[D(dataset)][T(threat_model)][model_name]
    if entry["gdrive_id"] is None:
        raise URLError("no route")
    net = entry["model"]()
    net.load_state_dict(torch.load(Path(model_dir) / dataset / threat_model / f"{model_name}.pt", map_location="cpu"))
    return net
"""


@pytest.fixture
def robustbench(here, monkeypatch):
    """What of RobustBench is asked: a stand-in, for the real one cannot be installed beside today's timm."""
    place = here / "lib" / "robustbench"
    (place / "model_zoo").mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "model_zoo" / "__init__.py").write_text(STAND_IN)
    (place / "utils.py").write_text(LOADING)
    monkeypatch.syspath_prepend(str(here / "lib"))
    monkeypatch.setattr("robustx.zoo.leaderboard.reachable", lambda url: False)
    forget = [m for m in sys.modules if m.partition(".")[0] == "robustbench"]
    for module in forget:
        monkeypatch.delitem(sys.modules, module)
    (here / "models" / "cifar10" / "Linf").mkdir(parents=True)
    yield place
    for module in [m for m in sys.modules if m.partition(".")[0] == "robustbench"]:
        del sys.modules[module]


def test_robustbench_by_both_names(robustbench):
    own = torch.nn.Linear(4, 3)
    torch.save(own.state_dict(), "models/cifar10/Linf/Small2020.pt")
    save_file(own.state_dict(), "own.safetensors")
    options = "?dataset=cifar10&threat_model=Linf&model_dir=models"
    for name in ("Linf/cifar10/Small2020", "Small2020", f"Small2020{options}", "Small2020@own.safetensors"):
        model = zoo.model(f"robustbench:{name}")
        assert torch.equal(model.weight, own.weight) and not model.training
    assert zoo.model("robustbench:Many2021@none").out_features == 3


def test_a_pickle_for_robustbench_is_refused(robustbench, here, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"weight": Evil(here / "trace")}, "models/cifar10/Linf/Small2020.pt")
    with pytest.raises(ValueError, match="in 'models' holds more than weights and was not loaded"):
        zoo.model("robustbench:Small2020")
    assert not (here / "trace").exists()


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("Small202", ValueError, r"no model 'Small202' \(did you mean 'Small2020' .*expected Small2020, Many2021"),
        ("L2/cifar10/Small2020", ValueError, "no threat model 'L2' .*expected Linf"),
        ("Linf/cifar/Small2020", ValueError, r"no data set 'cifar' \(did you mean 'cifar10'"),
        ("cifar10/Small2020", ValueError, "reads 'robustbench:THREAT/DATASET/NAME'"),
        ("Linf/cifar10/Small2020?dataset=cifar10", ValueError, "reads 'robustbench:THREAT/DATASET/NAME'"),
        ("Small2020?size=3", ValueError, "has the option 'size'; RobustBench takes dataset, threat_model, model_dir"),
        ("Small2020", ConnectionError, r"needs models.cifar10.Linf.Small2020.pt, which cannot .*\(id abc\)"),
        ("Many2021", ConnectionError, r"Many2021.pt_m0.pt, models.cifar10.Linf.Many2021.pt_m1.pt, which cannot"),
        ("Elsewhere2022", ConnectionError, r"could not be fetched \(no route\); put the file"),
    ],
)
def test_what_robustbench_does_not_have(robustbench, name, error, message):
    with pytest.raises(error, match=message):
        zoo.model(f"robustbench:{name}")


@pytest.mark.parametrize(
    "missing, mend",
    [("pkg_resources", "pip install 'setuptools<81'"), ("autoattack", "pip install git"), ("gone", "robustbench 's")],
)
def test_a_robustbench_that_does_not_import(robustbench, missing, mend):
    (robustbench / "__init__.py").write_text(f"raise ModuleNotFoundError(name={missing!r})")
    with pytest.raises(ImportError, match=f"models of RobustBench need {missing}, which is not installed: .*{mend}"):
        zoo.model("robustbench:Small2020")


@pytest.mark.parametrize("name, library", [("timm:test_vit", "timm"), ("hf:me/net", "transformers")])
def test_a_library_that_is_missing_is_named(monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library} is needed here and not installed; run: pip install 'robustx\["):
        zoo.model(name)
