"""Samples out of files: pictures, arrays, tensors and tables, none of which may fill the memory or run code."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from robustx import zoo
from robustx.zoo import images


def picture(file, color, size=(8, 6), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three cats and three dogs, 6 high and 8 wide."""
    monkeypatch.chdir(tmp_path)
    for label in ("dog", "cat"):
        for i in range(3):
            picture(tmp_path / "pets" / label / f"{i}.png", (10 * i, 0, 255))
    return tmp_path / "pets"


# --- folders of pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, root", [("folder:pets", None), ("torchvision:ImageFolder", "pets")])
def test_one_folder_per_class(folder, name, root):
    data = zoo.data(name, root=root)
    assert data.x.shape == (6, 3, 6, 8) and data.classes == ("cat", "dog") and data.kind == "image"
    assert data.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert_close(data.x[1, :, 0, 0], torch.tensor([10 / 255, 0, 1]))
    assert zoo.data(name, root=root, limit=2).y.tolist() == [0, 1]  # spread over the classes
    assert_close(zoo.data([(Image.open(folder / "cat" / "0.png"), 0)]).x, data.x[:1])


def test_a_split_is_a_folder_within(folder):
    picture(folder.parent / "all" / "val" / "bird" / "0.jpg", "red")
    data = zoo.data("folder:all", split="val")
    assert data.classes == ("bird",) and data.split == "val"
    with pytest.raises(FileNotFoundError, match=f"there is no folder 'all{os.sep}test'"):
        zoo.data("folder:all", split="test")


@pytest.mark.parametrize("option", ["", "?labels=names.csv"])
def test_one_flat_folder_with_labels(tmp_path, option):
    for i, color in enumerate(("red", "lime", "blue")):
        picture(tmp_path / f"{i}.png", color)
    (tmp_path / "names.csv").write_text("file,what\n2.png,sky\n0.png,rose\n\n1.png,grass\n")
    data = zoo.data(f"folder:{tmp_path}{option}")
    assert data.classes == ("grass", "rose", "sky") and data.y.tolist() == [2, 1, 0]
    assert torch.equal(data.x[:, :, 0, 0], torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))


def test_size_and_mode(folder):
    assert zoo.data("folder:pets?size=4").x.shape == (6, 3, 4, 4)
    assert zoo.data("folder:pets?size=(3,5)&mode=L").x.shape == (6, 1, 3, 5)
    stripes = np.zeros((4, 8), dtype=np.uint8)
    stripes[:, 2:6] = 255  # the middle square, which is all that stays of it
    (folder / "owl").mkdir()
    Image.fromarray(stripes).save(folder / "owl" / "0.png")
    x = zoo.data("folder:pets?size=4&mode=L").x[-1]
    assert torch.equal(x, torch.ones(1, 4, 4))


def test_pictures_are_made_for_the_model(folder):
    from torchvision.models import SqueezeNet1_1_Weights as Weights
    from torchvision.transforms.functional import normalize

    torch.manual_seed(0)
    model, data = zoo.load("torchvision:squeezenet1_1@none", data="folder:pets", limit=2)
    assert data.x.shape == (2, 3, 224, 224)
    own = Weights.DEFAULT.transforms()
    expected = own(Image.open(folder / "dog" / "0.png"))
    assert_close(normalize(data.x[1], own.mean, own.std), expected)
    assert zoo.data("folder:pets?size=16", like=model).x.shape == (6, 3, 16, 16)  # what is asked for wins
    renamed = zoo.model("torchvision:squeezenet1_1@none", mean=[0.5] * 3, std=[0.5] * 3)
    assert torch.equal(zoo.data("folder:pets", like=renamed, limit=2).x, data.x)


def test_data_sets_of_torchvision_take_size_and_mode_that_are_not_their_own(folder):
    torch.manual_seed(0)
    model = zoo.model("torchvision:squeezenet1_1@none")
    own = zoo.data("torchvision:ImageFolder?size=16&mode=L", root="pets", like=model)
    assert own.x.shape == (6, 1, 16, 16)
    assert len(zoo.data("torchvision:FakeData?size=2&image_size=(3,8,8)")) == 2  # there it is how many


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("folder:", ValueError, "a name must read 'folder:name"),
        ("folder:nowhere", FileNotFoundError, "there is no folder 'nowhere'; paths start at"),
        ("folder:pets/cat", ValueError, "must hold one folder per class, or pictures with a CSV file"),
        ("folder:pets?sise=3", ValueError, r"has the option 'sise'; a folder takes size, mode and labels"),
        ("folder:pets?size=0", ValueError, r"must be a number of pixels or \(height, width\), got 0"),
        ("folder:pets?size=big", ValueError, "got 'big'"),
        ("folder:pets?mode=CMYK", ValueError, "must be RGB or L, got 'CMYK'"),
        ("folder:pets?labels=no.csv", FileNotFoundError, "there is no file of labels"),
        ("folder:odd", ValueError, "must name a file and its class in every row"),
        ("folder:out", ValueError, r"names .*secret.png', which is not in the folder"),
        ("folder:none", ValueError, "holds no samples"),
        ("folder:torn", ValueError, r"0.png' is no whole image"),
        ("folder:text", ValueError, r"0.png' is no whole image .*cannot identify"),
    ],
)
def test_what_a_folder_may_not_be(folder, name, error, message):
    base = folder.parent
    for room, table in {"odd": "f,l\na.png\n", "out": "f,l\n../secret.png,a\n", "none": "f,l\n"}.items():
        (base / room).mkdir()
        (base / room / "labels.csv").write_text(table)
    picture(base / "secret.png", "red")
    picture(base / "torn" / "a" / "0.png", "red", (200, 200))
    (base / "torn" / "a" / "0.png").write_bytes((base / "torn" / "a" / "0.png").read_bytes()[:200])
    (base / "text" / "a").mkdir(parents=True)
    (base / "text" / "a" / "0.png").write_text("no picture")
    with pytest.raises(error, match=message):
        zoo.data(name)


# --- what unfolds to more than a machine can hold ----------------------------------------------------------


@pytest.fixture(params=[(5200, 5000), (8000, 8000)], ids=["over", "far over"])
def bomb(folder, request):
    """A picture of a few kilobytes that unfolds to 26 or 64 million pixels, among others."""
    file = folder / "cat" / "0.png"
    picture(file, 0, request.param, mode="1")
    assert file.stat().st_size < 10_000
    (folder / "flat").mkdir()
    file.rename(folder / "flat" / "0.png")
    (folder / "flat" / "labels.csv").write_text("file,label\n0.png,a\n")
    (folder / "module.py").write_text(
        "from PIL import Image\n"
        "class Lazy:\n"
        "    def __len__(self): return 1\n"
        "    def __getitem__(self, i): return Image.open('flat/0.png').convert('RGB'), 0\n"
    )
    return folder


@pytest.mark.parametrize(
    "name, root",
    [
        ("torchvision:ImageFolder", "."),
        ("folder:.", None),
        ("folder:flat", None),
        ("folder:flat?size=8", None),
        ("module:Lazy", None),
    ],
)
def test_an_image_bomb_is_refused(bomb, monkeypatch, name, root):
    monkeypatch.chdir(bomb)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="an image is larger than 25,000,000 pixels"):
        zoo.data(name, root=root)
    assert before == Image.MAX_IMAGE_PIXELS


def test_an_archive_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("robustx.zoo.files.MAX_BYTES", 10**6)
    file = tmp_path / "bomb.npz"
    np.savez_compressed(file, x=np.zeros((1000, 1000)), y=np.zeros(1000, dtype=int))
    assert file.stat().st_size < 20_000
    with pytest.raises(ValueError, match="bomb.npz' unfolds to 0.0 GiB; split it"):
        zoo.data(str(file))


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**22)}
    )  # 32 TiB, as it says
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as held:
        held.writestr("x.npy", header.getvalue())
        held.writestr("y.npy", header.getvalue())
    with pytest.raises(ValueError, match="huge.npz' is not a whole .npz file"):
        zoo.data(str(tmp_path / "huge.npz"))


# --- arrays and tensors ------------------------------------------------------------------------------------

X, Y = np.random.RandomState(0).rand(5, 3, 2, 4).astype(np.float32), np.arange(5) % 3


def save(file, **arrays):
    if file.suffix == ".npz":
        np.savez(file, **arrays)
    else:
        save_file({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}, file)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_of_a_file(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"some{suffix}"
    save(file, x=X, y=Y)
    data = zoo.data(str(file))
    assert np.array_equal(data.x, X) and np.array_equal(data.y, Y) and data.kind == "image"
    assert zoo.data(file.name, limit=2).y.tolist() == [0, 1]
    save(file, pictures=(255 * X.transpose(0, 2, 3, 1)).astype(np.uint8), labels=Y.astype(np.uint8))
    bytes_ = zoo.data(f"{file.name}?x=pictures&y=labels&layout=NHWC")
    assert bytes_.x.shape == X.shape and (bytes_.x - torch.from_numpy(X)).abs().max() <= 1 / 255
    with pytest.raises(ValueError, match="holds labels, pictures but no 'x'; say what samples and classes are called"):
        zoo.data(str(file))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="is not a whole"):
        zoo.data(str(file))


def test_big_endian_arrays(tmp_path):
    np.savez(tmp_path / "old.npz", x=X.astype(">f4"), y=Y.astype(">i8"))
    assert np.array_equal(zoo.data(str(tmp_path / "old.npz")).x, X)


def test_objects_in_arrays_are_not_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trace"),)

    np.savez(tmp_path / "evil.npz", x=np.array([Evil()], dtype=object), y=np.zeros(1, dtype=int))
    with pytest.raises(ValueError, match="holds objects, which are pickled and were not loaded"):
        zoo.data(str(tmp_path / "evil.npz"))
    assert not (tmp_path / "trace").exists()
    np.load(tmp_path / "evil.npz", allow_pickle=True)["x"]  # the trap itself works
    assert (tmp_path / "trace").exists()


# --- tables ------------------------------------------------------------------------------------------------


def test_a_table(tmp_path):
    (tmp_path / "t.csv").write_text("age,label,dose\n0.5,ill,0.25\n0.125,well,1\n")
    data = zoo.data(str(tmp_path / "t.csv"))
    assert torch.equal(data.x, torch.tensor([[0.5, 0.25], [0.125, 1.0]])) and data.kind == "table"
    assert data.classes == ("ill", "well") and data.y.tolist() == [0, 1]
    assert [c.name for c in data.columns] == ["age", "dose"]
    assert torch.equal(data.to_units(data.x).float(), data.x)
    (tmp_path / "n.csv").write_text("\ufeffdose,grade\n5,2\n7,0\n", encoding="utf-8")
    graded = zoo.data(f"{tmp_path}/n.csv?label=grade", bounds=(0.0, 10.0))
    assert graded.y.tolist() == [2, 0] and graded.classes == ("0", "1", "2") and graded.x.tolist() == [[5.0], [7.0]]


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("a,b\n1,2\n", "t.csv", r"has no column 'label' or .*; name the one of the classes .* it has a, b"),
        ("a,grade\n1,2\n", "t.csv?label=grad", r"has no column 'grad' \(did you mean 'grade'\?\)"),
        ("a,y\n1,2\n3\n", "t.csv", "row 2 of 't.csv' has 1 cells, its header 2"),
        ("a,y\n0,2\n,1\n", "t.csv", "column 'a' of 't.csv' holds '' in row 2 where a number is needed"),
        ("a,y\n", "t.csv", "'t.csv' holds no samples"),
        ("", "t.csv", "has no column"),
        ("a,y\n1,2\n", "t.csv?x=a", "has the option 'x'; such a file takes label"),
        ("a,y\n7,2\n", "t.csv", "reaches from 7 to 7 and leaves its bounds"),
    ],
    ids=["no label", "near", "uneven", "blank", "empty", "nothing", "option", "bounds"],
)
def test_what_a_table_may_not_be(tmp_path, monkeypatch, text, name, message):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        zoo.data(name)


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"split": "test"}, ValueError, "'no.npz' knows no splits"),
        ({"root": "x"}, ValueError, "root is the folder of a torchvision data set"),
        ({}, FileNotFoundError, "there is no file 'no.npz'; paths start at"),
    ],
    ids=["split", "root", "missing"],
)
def test_what_goes_with_a_file(more, error, message):
    with pytest.raises(error, match=message):
        zoo.data("no.npz", **more)


def test_the_limit_of_pixels_holds_only_inside():
    before = Image.MAX_IMAGE_PIXELS
    with images.bounded_images():
        assert Image.MAX_IMAGE_PIXELS == 25_000_000
    assert before == Image.MAX_IMAGE_PIXELS
