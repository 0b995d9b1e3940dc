"""Language models: brute force, prompt by prompt, and captum on the same models."""

import warnings

import captum.attr as captum
import pytest
import torch
from language_models import MODELS, Plain, Sighted, bloom, counted, gpt2, llama, mamba, mistral, one_by_one, tokenizer
from torch.testing import assert_close

from robustx import attribution as ours
from robustx.attribution import (
    FeatureAblation,
    ImageMaskInput,
    InterpretableInput,
    KernelShap,
    LayerGradientShap,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    Lime,
    LLMAttribution,
    LLMGradientAttribution,
    ShapleyValues,
    ShapleyValueSampling,
    TextTemplateInput,
)
from robustx.attribution.text import Continuations
from robustx.engine.memory import Pace

PROMPT, ANSWER = "the cat sat on the mat", "it is big"
NEAR = {"atol": 1e-4, "rtol": 1e-4}


def ids(text):
    return tokenizer().encode(text, add_special_tokens=False)


def tokens(library, text=PROMPT, **options):
    return library.TextTokenInput(text, tokenizer(), **options)


def template(library, **options):
    return library.TextTemplateInput(
        "the {} {} on {} so", ["cat", "sat", "the mat"], ["dog", "ran in the park", "it"], **options
    )


@pytest.mark.parametrize("scale", ["log_prob", "prob"])
@pytest.mark.parametrize("name", MODELS)
def test_ablation_is_brute_force_over_tokens(name, scale):
    model, prompt, answer = MODELS[name](), ids(PROMPT), ids(ANSWER)
    of = (lambda v: v) if scale == "log_prob" else torch.exp
    clean = one_by_one(model, prompt, answer)
    falls, falls_of_all = [], []
    for k in range(len(prompt)):
        gone = one_by_one(model, [*prompt[:k], 3, *prompt[k + 1 :]], answer)
        falls.append(of(clean) - of(gone))
        falls_of_all.append(of(clean.sum()) - of(gone.sum()))
    found = LLMAttribution(FeatureAblation(model), tokenizer(), scale).attribute(tokens(ours, baselines="a"), ANSWER)
    assert_close(found.token_attr, torch.stack(falls, 1), atol=1e-5, rtol=1e-5)
    assert_close(found.seq_attr, torch.stack(falls_of_all), atol=1e-5, rtol=1e-5)
    assert_close(found.output_probs, clean.exp(), atol=1e-5, rtol=1e-5)
    assert found.input_tokens == PROMPT.split()
    assert found.output_tokens == ANSWER.split()


UNCACHED = {"use_cached_outputs": False}  # captum's kept keys and values are not those of transformers 5

CASES = {
    "ablation": ("FeatureAblation", {}),
    "sampled": ("ShapleyValueSampling", {"n_samples": 3}),
    "exact": ("ShapleyValues", {}),
    "lime": ("Lime", {"n_samples": 20}),
    "kernel": ("KernelShap", {"n_samples": 7}),
}


@pytest.mark.parametrize("case", CASES)
def test_methods_agree_with_captum(case):
    method, options = CASES[case]
    model = gpt2()
    skipping = {"skip_tokens": ["the", "on"]} if case == "exact" else {}  # captum walks through all orders
    for make, further in ((tokens, skipping), (template, {"mask": [4, 9, 4]} if case == "ablation" else {})):
        if case == "kernel" and make is template:
            continue  # so few features that all sets are asked
        for scale in ("log_prob", "prob") if case == "ablation" else ("log_prob",):
            results = []
            for library in (captum, ours):
                torch.manual_seed(1)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # captum warns of every question
                    attribution = library.LLMAttribution(getattr(library, method)(model), tokenizer(), scale)
                    results.append(attribution.attribute(make(library, **further), ANSWER, **UNCACHED, **options))
            theirs, mine = results
            assert_close(mine.seq_attr, theirs.seq_attr, **NEAR)
            if theirs.token_attr is not None:
                assert_close(mine.token_attr, theirs.token_attr, **NEAR)
            assert (mine.input_tokens, mine.output_tokens) == (theirs.input_tokens, theirs.output_tokens)


def test_surrogates_explain_single_tokens_too():
    model = llama()
    result = LLMAttribution(KernelShap(model), tokenizer()).attribute(template(ours), ANSWER)
    assert_close(result.token_attr.sum(0), result.seq_attr, **NEAR)  # few features: all sets, exact values
    exact = LLMAttribution(ShapleyValues(model), tokenizer()).attribute(template(ours), ANSWER)
    assert_close(result.token_attr, exact.token_attr, **NEAR)
    for method in (ours.OwenValues, ours.BanzhafValues):  # which of two features comes first is all that there is
        two = ours.TextTemplateInput("the {} {}", ["cat", "sat"], ["dog", "ran in the park"])
        results = [LLMAttribution(of(model), tokenizer()).attribute(two, ANSWER) for of in (method, ShapleyValues)]
        assert_close(results[0].token_attr, results[1].token_attr, **NEAR)
    for method in (ours.OwenValues, ours.BanzhafValues):  # which of two features comes first is all that there is
        two = ours.TextTemplateInput("the {} {}", ["cat", "sat"], ["dog", "ran in the park"])
        results = [LLMAttribution(of(model), tokenizer()).attribute(two, ANSWER) for of in (method, ShapleyValues)]
        assert_close(results[0].token_attr, results[1].token_attr, **NEAR)


PROMPTS = ["the cat sat", "a dog ran in the park and the rain", "the sun is so big and red"]


@pytest.mark.parametrize("method", [FeatureAblation, ShapleyValues, ShapleyValueSampling], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_prompts_together_are_prompts_one_by_one(name, method):
    model = MODELS[name]()
    options = {"seed": 0, "n_samples": 2} if method is ShapleyValueSampling else {}
    texts = PROMPTS if method is not ShapleyValues else [p[:11] for p in PROMPTS]
    given, answers = [tokens(ours, p) for p in texts], ["it is big", None, "so red"]
    attribution = LLMAttribution(method(model), tokenizer())
    made = {"gen_args": {"max_new_tokens": 2, "do_sample": False}}
    together = attribution.attribute(given, answers, **made, **options)
    for one, prompt, answer in zip(together, given, answers, strict=True):
        alone = attribution.attribute(prompt, answer, **(made if answer is None else {}), **options)
        assert_close(one.token_attr, alone.token_attr, atol=1e-5, rtol=1e-5)
        assert_close(one.seq_attr, alone.seq_attr, atol=1e-5, rtol=1e-5)
        assert_close(one.output_probs, alone.output_probs, atol=1e-5, rtol=1e-5)
        assert one.output_tokens == alone.output_tokens
    assert attribution.attribute([], "it") == []


def test_calls_are_five_times_fewer_than_captums():
    model = gpt2()
    seen = counted(model)
    for make, evaluations in ((tokens, 7), (template, 4)):
        found = {}
        for library in (captum, ours):
            seen.clear()
            method = library.FeatureAblation(model)
            result = library.LLMAttribution(method, tokenizer()).attribute(make(library), ANSWER, **UNCACHED)
            found[library] = len(seen), result.seq_attr
        assert_close(found[ours][1], found[captum][1], **NEAR)
        assert found[captum][0] == evaluations * 3  # for each token of the answer
        assert 5 * found[ours][0] <= found[captum][0]
        rows = [shape for shape in seen if shape[0] > 1]
        assert sum(n for n, _ in rows) == evaluations  # no evaluation is left out, nor made twice


def test_what_was_asked_is_not_asked_again():
    model = gpt2()
    seen = counted(model)
    attribution = LLMAttribution(ShapleyValueSampling(model), tokenizer())
    attribution.attribute(template(ours), ANSWER, n_samples=40, seed=0)
    assert sum(n for n, _ in seen) <= 2**3 + 2  # all sets, and rows to check the padding by
    seen.clear()
    LLMAttribution(FeatureAblation(model), tokenizer()).attribute([tokens(ours), tokens(ours)], ANSWER)
    assert sum(n for n, _ in seen) == 7


LONG = "the sun is so big and red and the rain is so big and it likes the park and it likes the mat and "


@pytest.mark.parametrize("name", MODELS)
def test_a_common_beginning_is_computed_once(name):
    model = MODELS[name]()
    given = TextTemplateInput(LONG + "{} {} on {}", ["cat", "sat", "the mat"], ["dog", "ran in the park", "it"])
    seen, found, numbers = counted(model), {}, {}
    for cached in (True, False):
        seen.clear()
        attribution = LLMAttribution(ShapleyValues(model), tokenizer())
        found[cached] = attribution.attribute(given, ANSWER, use_cached_outputs=cached)
        numbers[cached] = sum(n * length for n, length in seen)
    assert_close(found[True].token_attr, found[False].token_attr, atol=1e-5, rtol=1e-5)
    assert numbers[True] < 0.6 * numbers[False]


@pytest.mark.parametrize("make", [mistral, bloom, mamba], ids=lambda of: of.__name__)
def test_other_kinds_of_models_are_brute_force_too(make):
    model, parts = make(), (["cat", "sat"], ["dog", "ran in the park"])
    begins = [LONG, "the "]  # what all begin with is kept, where the model can; and prompts are padded
    given = [TextTemplateInput(begin + "{} {} on it", *parts) for begin in begins]
    for one in (given[:1], given):
        results = LLMAttribution(FeatureAblation(model), tokenizer()).attribute(one, ANSWER)
        for begin, result in zip(begins, results, strict=False):
            clean, *gone = (
                one_by_one(model, ids(f"{begin}{words} on it"), ids(ANSWER))
                for words in ("cat sat", "dog sat", "cat ran in the park")
            )
            assert_close(result.token_attr, torch.stack([clean - g for g in gone], 1), atol=1e-5, rtol=1e-5)


def test_an_adapter_takes_what_its_base_takes():
    class Adapter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base = gpt2()

        def get_base_model(self):
            return self.base

        def forward(self, *args, **kwargs):
            return self.base(*args, **kwargs)

    model = Adapter()
    seen = counted(model.base)
    found = LLMAttribution(FeatureAblation(model), tokenizer()).attribute(template(ours), ANSWER)
    clean = LLMAttribution(FeatureAblation(gpt2()), tokenizer()).attribute(template(ours), ANSWER)
    assert_close(found.token_attr, clean.token_attr)
    assert len(seen) == 2  # all at once, padded, and a row to check that by


@pytest.mark.parametrize("wrong", ["caches", "pads"])
def test_a_model_for_which_that_is_not_exact_goes_without(wrong):
    class Off(type(gpt2())):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, use_cache=None):
            if wrong == "pads" and attention_mask is not None:
                attention_mask = position_ids = None
            out = super().forward(
                input_ids, attention_mask=attention_mask, position_ids=position_ids, cache=cache, use_cache=use_cache
            )
            out.logits = out.logits.flip(-1) if wrong == "caches" and cache is not None else out.logits
            return out

    model, right = gpt2(), gpt2()
    model.__class__ = Off
    begin = LONG if wrong == "caches" else ""
    given = TextTemplateInput(begin + "{} {} on {}", ["cat", "sat", "the mat"], ["dog", "ran in the park", "it"])
    found = LLMAttribution(FeatureAblation(model), tokenizer()).attribute(given, ANSWER)
    clean = LLMAttribution(FeatureAblation(right), tokenizer()).attribute(given, ANSWER, use_cached_outputs=False)
    assert_close(found.token_attr, clean.token_attr, atol=1e-5, rtol=1e-5)


def test_token_by_token_is_the_same_for_a_causal_model():
    attribution = LLMAttribution(FeatureAblation(llama()), tokenizer())
    once = attribution.attribute(template(ours), ANSWER)
    apart = attribution.attribute(template(ours), ANSWER, forward_in_tokens=True)
    assert_close(apart.token_attr, once.token_attr, atol=1e-5, rtol=1e-5)


def test_a_model_of_ones_own_needs_no_more_than_ids():
    model = Plain().eval()
    results = LLMAttribution(FeatureAblation(model), tokenizer()).attribute([tokens(ours, p) for p in PROMPTS], ANSWER)
    gradients = LLMGradientAttribution(LayerGradientXActivation(model, model.embedding), tokenizer())
    slopes = gradients.attribute([tokens(ours, p) for p in PROMPTS], ANSWER)
    for prompt, result, slope in zip(PROMPTS, results, slopes, strict=True):
        clean = one_by_one(model, ids(prompt), ids(ANSWER))
        gone = one_by_one(model, [0, *ids(prompt)[1:]], ids(ANSWER))
        assert_close(result.token_attr[:, 0], clean - gone, atol=1e-5, rtol=1e-5)
        alone = gradients.attribute(tokens(ours, prompt), ANSWER)
        assert_close(slope.token_attr, alone.token_attr, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype, near", [(torch.float16, 0.1), (torch.bfloat16, 0.5)], ids=["float16", "bfloat16"])
def test_half_precision_is_near(dtype, near):
    exact, rough = llama(), llama(dtype)
    given = [tokens(ours, p) for p in PROMPTS]
    for attribution in (
        lambda model: LLMAttribution(FeatureAblation(model), tokenizer()),
        lambda model: LLMGradientAttribution(
            LayerGradientXActivation(model, model.get_input_embeddings()), tokenizer()
        ),
    ):
        both = [attribution(m).attribute(given, ANSWER) for m in (exact, rough)]
        for a, b in zip(*both, strict=True):
            assert b.token_attr.dtype == torch.float32
            assert (a.token_attr - b.token_attr).norm() < near * a.token_attr.norm()


def test_an_answer_is_generated_where_none_is_given():
    model = gpt2()
    made = {"max_new_tokens": 4, "do_sample": False}
    results = [
        library.LLMAttribution(library.FeatureAblation(model), tokenizer()).attribute(
            tokens(library), gen_args=made, **UNCACHED
        )
        for library in (captum, ours)
    ]
    assert results[0].output_tokens == results[1].output_tokens
    assert_close(results[1].token_attr, results[0].token_attr, **NEAR)


def test_tokens_are_skipped_in_the_answer():
    attribution = LLMAttribution(FeatureAblation(gpt2()), tokenizer())
    for answer in ("<s> it is big", torch.tensor(ids("<s> it is big"))):
        for skipped in (["<s>"], [1]):
            result = attribution.attribute(tokens(ours), answer, skip_tokens=skipped)
            assert result.output_tokens == ANSWER.split()


def test_questions_are_told():
    heard = {captum: [], ours: []}
    for library, told in heard.items():
        attribution = library.LLMAttribution(library.FeatureAblation(gpt2()), tokenizer())
        attribution.attribute(
            tokens(library), ANSWER, **UNCACHED, _inspect_forward=lambda *of, told=told: told.append(of)
        )
    for (p, r, probs), (prompt, answer, numbers) in zip(heard[captum], heard[ours], strict=True):
        assert (p, r) == (prompt, answer)
        assert probs == pytest.approx(numbers, abs=1e-5)


def test_trials_are_averaged():
    attribution = LLMAttribution(Lime(gpt2()), tokenizer())
    apart = [attribution.attribute(tokens(ours), ANSWER, seed=s, n_samples=10).seq_attr for s in (5, 6)]
    both = attribution.attribute(tokens(ours), ANSWER, num_trials=2, seed=5, n_samples=10).seq_attr
    assert_close(both, sum(apart) / 2)
    assert not torch.allclose(*apart)


def test_pictures_and_what_else_a_model_takes():
    image = pytest.importorskip("PIL.Image").new("RGB", (4, 2), (200, 10, 30))
    mask, model = torch.tensor([[3, 3, 8, 8]] * 2), Sighted().eval()

    def processor(picture):
        import numpy as np

        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        words = torch.tensor([ids(PROMPT)])
        return {"input_ids": words, "pixel_values": pixels.float(), "token_type_ids": torch.ones_like(words)}

    attribution = LLMAttribution(FeatureAblation(model), tokenizer())
    given = ImageMaskInput(image, mask, processor_fn=processor)
    result = attribution.attribute([given, given], ANSWER)[1]
    falls = []
    for there in ([1, 1], [0, 1], [1, 0]):
        more = dict(given.to_model_input(torch.tensor([there])))
        length = len(ids(ANSWER)) - 1
        more["input_ids"] = torch.tensor([[*ids(PROMPT), *ids(ANSWER)[:-1]]])
        more["token_type_ids"] = torch.tensor([[1] * len(ids(PROMPT)) + [0] * length])
        logits = model(**more).logits[0, -length - 1 :].log_softmax(-1)
        falls.append(logits[torch.arange(length + 1), ids(ANSWER)].detach())
    assert_close(result.token_attr, torch.stack([falls[0] - falls[1], falls[0] - falls[2]], 1), **NEAR)
    assert result.input_tokens == ["image_feature_3", "image_feature_8"]
    assert result.plot_image_heatmap(target_token_pos=(0, 2)) is not None


GRADIENTS = {
    "integrated": ("LayerIntegratedGradients", {"n_steps": 9}),
    "activation": ("LayerGradientXActivation", {}),
    "shap": ("LayerGradientShap", {"n_samples": 1}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_agree_with_captum(case, name):
    method, options = GRADIENTS[case]
    model = MODELS[name]().double()
    local = {}
    if case == "shap":  # a walk on the spot, as captum's has no points between: tokens are there or not
        options, local = {**options, "baselines": torch.ones(1, 6, dtype=torch.long)}, {"multiply_by_inputs": False}
    results = []
    for library in (captum, ours):
        attribution = library.LLMGradientAttribution(
            getattr(library, method)(model, model.get_input_embeddings(), **local), tokenizer()
        )
        results.append(attribution.attribute(tokens(library, baselines=3), ANSWER, **options))
    theirs, mine = results
    assert_close(mine.token_attr.double(), theirs.token_attr.double(), **NEAR)
    assert_close(mine.seq_attr.double(), theirs.seq_attr.double(), **NEAR)
    assert (mine.input_tokens, mine.output_tokens) == (theirs.input_tokens, theirs.output_tokens)


def test_gradient_shap_is_integrated_gradients_at_random_points():
    model = llama()
    layer, given = model.get_input_embeddings(), tokens(ours, baselines=3)
    exact = LLMGradientAttribution(LayerIntegratedGradients(model, layer), tokenizer()).attribute(given, ANSWER)
    drawn = LLMGradientAttribution(LayerGradientShap(model, layer), tokenizer())
    found = drawn.attribute([given], ANSWER, n_samples=400, seed=0)[0]
    assert (found.token_attr - exact.token_attr).norm() < 0.1 * exact.token_attr.norm()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_prompts_together_are_those_one_by_one(name):
    model = MODELS[name]()
    method = LayerIntegratedGradients(model, model.get_input_embeddings())
    attribution = LLMGradientAttribution(method, tokenizer())
    given = [tokens(ours, p, skip_tokens=["the"] if k else None) for k, p in enumerate(PROMPTS)]
    answers = ["it is big", "so", "so red"]
    for one, prompt, answer in zip(attribution.attribute(given, answers), given, answers, strict=True):
        alone = attribution.attribute(prompt, answer)
        assert_close(one.token_attr, alone.token_attr, atol=1e-4, rtol=1e-4)
        assert one.input_tokens == alone.input_tokens


def test_integrated_gradients_add_up_to_the_answers_rise():
    model = llama()
    attribution = LLMGradientAttribution(LayerIntegratedGradients(model, model.get_input_embeddings()), tokenizer())
    result = attribution.attribute(tokens(ours, baselines=3), ANSWER, n_steps=200)
    rise = one_by_one(model, ids(PROMPT), ids(ANSWER)) - one_by_one(model, [3] * 6, ids(ANSWER))
    assert_close(result.token_attr.sum(1), rise, atol=1e-2, rtol=1e-2)


def test_the_model_and_the_generators_are_as_before():
    model = gpt2()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    method = FeatureAblation(model)
    LLMAttribution(method, tokenizer()).attribute(tokens(ours), gen_args={"max_new_tokens": 2, "do_sample": True})
    layer = LayerIntegratedGradients(model, model.get_input_embeddings())
    LLMGradientAttribution(layer, tokenizer()).attribute(tokens(ours), ANSWER)
    assert torch.equal(torch.get_rng_state(), state)
    assert method.forward_func is model
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match="train mode"):
        LLMAttribution(FeatureAblation(model.train()), tokenizer()).attribute(tokens(ours), ANSWER)


def test_errors_say_how_to_mend():
    model, words = gpt2(), tokenizer()
    attribution = LLMAttribution(FeatureAblation(model), words)
    with pytest.raises(TypeError, match="attr_method must be one of .*FeatureAblation"):
        LLMAttribution(captum.FeatureAblation(model), words)
    with pytest.raises(ValueError, match="nothing is left of the prompt"):
        LLMAttribution(ShapleyValues(model), words).attribute(ours.TextTemplateInput("{} {}", ["the", "cat"]), ANSWER)
    with pytest.raises(TypeError, match="made with the language model itself"):
        LLMAttribution(FeatureAblation(lambda ids: model(ids).logits), words)
    with pytest.raises(ValueError, match="attr_target must be"):
        LLMAttribution(FeatureAblation(model), words, "logit")
    with pytest.raises(TypeError, match="takes a prompt as .*TextTokenInput"):
        attribution.attribute(PROMPT, ANSWER)
    with pytest.raises(ValueError, match="one answer, or one for each of 2 prompts, got 1"):
        attribution.attribute([tokens(ours)] * 2, [ANSWER])
    with pytest.raises(ValueError, match="gen_args are for answers"):
        attribution.attribute(tokens(ours), ANSWER, gen_args={"max_new_tokens": 2})
    with pytest.raises(ValueError, match="no tokens"):
        attribution.attribute(tokens(ours), "")
    with pytest.raises(TypeError, match="target must be a text"):
        attribution.attribute(tokens(ours), 3)
    with pytest.raises(ValueError, match="has no generate"):
        LLMAttribution(FeatureAblation(Plain().eval()), words).attribute(tokens(ours))
    with pytest.raises(RuntimeError, match=r"logits \[N, L, V\]"):
        LLMAttribution(FeatureAblation(_Classifier()), words).attribute(_Ids(), ANSWER)
    with pytest.raises(ValueError, match="return_intervals has no place"):
        LLMAttribution(ShapleyValueSampling(model), words).attribute(tokens(ours), ANSWER, return_intervals=True)
    with pytest.raises(NotImplementedError):
        attribution.attribute_future()


def test_padding_is_checked_where_it_begins():
    class Blind(Plain):  # takes padding for words
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids)

    model = Blind().eval()
    prompts = [[2, 3, k] for k in range(6)] + [[2, 3, 4, 5], [2, 3, 4, 5, 6, 7]]  # the first batch is even
    asked = [{"input_ids": torch.tensor([p])} for p in prompts]
    reader = Continuations(model, torch.device("cpu"), pace=Pace(limit=4))
    found = reader.log_probs(asked, [torch.tensor([8, 9])] * 8)
    assert_close(found, torch.stack([one_by_one(model, p, [8, 9]) for p in prompts]), atol=1e-5, rtol=1e-5)
    assert not reader.pads


@pytest.mark.gpu
def test_answers_on_a_gpu_are_those_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for make in (
        lambda model: LLMAttribution(ShapleyValues(model), tokenizer()),
        lambda model: LLMGradientAttribution(
            LayerIntegratedGradients(model, model.get_input_embeddings()), tokenizer()
        ),
        lambda model: LLMGradientAttribution(
            LayerGradientXActivation(model, model.get_input_embeddings()), tokenizer()
        ),
    ):
        here, there = (make(llama().to(device)).attribute([tokens(ours), tokens(ours, "a dog")], ANSWER)
                       for device in ("cpu", "cuda"))  # fmt: skip
        for a, b in zip(here, there, strict=True):
            assert b.token_attr.device.type == "cuda"
            assert_close(b.token_attr.cpu(), a.token_attr, **NEAR)


class _Classifier(Plain):
    """No language model: one answer for all tokens."""

    def forward(self, input_ids):
        return super().forward(input_ids).mean(1)


class _Ids(InterpretableInput):
    """Of one's own: what it makes is no prompt of a language model, but anything that its model takes."""

    values, n_itp_features = ["all"], 1

    def to_tensor(self):
        return torch.ones(1, 1)

    def to_model_input(self, perturbed_tensor=None):
        return {"input_ids": torch.tensor([[1, 2]])}


def test_prompts_that_differ_in_a_number_are_not_the_same():
    from robustx.attribution.text.language import Row

    ids, target = torch.tensor([[3, 1]]), torch.tensor([4])
    one, again, other = (Row({"input_ids": ids, "scale": scale}, target) for scale in (1.0, 1.0, 3.0))
    assert one.key == again.key != other.key
    assert one.key != Row({"input_ids": ids}, target).key != Row({"input_ids": ids}, torch.tensor([5])).key
