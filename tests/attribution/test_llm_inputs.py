"""Prompts, results and their pictures: what captum's give, and what theirs cannot."""

import captum.attr as captum
import numpy as np
import pytest
import torch
from language_models import tokenizer
from matplotlib.figure import Figure
from PIL import Image
from torch.testing import assert_close

from robustx import attribution as ours
from robustx.attribution import (
    ImageMaskInput,
    LLMAttributionResult,
    ProductBaselines,
    TextTemplateInput,
    TextTokenInput,
)

TEMPLATES = {
    "listed": ("{} saw {} and {}", ["a", "b", "c"], None, None),
    "named": ("{x} saw {y}", {"x": "a", "y": "b"}, {"x": "d", "y": "e"}, {"x": 7, "y": 2}),
    "grouped": ("{} saw {} and {}", ["a", "b", "c"], ["d", "e", "f"], [5, 1, 5]),
    "function": (lambda *words: "/".join(words), ["a", "b"], lambda: ["d", "e"], None),
}
SETS = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])


@pytest.mark.parametrize("case", TEMPLATES)
def test_templates_are_captums(case):
    theirs, mine = (library.TextTemplateInput(*TEMPLATES[case]) for library in (captum, ours))
    n = mine.n_itp_features
    assert (theirs.n_itp_features, theirs.n_features, theirs.values) == (n, mine.n_features, mine.values)
    assert_close(theirs.to_tensor(), mine.to_tensor())
    assert theirs.to_model_input() == mine.to_model_input()
    for there in SETS[:, :n]:
        assert theirs.to_model_input(there[None]) == mine.to_model_input(there[None])
    values = torch.rand(2, n)
    assert_close(theirs.format_attr(values), mine.format_attr(values))


@pytest.mark.parametrize("skipped", [None, ["the", "mat"], [2, 11]], ids=["none", "words", "ids"])
@pytest.mark.parametrize("baseline", [0, "park"], ids=["id", "word"])
def test_tokens_are_captums(skipped, baseline):
    theirs, mine = (
        library.TextTokenInput("the cat sat on the mat", tokenizer(), baseline, skipped) for library in (captum, ours)
    )
    assert (theirs.values, theirs.n_itp_features, theirs.baselines) == (
        mine.values,
        mine.n_itp_features,
        mine.baselines,
    )
    assert_close(theirs.to_tensor(), mine.to_tensor())
    assert_close(theirs.to_model_input(), mine.to_model_input())
    some = (torch.arange(3 * mine.n_itp_features).reshape(3, -1) % 2).long()
    assert_close(theirs.to_model_input(some), mine.to_model_input(some))


OVERLAPPING = [torch.tensor([[1, 1, 0], [1, 1, 0]]), torch.tensor([[0, 1, 1], [0, 0, 0]])]


@pytest.mark.parametrize("masks", [{}, {"mask": torch.tensor([[4, 4, 1], [9, 1, 1]])}, {"mask_list": OVERLAPPING}],
                         ids=["whole", "parts", "overlapping"])  # fmt: skip
def test_pictures_are_captums(masks):
    image = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    theirs, mine = (library.ImageMaskInput(image, **masks, baseline=(7, 8, 9)) for library in (captum, ours))
    n = mine.n_itp_features
    assert (theirs.n_itp_features, theirs.values, theirs.mask_id_to_idx) == (n, mine.values, mine.mask_id_to_idx)
    for there in SETS[:, :n]:
        assert np.array_equal(*(np.asarray(given.to_model_input(there[None])) for given in (theirs, mine)))
    values = torch.rand(2, n)
    assert_close(theirs.format_attr(values), mine.format_attr(values))
    assert_close(theirs.format_pixel_attr(values), mine.format_pixel_attr(values))
    for a, b in zip(theirs.get_mask_list(), mine.get_mask_list(), strict=True):
        assert torch.equal(a.bool(), b)
    figure, axes = mine.plot_mask_overlay(border_width=1)
    assert isinstance(figure, Figure)
    assert [t.get_text() for t in axes.texts] == [str(k) for k in mine.mask_id_to_idx]


def test_baselines_may_be_drawn():
    drawn = ProductBaselines({"x": ["d", "e", "f"], "y": ["g"]})
    given = TextTemplateInput("{x} {y}", {"x": "a", "y": "b"}, drawn)
    found = {given.to_model_input(torch.zeros(1, 2)) for _ in range(60)}
    assert found == {"d g", "e g", "f g"}


def test_errors_of_prompts_say_how_to_mend():
    with pytest.raises(TypeError, match="values must be a list or a dict"):
        TextTemplateInput("{}", "a")
    with pytest.raises(TypeError, match="template must be a format string"):
        TextTemplateInput(3, ["a"])
    for template, values in (("{} {}", ["a"]), ("{x} {y}", {"x": "a"})):
        with pytest.raises(ValueError, match="asks for more than values give"):
            TextTemplateInput(template, values)
    with pytest.raises(TypeError, match="image must be a PIL image, got Tensor"):
        ImageMaskInput(torch.zeros(3, 2, 2))
    with pytest.raises(TypeError, match="baselines must be a dict as values are"):
        TextTemplateInput("{x}", {"x": "a"}, ["b"])
    with pytest.raises(ValueError, match="mask must have one entry for each of the 2 values"):
        TextTemplateInput("{} {}", ["a", "b"], mask=[1])
    with pytest.raises(ValueError, match="baselines must have one entry .*'y'"):
        TextTemplateInput("{x}", {"x": "a"}, {"y": "b"}).to_model_input()
    with pytest.raises(ValueError, match=r"mask must be \[H, W\] = \(2, 3\)"):
        ImageMaskInput(Image.new("RGB", (3, 2)), torch.zeros(3, 2))

    class Poor:
        def encode(self, text, return_tensors):
            return torch.tensor([[1]])

        def convert_ids_to_tokens(self, ids):
            return ["a"]

        def convert_tokens_to_ids(self, tokens):
            return [None]

    with pytest.raises(ValueError, match="no token 'zebra'"):
        TextTokenInput("a", Poor(), "zebra")


def result(**options):
    given = {
        "input_tokens": ["the", "very\nlong " * 20, "mat"],
        "output_tokens": ["it", "is"],
        "seq_attr": [0.5, -1.0, 0.0],
        "token_attr": torch.tensor([[0.5, -2.0, 0.0], [0.0, 1.0, 0.0]]),
    }
    return LLMAttributionResult(**{**given, **options})


def test_pictures_show_the_numbers(monkeypatch):
    from matplotlib import pyplot

    figure, axes = result().plot_token_attr()
    assert isinstance(figure, Figure)
    assert not pyplot.get_fignums()  # nothing of pyplot's was touched
    assert [t.get_text() for t in axes.texts] == ["0.50", "-2.00", "0.00", "0.00", "1.00", "0.00"]
    assert max(len(t.get_text()) for t in axes.get_xticklabels()) == 50
    _, axes = result().plot_seq_attr()
    assert [bar.get_height() for bar in axes.patches] == [0.5, -1.0, 0.0]
    shows = []
    monkeypatch.setattr(pyplot, "show", lambda: shows.append(pyplot.get_fignums()))
    assert result().plot_seq_attr(show=True) is None
    assert result(seq_attr=[0.0] * 3, token_attr=torch.zeros(2, 3)).plot_token_attr(show=True) is None  # all alike
    pyplot.close("all")
    assert len(shows) == 2


def test_a_heat_map_lies_over_the_picture():
    mask = torch.tensor([[0, 0, 1, 2]] * 3)
    given = ImageMaskInput(Image.new("RGB", (4, 3), (90, 90, 200)), mask)
    both = result(inp=given)
    for position, values in ((None, both.seq_attr), (1, both.token_attr[1]), ((0, 2), both.token_attr.sum(0))):
        _, axes = both.plot_image_heatmap(target_token_pos=position)
        assert_close(torch.as_tensor(axes.images[1].get_array().data), values[mask])
    assert [t.get_text() for t in axes.texts] == ["0", "1", "2"]


def test_errors_of_results_say_how_to_mend():
    assert result().seq_attr_dict["mat"] == 0.0
    with pytest.raises(ValueError, match=r"token_attr must have the shape \(2, 3\)"):
        result(token_attr=torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"output_probs must have the shape \(2,\)"):
        result(output_probs=[0.5])
    with pytest.raises(ValueError, match="use those of seq_attr"):
        result(token_attr=None).plot_token_attr()
    with pytest.raises(ValueError, match="for an ImageMaskInput, got NoneType"):
        result().plot_image_heatmap()
