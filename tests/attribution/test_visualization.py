"""Pictures of attributions show what they say: Captum's numbers in the same run, and closed forms beyond."""

import inspect
import itertools
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import colormaps, pyplot
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from robustx.attribution import visualization as ours
from robustx.plot import SIGNED

RNG = np.random.default_rng(0)
IMAGE, ATTR = RNG.random((5, 6, 3)), RNG.standard_normal((5, 6, 3))
SIGNS = [sign.name for sign in ours.VisualizeSign]
METHODS = [method.name for method in ours.ImageVisualizationMethod]
SERIES = [method.name for method in ours.TimeseriesVisualizationMethod]


@pytest.fixture
def captum(monkeypatch):
    """Captum's functions, which call what matplotlib no longer has."""
    theirs = pytest.importorskip("captum.attr._utils.visualization")
    monkeypatch.setattr(matplotlib.cm, "get_cmap", lambda name: colormaps[name], raising=False)
    yield theirs
    pyplot.close("all")  # its time series touch pyplot also where they are told not to


def drawn(axes):
    """What the last picture on the axes shows, from 0 to 1 if it is a picture in colours, and how opaque it is."""
    picture = axes.images[-1]
    array = np.asarray(picture.get_array(), dtype=float)
    if array.ndim == 2:
        return array, picture.get_alpha()
    array = array / 255 if array.max() > 1 else array
    return (array[..., :3], array[..., 3]) if array.shape[-1] == 4 else (array, picture.get_alpha())


# --- one set of names ------------------------------------------------------------------------------------


def test_names_and_arguments_are_captums(captum):
    for name in [n for n in ours.__all__ if n != "MarkedText"]:
        mine, other = getattr(ours, name), getattr(captum, name)
        if issubclass(type(mine), type(ours.VisualizeSign)):
            assert [(m.name, m.value) for m in mine] == [(m.name, m.value) for m in other]
        else:
            positional = [p for p in inspect.signature(mine).parameters.values() if p.kind != p.KEYWORD_ONLY]
            assert [p.name for p in positional] == list(inspect.signature(other).parameters)


# --- pictures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outlier_perc", [0, 2, 30])
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("method", METHODS)
def test_pictures_show_captums_numbers(captum, method, sign, outlier_perc):
    arguments = {"method": method, "sign": sign, "outlier_perc": outlier_perc, "use_pyplot": False}
    if method in ("masked_image", "alpha_scaling") and sign == "all":
        for visualize in (ours.visualize_image_attr, captum.visualize_image_attr):
            with pytest.raises(AssertionError, match="sign"):
                visualize(ATTR, IMAGE, **arguments)
        return
    (_, mine), (_, other) = (v.visualize_image_attr(ATTR, IMAGE, **arguments) for v in (ours, captum))
    (shown, alpha), (expected, covers) = drawn(mine), drawn(other)
    grey_level = (2.01 if method == "masked_image" else 1.01) / 255  # Captum rounds down, masked pictures twice
    assert_allclose(shown, expected, atol=1e-12 if "heat_map" in method else grey_level)
    assert_allclose(1 if alpha is None else alpha, 1 if covers is None else covers, atol=grey_level)
    if "heat_map" in method:
        assert mine.images[-1].get_clim() == other.images[-1].get_clim()


def test_a_scale_of_ones_own_gives_captums_colours(captum):
    (_, mine), (_, other) = (
        v.visualize_image_attr(ATTR, sign="negative", cmap="Reds", use_pyplot=False) for v in (ours, captum)
    )
    assert_allclose(mine.images[0].to_rgba(mine.images[0].get_array()), other.images[0].to_rgba(drawn(other)[0]))


@pytest.mark.parametrize("sign", SIGNS)
def test_red_adds_and_blue_takes_away_on_every_scale(sign):
    values = np.array([[-1.0, 0.0, 1.0]])
    _, axes = ours.visualize_image_attr(values, sign=sign)
    takes, nothing, adds = axes.images[0].to_rgba(axes.images[0].get_array())[0]
    blue, white, red = colormaps[SIGNED]([0.0, 0.5, 1.0])
    assert_allclose(nothing, white, atol=0.03)
    if sign == "absolute_value":
        assert_allclose(takes, adds)
        assert not any(np.allclose(adds, other, atol=0.1) for other in (red, white, blue))
    else:
        assert_allclose(adds, white if sign == "negative" else red, atol=0.01)
        assert_allclose(takes, white if sign == "positive" else blue, atol=0.01)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("outlier_perc", [0, 2, 100, None])
def test_maps_of_nothing_are_drawn(sign, outlier_perc):
    figure, axes = ours.visualize_image_attr(np.zeros((3, 4)), sign=sign, outlier_perc=outlier_perc)
    assert not drawn(axes)[0].any() and axes.images[0].get_clim()[1] == 1
    figure.draw_without_rendering()


def test_values_stay_as_they_are_if_asked():
    _, axes = ours.visualize_image_attr(np.array([[-3.0, 0.5], [1e-7, 2.0]]), sign="all", outlier_perc=None)
    assert_allclose(drawn(axes)[0], [[-3.0, 0.5], [1e-7, 2.0]], rtol=1e-6)
    assert axes.images[0].get_clim() == (-3, 3)
    assert axes.child_axes[0].get_xlabel() == "attribution\nred adds,\nblue takes away"


def test_all_that_lies_beyond_a_size_of_nothing_is_full():
    _, axes = ours.visualize_image_attr(np.array([[0.0, -0.1, 5.0]]), sign="all", outlier_perc=100)
    assert drawn(axes)[0].tolist() == [[0, -1, 1]]


FORMS = {
    "tensor, channels first": lambda a: torch.from_numpy(a).permute(2, 0, 1),
    "batch of one": lambda a: torch.from_numpy(a).permute(2, 0, 1)[None].requires_grad_(),
    "bfloat16": lambda a: torch.from_numpy(a).permute(2, 0, 1).bfloat16(),
    "array batch": lambda a: a[None],
    "grey levels": lambda a: np.rint(a * 255).astype(np.uint8),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_any_form_is_the_same_picture(form):
    _, axes = ours.visualize_image_attr(None, FORMS[form](IMAGE), "original_image")
    assert_allclose(drawn(axes)[0], IMAGE, atol=1 / 255)
    if form != "grey levels":
        _, axes = ours.visualize_image_attr(FORMS[form](ATTR), sign="all", outlier_perc=None)
        assert_allclose(drawn(axes)[0], ATTR.sum(2), atol=0.05 if form == "bfloat16" else 1e-6)


def test_one_channel_is_grey_also_where_captum_fails(captum):
    grey = IMAGE[..., :1]
    for method in METHODS:
        _, axes = ours.visualize_image_attr(ATTR, grey, method, "positive", show_colorbar=False)
        assert axes.images[-1].get_array().shape == (5, 6)
    with pytest.raises(TypeError):
        captum.visualize_image_attr(ATTR, grey, "alpha_scaling", "positive", use_pyplot=False)


def test_a_picture_with_negative_values_is_stretched():
    _, axes = ours.visualize_image_attr(None, IMAGE * 4 - 2, "original_image")
    low, high = IMAGE.min(), IMAGE.max()
    assert_allclose(drawn(axes)[0], (IMAGE - low) / (high - low), atol=1e-6)


def test_a_picture_a_little_beyond_its_bounds_is_clipped():
    _, axes = ours.visualize_image_attr(None, IMAGE * 1.1, "original_image")
    assert_allclose(drawn(axes)[0], (IMAGE * 1.1).clip(0, 1), atol=1e-6)


def test_no_figure_is_known_to_pyplot_unless_asked(monkeypatch):
    before = pyplot.get_fignums()
    ours.visualize_image_attr(ATTR)
    ours.visualize_image_attr_multiple(ATTR, IMAGE, METHODS[:2], ["all", "all"])
    ours.visualize_timeseries_attr(ATTR[0], IMAGE[0], show_colorbar=True)
    assert pyplot.get_fignums() == before
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf()))
    figure, _ = ours.visualize_image_attr(ATTR, use_pyplot=True)
    assert shown == [figure] and figure.number in pyplot.get_fignums()
    pyplot.close(figure)


def test_many_ways_stand_side_by_side(captum):
    arguments = (ATTR, IMAGE, ["original_image", "heat_map"], ["all", "positive"], ["picture", "map"])
    figure, axes = ours.visualize_image_attr_multiple(*arguments)
    _, other = captum.visualize_image_attr_multiple(*arguments, use_pyplot=False)
    assert [a.get_title() for a in axes] == [a.get_title() for a in other]
    assert_allclose(drawn(axes[1])[0], drawn(other[1])[0])
    figure.draw_without_rendering()
    boxes = [a.get_position() for a in axes]
    assert boxes[0].height == pytest.approx(boxes[1].height)  # with and without a scale beneath
    assert isinstance(ours.visualize_image_attr_multiple(ATTR, IMAGE, ["heat_map"], ["all"])[1], matplotlib.axes.Axes)


@pytest.mark.parametrize("height, width", [(8, 8), (200, 20), (10, 90)])
def test_nothing_is_cut_off(height, width):
    attr, image = RNG.standard_normal((height, width)), RNG.random((height, width))
    signs = ["all", "all", "negative", "absolute_value"]
    figure, axes = ours.visualize_image_attr_multiple(attr, image, [*METHODS[2::-1], METHODS[0]], signs, signs, (9, 3))
    figure.draw_without_rendering()
    wanted = figure.get_tightbbox()  # in inches
    assert wanted.x0 > 0 and wanted.y0 > 0 and wanted.x1 < 9 and wanted.y1 < 3
    scales = [a.child_axes[0].get_tightbbox() for a in axes if a.child_axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(scales))


def test_axes_that_are_given_are_drawn_on():
    figure = Figure()
    axes = figure.subplots()
    assert ours.visualize_image_attr(ATTR, plt_fig_axis=(figure, axes)) == (figure, axes)
    assert not axes.child_axes  # a scale only if asked
    ours.visualize_image_attr(ATTR, plt_fig_axis=(figure, axes), show_colorbar=True)
    assert len(axes.child_axes) == 1
    assert not ours.visualize_image_attr(ATTR, show_colorbar=False)[1].child_axes


WRONG = {
    "no attributions": (lambda: ours.visualize_image_attr(None), "attr is None"),
    "no picture": (lambda: ours.visualize_image_attr(ATTR, method="masked_image"), "original_image is None"),
    "method": (lambda: ours.visualize_image_attr(ATTR, method="heat"), "heat_map, blended_heat_map"),
    "sign": (lambda: ours.visualize_image_attr(ATTR, sign="both"), "absolute_value"),
    "sizes": (lambda: ours.visualize_image_attr(ATTR[1:], IMAGE, "blended_heat_map"), "interpolate"),
    "batch": (lambda: ours.visualize_image_attr(torch.rand(2, 3, 4, 4)), r"attr\[0\]"),
    "vector": (lambda: ours.visualize_image_attr(np.ones(3)), r"\[H, W\]"),
    "NaN": (lambda: ours.visualize_image_attr(np.full((2, 2), np.nan)), "NaN"),
    "nothing": (lambda: ours.visualize_image_attr(np.ones((0, 2))), "empty"),
    "transparency": (lambda: ours.visualize_image_attr(None, np.ones((2, 2, 4)), "original_image"), "four channels"),
    "percentage": (lambda: ours.visualize_image_attr(ATTR, outlier_perc=101), "from 0 to 100"),
    "numbers": (lambda: ours.visualize_image_attr_multiple(ATTR, IMAGE, METHODS, ["all"]), "5, 1 signs"),
    "titles": (lambda: ours.visualize_image_attr_multiple(ATTR, IMAGE, METHODS[:1], ["all"], []), "0 titles"),
    "series": (lambda: ours.visualize_timeseries_attr(ATTR[0], IMAGE[0].T), "one shape"),
    "series of a batch": (lambda: ours.visualize_timeseries_attr(ATTR, IMAGE), r"attr\[0\]"),
    "order": (lambda: ours.visualize_timeseries_attr(ATTR[0], IMAGE[0], [3, 2, 1, 4, 5, 6]), "ascending"),
    "channels": (lambda: ours.visualize_timeseries_attr(ATTR[0], IMAGE[0], channel_labels=["a"]), "name 3 channels"),
    "axes": (
        lambda: ours.visualize_timeseries_attr(ATTR[0], IMAGE[0], plt_fig_axis=(Figure(), Figure().subplots())),
        "3 axes",
    ),
    "words": (lambda: ours.format_word_importances(["a", "b"], [1.0]), "2 words"),
    "mask": (lambda: ours.draw_mask_border(Figure().subplots(), np.ones(3)), r"\[H, W\]"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_said(what):
    call, said = WRONG[what]
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert isinstance(caught.value, AssertionError)  # as Captum raises


# --- time series -----------------------------------------------------------------------------------------

TIMES = np.arange(6) * 0.5


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("method", SERIES)
def test_series_show_captums_colours(captum, method, sign):
    arguments = {"method": method, "sign": sign, "cmap": "viridis", "channel_labels": list("abc"), "use_pyplot": False}
    pairs = [
        np.atleast_1d(v.visualize_timeseries_attr(ATTR[0], IMAGE[0], TIMES, **arguments)[1]) for v in (ours, captum)
    ]
    assert len(pairs[0]) == len(pairs[1]) == (1 if method == "overlay_combined" else 3)
    for mine, other in zip(*pairs, strict=True):
        assert mine.get_ylabel() == other.get_ylabel()
        if method == "colored_graph":
            (line,), (expected,) = ([c for c in a.collections if isinstance(c, LineCollection)] for a in (mine, other))
            assert_allclose(line.get_array(), expected.get_array())
            continue
        assert_allclose([x.get_ydata() for x in mine.lines], [x.get_ydata() for x in other.lines])
        (mesh,) = (c for c in mine.collections if isinstance(c, QuadMesh))
        expected = np.array([p.get_facecolor() for p in other.patches])
        assert_allclose(mesh.to_rgba(mesh.get_array(), alpha=0.7).reshape(-1, 4), expected)
        edges = np.unique([p.get_extents().transformed(other.transData.inverted()).intervalx for p in other.patches])
        assert_allclose(np.unique(mesh.get_coordinates()[0, :, 0]), np.unique(edges.round(9)))


def test_colours_change_half_way_between_points_at_any_distances():
    _, axes = ours.visualize_timeseries_attr(ATTR[0], IMAGE[0], [0, 1, 3, 4, 8, 10], "overlay_combined")
    (mesh,) = (c for c in axes.collections if isinstance(c, QuadMesh))
    assert mesh.get_coordinates()[0, :, 0].tolist() == [-0.5, 0.5, 2, 3.5, 6, 9, 11]
    _, axes = ours.visualize_timeseries_attr(ATTR[0], IMAGE[0], [0, 1, 3, 4, 8, 10], "colored_graph")
    parts = next(c for c in axes[0].collections if isinstance(c, LineCollection)).get_segments()
    assert [p[0, 0] for p in parts] == [0, 0.5, 2, 3.5, 6, 9] and parts[-1][-1].tolist() == [10, IMAGE[0, -1, 0]]


def test_series_keep_their_own_heights():
    data = np.stack([np.linspace(5, 6, 9), np.linspace(-3, -2, 9)], 1)
    for method in ("overlay_individual", "colored_graph"):
        _, axes = ours.visualize_timeseries_attr(data, data, method=method)
        for one, (low, high) in zip(axes, [(5, 6), (-3, -2)], strict=True):
            bottom, top = one.get_ylim()
            assert low - 0.2 < bottom < low < high < top < high + 0.2


def test_series_of_channels_first_tensors_and_of_one_point():
    mine, other = (
        ours.visualize_timeseries_attr(a, d, method="overlay_combined", channels_last=last)[1]
        for a, d, last in [(ATTR[0], IMAGE[0], True), (torch.tensor(ATTR[0].T), torch.tensor(IMAGE[0].T)[None], False)]
    )
    assert_allclose(mine.collections[0].get_array(), other.collections[0].get_array())
    figure, _ = ours.visualize_timeseries_attr([[1.0]], [[2.0]])
    figure.draw_without_rendering()
    with pytest.warns(UserWarning, match="channels_last"):
        ours.visualize_timeseries_attr(ATTR[0].T, IMAGE[0].T)


# --- parts of pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2])
def test_borders_and_labels_of_parts_are_captums(captum, width):
    mask = np.zeros((7, 8), bool)
    mask[1:6, 2:8] = True
    mine, other = Figure().subplots(), Figure().subplots()
    ours.draw_mask_border(mine, torch.tensor(mask), width, "red")
    captum.draw_mask_border(other, mask, width, "red")
    assert_allclose(mine.images[0].get_array(), other.images[0].get_array())
    ours.draw_mask_legend(mine, mask, "part")
    captum.draw_mask_legend(other, mask, "part")
    assert mine.texts[0].get_position() == other.texts[0].get_position() == (4.5, 3.0)


def test_a_label_stands_inside_its_part():
    ring, angle = np.ones((9, 9), bool), np.ones((20, 20), bool)
    ring[2:-2, 2:-2] = False
    angle[:12, :12] = False
    for part, deep in ((ring, 1), (angle, 3)):
        axes = Figure().subplots()
        ours.draw_mask_legend(axes, part, "here")
        across, down = (int(c) for c in axes.texts[0].get_position())
        assert part[down - deep // 2 : down + deep // 2 + 1, across - deep // 2 : across + deep // 2 + 1].all()
        assert part[down, across]


def test_nothing_is_drawn_of_a_part_of_nothing():
    axes = Figure().subplots()
    ours.draw_mask_border(axes, np.zeros((3, 3)))
    ours.draw_mask_legend(axes, np.zeros((3, 3)), "nothing")
    assert not axes.images and not axes.texts


# --- texts -----------------------------------------------------------------------------------------------


class Table(HTMLParser):
    """The cells of a table's rows: text, marks with their colours and titles, direction."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.open, self.marks, self.directions = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows = self.rows or [[]]
            self.rows[-1].append("")
            self.directions.append(attrs.get("dir"))
        if tag == "mark":
            self.marks.append(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows:
            self.rows[-1][-1] += data


def record(words, values, **more):
    told = {"pred_prob": 0.876, "pred_class": "good", "true_class": "bad", "attr_class": "good", "attr_score": 1.25}
    return ours.VisualizationDataRecord(
        word_attributions=values, raw_input_ids=words, convergence_score=0.01, **told | more
    )


def test_a_table_says_what_captums_says(captum, monkeypatch):
    monkeypatch.setattr(captum, "HAS_IPYTHON", True)
    monkeypatch.setattr(captum, "HTML", lambda html: SimpleNamespace(data=html), raising=False)
    monkeypatch.setattr(captum, "display", lambda html: None, raising=False)
    words, values = ["<s>", "what", "a", "film", "</s>"], torch.tensor([0.0, 0.4, -0.2, 1.5, -2.0, 0.3])
    made = ours.visualize_text([record(words, values)])
    told = captum.visualize_text(
        [captum.VisualizationDataRecord(values, 0.876, "good", "bad", "good", 1.25, words, 0.01)]
    )
    mine = Table(made.data)
    assert not mine.open  # each tag is closed
    expected = re.sub(r"<[^>]*>", " ", told.data.partition("<tr>")[2]).split()
    assert " ".join(" ".join(cell) for cell in mine.rows).split() == expected
    assert made._repr_html_() == made.data and "takes away" in made.data
    assert "takes away" not in ours.visualize_text([record(words, values)], legend=False).data


def test_words_have_the_colours_of_their_numbers_and_letters_that_can_be_read():
    values = np.linspace(-1.2, 1.2, 25)
    marks = Table(ours.format_word_importances(["word"] * 25, values)).marks
    for mark, value in zip(marks, values, strict=True):
        back, ink = (matplotlib.colors.to_rgb(c) for c in re.findall(r"color: (#\w+)", mark["style"]))
        assert_allclose(back, colormaps[SIGNED](0.5 + 0.5 * np.clip(value, -1, 1))[:3], atol=1 / 255)
        bright, dark = sorted((luminance(back), luminance(ink)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, 1.4.3
        assert float(mark["title"]) == pytest.approx(value, abs=0.005)


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_words_are_words_and_no_markup_or_commands():
    words = ["<script>alert(1)</script>", "a & b", 'say "x"', "\x1b[2J", "a\nb", "\u202eevil", "👩\u200d🚀"]
    made = ours.visualize_text([record(words, np.zeros(7), true_class="<i>", pred_class="\x1b[31m")])
    assert "<script" not in made.data and "<i>" not in made.data
    for text in (" ".join(Table(made.data).rows[-1]), made.to_text(colour=False)):
        assert "\x1b" not in text and "\\x1b[2J" in text and "a\\nb" in text and "\u202e" not in text
        assert "👩\u200d🚀" in text and 'say "x"' in text  # letters that are joined stay one


@pytest.mark.parametrize(
    "words, way",
    [
        (["[CLS]", "שלום", "עולם", "[SEP]"], "rtl"),
        (["<s>", "مرحبا", "بالعالم", "</s>"], "rtl"),
        (["hello", "שלום", "world"], "ltr"),
        (["1", "+", "2"], "ltr"),
    ],
    ids=["hebrew", "arabic", "english", "numbers"],
)
def test_a_text_runs_as_its_letters_do(words, way):
    assert Table(ours.format_word_importances(words, [0.1] * len(words))).directions == [way]


def test_lines_are_no_wider_than_a_terminal_and_lose_no_word():
    words = [f"word{i}" for i in range(60)] + ["電影", "e\u0301te\u0301"]
    text = ours.visualize_text([record(words, np.linspace(-1, 1, 62))])
    for colour in (False, True):
        lines = re.sub(r"\x1b\[[\d;]*m", "", text.to_text(colour=colour, width=40)).splitlines()[1:]
        assert max(map(len, lines)) <= 40 and len(lines) < 30
        assert [re.sub(r"\(.*", "", w) for w in " ".join(lines).split()] == words


def test_escape_sequences_go_to_terminals_only(monkeypatch, capsys):
    text = ours.visualize_text([record(["good"], [1.0])], show=True)
    assert "good(+1.00)" in capsys.readouterr().out
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    coloured, dark_red = text.to_text(), colormaps[SIGNED](1.0, bytes=True)
    assert f"\x1b[48;2;{dark_red[0]};{dark_red[1]};{dark_red[2]};38;2;255;255;255mgood\x1b[0m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in text.to_text()


def test_a_notebook_is_shown_the_text_once_if_asked(monkeypatch):
    shown = []
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    text = ours.visualize_text([record(["good"], [1.0])])
    assert shown == []
    assert ours.visualize_text([record(["good"], [1.0])], show=True) in shown and text not in shown


def test_a_text_without_attributions_has_an_empty_cell(captum):
    assert Table(ours.format_word_importances(["a"], None)).rows == [[""]]
    assert ours.format_special_tokens("</s>") == captum.format_special_tokens("</s>")
