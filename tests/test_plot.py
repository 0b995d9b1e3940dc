"""Pictures show what they are given: on scales that can be compared, white at zero."""

import io

import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.text import Text

from robustx.plot import (
    attribution_maps,
    contact_sheet,
    front,
    image_attribution,
    image_counterfactual,
    image_counterfactuals,
    ranked_bars,
    waterfall,
    ways,
    words_table,
)

torch.manual_seed(0)
IMAGES, MAPS = torch.rand(2, 3, 6, 6), {"weak": 0.1 * torch.randn(2, 6, 6), "strong": torch.randn(2, 3, 3)}


def drawn(figure, rows, columns):
    """The pictures in a grid, without the colour bars behind them."""
    return [[axes.images[0] for axes in figure.axes[r * columns : (r + 1) * columns]] for r in range(rows)]


@pytest.mark.parametrize("one_scale", [True, False])
def test_maps_stand_in_their_places_on_scales_centred_at_zero(one_scale):
    figure = attribution_maps(IMAGES, MAPS, (0, 1), "title", "label", ["first", "second"], one_scale)
    strongest = max(a.abs().max().item() for a in MAPS.values())
    for i, row in enumerate(drawn(figure, 2, 3)):
        assert torch.allclose(torch.tensor(row[0].get_array()), IMAGES[i].permute(1, 2, 0))
        for shown, a in zip(row[1:], MAPS.values(), strict=True):
            assert torch.equal(torch.tensor(shown.get_array()), a[i])
            most = strongest if one_scale else a.abs().max().item()
            assert shown.get_clim() == pytest.approx((-most, most))
    bars = figure.axes[6:]
    assert len(bars) == (1 if one_scale else 2)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["input", "weak", "strong"]


def test_maps_of_nothing_are_white():
    figure = attribution_maps(IMAGES, {"none": torch.zeros(2, 6, 6)}, (0, 1), "title", "label")
    assert drawn(figure, 2, 2)[0][1].get_clim() == (-1, 1)
    assert not figure.axes[0].texts


def test_bars_are_red_above_zero_and_blue_below():
    axes = ranked_bars(["more", "less"], [2.0, -1.0], "title", "label").axes[0]
    red, blue = (bar.get_facecolor() for bar in axes.patches)
    assert red[0] > red[2] and blue[2] > blue[0]
    assert [bar.get_width() for bar in axes.patches] == [2.0, -1.0]


def outlined(axes):
    """The unit segments of the outlines on a picture, as sets of their ends."""
    (lines,) = (c for c in axes.collections if isinstance(c, LineCollection))
    return {frozenset(map(tuple, segment.tolist())) for segment in lines.get_segments()}


def test_counterfactuals_outline_what_changed_and_nothing_else():
    regions = torch.arange(4).reshape(2, 2).repeat_interleave(3, 0).repeat_interleave(3, 1).expand(2, 6, 6)
    after, shares = IMAGES.clone(), torch.zeros(2, 6, 6)
    after[0, 1, :3, 3:] += 0.5  # the region on the upper right, in one channel
    after[1, :, 3:] -= 0.25  # both regions below
    shares[0, :3, 3:], shares[1, 3:] = 3.0, -1.0
    told = [("3 (99 %)", "8 (60 %)"), ("4 (98 %)", "9 (70 %)")]
    figure = image_counterfactuals(IMAGES, after, shares, regions, (0, 1), "title", told, ["first", "second"])
    pictures = drawn(figure, 2, 4)
    for i, (was, now, change, did) in enumerate(pictures):
        assert torch.allclose(torch.tensor(was.get_array()), IMAGES[i].permute(1, 2, 0))
        assert torch.allclose(torch.tensor(now.get_array()), after[i].clamp(0, 1).permute(1, 2, 0))
        assert torch.allclose(torch.tensor(change.get_array()), (after[i] - IMAGES[i]).mean(0))
        assert torch.equal(torch.tensor(did.get_array()), shares[i])
        assert change.get_clim() == pytest.approx((-0.25, 0.25)) and did.get_clim() == (-3, 3)
        titles = [axes.get_title() for axes in figure.axes[4 * i : 4 * i + 2]]
        assert titles == list(told[i])
    assert [axes.get_title() for axes in figure.axes[2:4]] == ["change", "what each region did"]

    def box(left, top, right, bottom):
        across = {frozenset({(c, r), (c + 1, r)}) for r in (top, bottom) for c in frames(left, right)}
        return across | {frozenset({(c, r), (c, r + 1)}) for c in (left, right) for r in frames(top, bottom)}

    def frames(low, high):
        return [low + k for k in range(int(high - low))]

    for axes in figure.axes[:4]:
        assert outlined(axes) == box(2.5, -0.5, 5.5, 2.5)
    for axes in figure.axes[4:8]:
        assert outlined(axes) == box(-0.5, 2.5, 2.5, 5.5) | box(2.5, 2.5, 5.5, 5.5)


@pytest.mark.parametrize(
    "figure",
    [
        attribution_maps(IMAGES, MAPS, (0, 1), "title", "label", one_scale=False),
        contact_sheet(IMAGES, IMAGES.flip(0), ["a", "b"], [True, False], (0, 1), "title"),
        image_attribution(IMAGES[0], MAPS["weak"][0], (0, 1), "title", "label", torch.arange(36).view(1, 1, 6, 6) // 9),
        image_counterfactual(
            IMAGES[0], IMAGES[1], MAPS["weak"][0], torch.arange(36).view(6, 6) // 9, (0, 1), ("title", "was", "is")
        ),
    ],
    ids=["maps", "sheet", "attribution", "counterfactual"],
)
def test_figures_can_be_written(figure):
    figure.savefig(file := io.BytesIO(), format="png")
    assert file.getvalue()[:4] == b"\x89PNG"


LONG = "a rather long name of what stands in column {} of this table: 1,000 → 1,500 EUR"


def steps(n):
    values = [2.5 * (-1) ** (k % 3 == 2) / (k + 1) for k in range(n)]
    return [LONG.format(k) if k % 2 else f"x{k}" for k in range(n)], values


def picture(kind, n):
    names, values = steps(n)
    if kind == "waterfall":
        return waterfall(names, values, -1.5, LONG, "margin")
    if kind == "ways":
        walk = [-1.5 + sum(values[:k]) for k in range(n + 1)]
        return ways([-1.5, walk[-1]], walk, names, LONG, "margin")
    rows = [[name, "part time → self-employed", f"{v:+.3g}"] for name, v in zip(names, values, strict=True)]
    return words_table([rows, rows[:1]], ["feature", "change", "margin won"], LONG, [LONG * 3, "short"])


@pytest.mark.parametrize("n", [0, 1, 12])
@pytest.mark.parametrize("kind", ["waterfall", "table", "ways"])
def test_words_are_neither_cut_off_nor_written_over_one_another(kind, n):
    figure = picture(kind, n)
    figure.savefig(io.BytesIO(), format="png")
    page = figure.bbox
    numbers = [t for axes in figure.axes for t in axes.get_xticklabels()]  # some of them beyond the ends
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t not in numbers]
    boxes = [t.get_window_extent() for t in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text.get_text()
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text.get_text()
    for i, a in enumerate(boxes):
        for j, b in enumerate(boxes[:i]):
            apart = min(a.x1, b.x1) - max(a.x0, b.x0) < 2 or min(a.y1, b.y1) - max(a.y0, b.y0) < 2
            assert apart, (texts[i].get_text(), texts[j].get_text())


def test_a_waterfall_goes_on_where_it_was():
    first, up, down, last = waterfall(["more", "less"], [3.0, -1.0], -1.5, "title", "label").axes[0].patches
    assert [(b.get_x(), b.get_width()) for b in (first, up, down, last)] == [(0, -1.5), (-1.5, 3), (1.5, -1), (0, 0.5)]
    assert up.get_facecolor()[0] > up.get_facecolor()[2] and down.get_facecolor()[2] > down.get_facecolor()[0]


def test_a_front_joins_what_nothing_beats():
    axes = front({"a": [(3, 1.0), (1, 4.0), (2, 4.0), (2, 2.0)], "b": [(1, 1.0)]}, "title", "few", "near").axes[0]
    joined, every, *_ = axes.lines
    assert list(zip(*joined.get_data(), strict=True)) == [(1, 4), (2, 2), (3, 1)]
    assert len(every.get_xdata()) == 4
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b"]
