"""Attribution of a language model's answer to the parts of its prompt."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...engine.checks import ArgumentError, ArgumentTypeError, whole
from ...engine.guard import untouched
from ...engine.scores import Each
from ...engine.sites import Layer
from ..ablation import FeatureAblation
from ..base import Attribution
from ..gradient import LayerGradientXActivation
from ..noise import GradientShap, LayerGradientShap
from ..path import LayerIntegratedGradients
from ..shapley import BanzhafValues, OwenValues, ShapleyValues, ShapleyValueSampling
from ..surrogate import KernelShap, Lime
from .inputs import (
    ImageMaskInput,
    InterpretableInput,
    TextTemplateInput,
    TextTokenInput,
    Tokenizer,
    prompt_of,
    token_ids,
)
from .language import Continuations, Row
from .result import LLMAttributionResult

DEFAULT_GEN_ARGS: dict[str, Any] = {"max_new_tokens": 25, "do_sample": False, "temperature": None, "top_p": None}

Inspect = Callable[[str, str, list[float]], None]
"""(prompt, answer, [how likely the answer is, and each of its tokens]), for each question to the model."""

Answer = str | Tensor | None


class Reader(Protocol):
    """Whoever knows log probabilities of given tokens [N, T] after given prompts, zero behind each one's last."""

    def log_probs(self, prompts: Sequence[Any], targets: Sequence[Tensor]) -> Tensor: ...


@dataclass(eq=False)
class Asked:
    """The log probabilities of answers, and of each of their tokens [N, 1 + T], by which features are there [N, F].

    A model for the methods of this library. ``which`` [N] says which of the prompts each row is of.
    """

    model: Any  # the guard looks for it here
    reader: Reader
    prompts: Sequence[InterpretableInput]
    targets: Sequence[Tensor]
    formed: Callable[[Any], Any]
    scale: Literal["log_prob", "prob"]
    told: Callable[[Any, Tensor, list[float]], None] | None

    def __call__(self, there: Tensor, which: Tensor) -> Tensor:
        asked = which.tolist()
        prompts = []
        for row, i in zip(there.cpu(), asked, strict=True):
            prompt = self.prompts[i]
            prompts.append(self.formed(prompt.to_model_input(row[None, : prompt.n_itp_features])))
        targets = [self.targets[i] for i in asked]
        found = self.reader.log_probs(prompts, targets)
        found = pad(found, (0, max(map(len, self.targets)) - found.shape[1]))
        out = torch.cat([found.sum(1, keepdim=True), found], 1)
        for prompt, target, line in zip(prompts, targets, out, strict=True) if self.told else ():
            assert self.told is not None
            self.told(prompt, target, line[: 1 + len(target)].exp().tolist())
        return out if self.scale == "log_prob" else out.exp()


class BaseLLMAttribution(Attribution):
    """What attributions of language models share.

    Args:
        attr_method: a method of this library, made with the model. It is not changed.
        tokenizer: the model's.

    Raises:
        TypeError: the method is none of :attr:`SUPPORTED_METHODS`.
    """

    SUPPORTED_METHODS: ClassVar[tuple[type[Attribution], ...]]
    SUPPORTED_INPUTS: ClassVar[tuple[type[InterpretableInput], ...]]

    def __init__(self, attr_method: Attribution, tokenizer: Tokenizer) -> None:
        if not isinstance(attr_method, self.SUPPORTED_METHODS):
            names = ", ".join(c.__name__ for c in self.SUPPORTED_METHODS)
            raise ArgumentTypeError(
                f"attr_method must be one of robustx.attribution's {names} for {type(self).__name__}, "
                f"got {type(attr_method).__module__}.{type(attr_method).__name__}"
            )
        super().__init__(attr_method.forward_func)
        model: Any = attr_method.forward_func
        if not hasattr(model, "device") and not isinstance(model, nn.Module):
            raise ArgumentTypeError(
                "attr_method must be made with the language model itself, such as FeatureAblation(model), got one of a "
                f"{type(model).__name__}"
            )
        self.attr_method: Any = copy(attr_method)
        self.model, self.tokenizer = model, tokenizer
        self.device = torch.device((model if hasattr(model, "device") else next(model.parameters())).device)

    @abstractmethod
    def attribute(self, inp: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # Captum's name
        """Attributions of the answer to the features of the prompt, or of each of several."""

    def _prompts(self, inp: Any) -> list[InterpretableInput]:
        prompts = list(inp) if isinstance(inp, list | tuple) else [inp]
        for prompt in prompts:
            if not isinstance(prompt, self.SUPPORTED_INPUTS):
                names = ", ".join(c.__name__ for c in self.SUPPORTED_INPUTS)
                raise ArgumentTypeError(
                    f"{type(self).__name__} takes a prompt as {names}, or a list of them, got {type(prompt).__name__}"
                )
        return prompts

    def _targets(
        self, prompts: Sequence[InterpretableInput], target: Any, gen_args: dict[str, Any] | None, skip_tokens: Any
    ) -> list[Tensor]:
        """The tokens of each prompt's answer."""
        answers = list(target) if isinstance(target, list | tuple) else [target] * len(prompts)
        if len(answers) != len(prompts):
            raise ArgumentError(
                f"target must be one answer, or one for each of {len(prompts)} prompts, got {len(answers)}"
            )
        if gen_args is not None and all(a is not None for a in answers):
            raise ArgumentError("gen_args are for answers that the model makes; leave them out, or target")
        skipped = torch.tensor(token_ids(self.tokenizer, skip_tokens, "skip_tokens"), dtype=torch.long)
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens = self._target(prompt, answer, gen_args or DEFAULT_GEN_ARGS)
            if answer is not None:
                tokens = tokens[~torch.isin(tokens, skipped)]
            if not len(tokens):
                raise ArgumentError(
                    f"the answer has no tokens: target is {answer!r}; give a text, or more max_new_tokens"
                )
            found.append(tokens)
        return found

    def _target(self, prompt: InterpretableInput, answer: Answer, gen_args: dict[str, Any]) -> Tensor:
        if answer is None:
            return self._generated(prompt, gen_args)
        if isinstance(answer, str):
            return torch.tensor(self.tokenizer.encode(answer, add_special_tokens=False), dtype=torch.long)
        if isinstance(answer, Tensor) and answer.ndim == 1 and not answer.is_floating_point():
            return answer.detach().cpu().long()
        told = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ArgumentTypeError(f"target must be a text, token ids [T] or None, got {told}")

    def _generated(self, prompt: InterpretableInput, gen_args: dict[str, Any]) -> Tensor:
        if not callable(getattr(self.model, "generate", None)):
            raise ArgumentError(f"{type(self.model).__name__} has no generate: give the answer, target='...'")
        given = dict(prompt_of(prompt.to_model_input(), self.tokenizer))
        given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
        given = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in given.items()}
        with untouched(self.model):
            made: Tensor = self.model.generate(**given, **gen_args)
        return made[0, given["input_ids"].shape[1] :].cpu()

    def _result(self, prompt: InterpretableInput, target: Tensor, found: Tensor, probs: Tensor) -> LLMAttributionResult:
        """Of attributions of the whole answer and of its tokens [1 + T, V]."""
        return LLMAttributionResult(
            input_tokens=prompt.values,
            output_tokens=pretty_tokens(target, self.tokenizer),
            seq_attr=found[0].to(self.device),
            token_attr=found[1:].to(self.device),
            output_probs=probs[: len(target)].to(self.device),
            inp=prompt,
        )


def _attributions_alone(kwargs: dict[str, Any]) -> None:
    """Raises ArgumentError if a method is asked to return more than attributions."""
    for name in ("return_intervals", "return_convergence_delta"):
        if kwargs.get(name):
            raise ArgumentError(f"{name} has no place in a result for language models; leave it out")


def pretty_tokens(ids: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Tokens as they read, without the spaces around them; a part of a character as the tokenizer calls it."""
    found = [tokenizer.decode([i]) for i in ids.tolist()]
    names = tokenizer.convert_ids_to_tokens(ids.tolist())
    return [n if "\ufffd" in t else t.replace("\n", "\\n").strip() for t, n in zip(found, names, strict=True)]


class LLMAttribution(BaseLLMAttribution):
    """What an answer owes to the parts of a prompt, by taking parts away: its log probability is the score.

    Miglani, Yang, Markosyan, Garcia-Olano, Kokhlikyan (2023), arXiv 2312.05491. All tokens of an answer are scored in
    one pass, and all perturbed prompts go through the model together.

    Args:
        attr_method: ``FeatureAblation``, ``ShapleyValueSampling``, ``ShapleyValues``, ``OwenValues``,
            ``BanzhafValues``, ``Lime`` or ``KernelShap``, made with a causal language model of the kind of
            transformers' (see :class:`robustx.attribution.text.Continuations`).
        tokenizer: the model's.
        attr_target: ``"log_prob"`` or ``"prob"``, of the answer and of each of its tokens.

    Raises:
        TypeError, ValueError: the method, or ``attr_target``, is none of these.

    >>> import torch
    >>> class Letters:
    ...     def encode(self, text, return_tensors=None, **_):
    ...         ids = [ord(c) for c in text]
    ...         return torch.tensor([ids]) if return_tensors else ids
    ...
    ...     def decode(self, ids, **_):
    ...         return "".join(map(chr, ids))
    ...
    ...     def convert_ids_to_tokens(self, ids):
    ...         return [chr(i) for i in ids]
    >>> class Bigrams(torch.nn.Sequential):
    ...     def forward(self, input_ids):
    ...         return super().forward(input_ids)
    >>> model = Bigrams(torch.nn.Embedding(128, 8), torch.nn.Linear(8, 128))
    >>> from robustx.attribution import TextTokenInput
    >>> result = LLMAttribution(FeatureAblation(model), Letters()).attribute(TextTokenInput("abc", Letters()), "de")
    >>> (result.token_attr != 0).tolist()  # of the prompt, such a model looks at the last letter alone, for the first
    [[False, False, True], [False, False, False]]
    """

    SUPPORTED_METHODS = (
        FeatureAblation,
        ShapleyValueSampling,
        ShapleyValues,
        OwenValues,
        BanzhafValues,
        Lime,
        KernelShap,
    )
    SUPPORTED_INPUTS = (TextTemplateInput, TextTokenInput, ImageMaskInput, InterpretableInput)

    def __init__(
        self,
        attr_method: Attribution,
        tokenizer: Tokenizer,
        attr_target: Literal["log_prob", "prob"] = "log_prob",
    ) -> None:
        super().__init__(attr_method, tokenizer)
        if attr_target not in ("log_prob", "prob"):
            raise ArgumentError(f"attr_target must be 'log_prob' or 'prob', got {attr_target!r}")
        self.attr_target = attr_target

    def attribute(  # type: ignore[override]  # Captum's arguments
        self,
        inp: InterpretableInput | Sequence[InterpretableInput],
        target: Answer | Sequence[Answer] = None,
        num_trials: int = 1,
        gen_args: dict[str, Any] | None = None,
        use_cached_outputs: bool = True,
        _inspect_forward: Inspect | None = None,
        forward_in_tokens: bool = False,
        *,
        skip_tokens: Sequence[int] | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """A :class:`LLMAttributionResult`; for a list of prompts a list of them.

        Args:
            inp: the prompt, or several: they go through the model together.
            target: the answer, as a text or token ids [T]; None: what the model makes of the whole prompt. Of several
                prompts one for all, or a list.
            num_trials: how often to ask, for methods that draw; the result is the mean. With ``seed=`` each trial has
                the next one.
            gen_args: for ``model.generate``, 25 tokens without sampling if not given.
            use_cached_outputs: compute once what perturbed prompts begin with, where that pays.
            _inspect_forward: called with each question and answer.
            forward_in_tokens: ask for each token of the answer in a row of its own: the same for causal models, and of
                use only for those whose prompts look ahead.
            skip_tokens: ids or tokens that are left out of a target that is given.
            kwargs: for the method's ``attribute``.

        Raises:
            TypeError, ValueError: a prompt or answer is of no form that is known, or an answer is empty.
        """
        _attributions_alone(kwargs)
        prompts = self._prompts(inp)
        targets = self._targets(prompts, target, gen_args, skip_tokens)
        told = None if _inspect_forward is None else self._telling(_inspect_forward)
        reader = self._reader(use_cached_outputs, forward_in_tokens)
        asked = Asked(self.model, reader, prompts, targets, self._formed, self.attr_target, told)
        trials = whole("num_trials", num_trials, 1)
        method = copy(self.attr_method)
        method.forward_func = asked
        found: dict[int, Tensor] = {}
        for which in self._groups(prompts):
            there = self._there([prompts[i] for i in which])
            total: Any = 0.0
            for trial in range(trials):
                seeded = {"seed": kwargs["seed"] + trial} if kwargs.get("seed") is not None else {}
                total = total + method.attribute(
                    there, target=Each(), additional_forward_args=(torch.tensor(which),), **{**kwargs, **seeded}
                )
            found.update(zip(which, total / trials, strict=True))
        with untouched(self.model):
            whole_prompts = [self._formed(p.to_model_input()) for p in prompts]
            probs = reader.log_probs(whole_prompts, targets).exp() if prompts else ()
        results = [
            self._result(p, t, p.format_attr(found[i][: 1 + len(t), : p.n_itp_features]), probs[i])
            for i, (p, t) in enumerate(zip(prompts, targets, strict=True))
        ]
        return results if isinstance(inp, list | tuple) else results[0]

    def _groups(self, prompts: Sequence[InterpretableInput]) -> Iterator[list[int]]:
        """Prompts that are asked about together: for ablation all, else those with equally many features.

        A feature more, that no prompt has, would change what is drawn, and double the sets of all.
        """
        many = [0 if isinstance(self.attr_method, FeatureAblation) else p.n_itp_features for p in prompts]
        for n in dict.fromkeys(many):
            yield [i for i, m in enumerate(many) if m == n]

    @staticmethod
    def _there(prompts: Sequence[InterpretableInput]) -> Tensor:
        """All features of all prompts, as they are there [B, F]."""
        rows = [p.to_tensor().float().reshape(-1) for p in prompts]
        longest = max(map(len, rows))
        return torch.stack([pad(row, (0, longest - len(row)), value=1.0) for row in rows])

    def _reader(self, caches: bool, apart: bool) -> Reader:
        return Continuations(self.model, self.device, caches=caches, apart=apart)

    def _formed(self, given: Any) -> Any:
        """A prompt as the reader takes it."""
        return prompt_of(given, self.tokenizer)

    def _telling(self, inspect: Inspect) -> Callable[[Any, Tensor, list[float]], None]:
        def told(prompt: Any, target: Tensor, probs: list[float]) -> None:
            asked = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt["input_ids"][0])
            inspect(asked, self.tokenizer.decode(target), probs)

        return told


@dataclass(eq=False)
class Answers:
    """The log probabilities of tokens of answers [N, T], by which tokens of the prompts are there [N, F]: one call.

    A model for methods at the embedding layer, with its graph.
    """

    model: Any
    reader: Continuations
    prompts: Sequence[TextTokenInput]
    targets: Sequence[Tensor]

    @property
    def longest(self) -> int:
        """Tokens of a row."""
        return max(p.inp_tensor.shape[1] + len(t) - 1 for p, t in zip(self.prompts, self.targets, strict=True))

    def __call__(self, there: Tensor, which: Tensor) -> Tensor:
        rows = []
        for row, i in zip(there.cpu(), which.tolist(), strict=True):
            prompt = self.prompts[i]
            rows.append(Row({"input_ids": prompt.to_model_input(row[None, : prompt.n_itp_features])}, self.targets[i]))
        found = self.reader.together(rows, self.longest)
        return pad(found, (0, max(map(len, self.targets)) - found.shape[1]))


@dataclass(eq=False)
class Embedded:
    """:class:`Answers` to a single prompt, by the embeddings of all its tokens [N, L, E]: what lies between two tokens
    can be asked about here, and nowhere else.
    """

    answers: Answers
    layer: Layer

    def embeddings(self, there: Tensor) -> Tensor:
        """Of the prompt when these tokens are there [N, F]."""
        with torch.no_grad(), self.layer.watch() as seen:
            self.answers(there, torch.zeros(len(there), dtype=torch.long))
        return seen.value[0]

    def __call__(self, embeddings: Tensor, which: Tensor) -> Tensor:
        everything = torch.ones(len(embeddings), self.answers.prompts[0].n_itp_features, device=embeddings.device)
        with self.layer.put((embeddings,)):
            return self.answers(everything, which)


class LLMGradientAttribution(BaseLLMAttribution):
    """What an answer owes to the tokens of a prompt, by gradients of its tokens' log probabilities at their embeddings.

    All tokens of an answer share their forward passes. A token's attribution is the sum over its embedding. The walks
    of ``LayerGradientShap`` lead through embeddings, from those of one of the ``baselines``.

    Args:
        attr_method: ``LayerIntegratedGradients``, ``LayerGradientXActivation`` or ``LayerGradientShap``, made with a
            causal language model and its embedding layer, such as ``model.get_input_embeddings()``.
        tokenizer: the model's.

    >>> import torch
    >>> class Letters:
    ...     def encode(self, text, return_tensors=None, **_):
    ...         ids = [ord(c) for c in text]
    ...         return torch.tensor([ids]) if return_tensors else ids
    ...
    ...     def decode(self, ids, **_):
    ...         return "".join(map(chr, ids))
    ...
    ...     def convert_ids_to_tokens(self, ids):
    ...         return [chr(i) for i in ids]
    >>> class Bigrams(torch.nn.Sequential):
    ...     def forward(self, input_ids):
    ...         return super().forward(input_ids)
    >>> model = Bigrams(torch.nn.Embedding(128, 8), torch.nn.Linear(8, 128))
    >>> from robustx.attribution import TextTokenInput
    >>> method = LayerIntegratedGradients(model, model[0])
    >>> result = LLMGradientAttribution(method, Letters()).attribute(TextTokenInput("abc", Letters()), "d")
    >>> (result.token_attr != 0).tolist()  # such a model looks at the last letter alone
    [[False, False, True]]
    """

    SUPPORTED_METHODS = (LayerIntegratedGradients, LayerGradientXActivation, LayerGradientShap)
    SUPPORTED_INPUTS = (TextTokenInput,)

    def attribute(  # type: ignore[override]  # Captum's arguments
        self,
        inp: TextTokenInput | Sequence[TextTokenInput],
        target: Answer | Sequence[Answer] = None,
        gen_args: dict[str, Any] | None = None,
        *,
        skip_tokens: Sequence[int] | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """A :class:`LLMAttributionResult`; for a list of prompts a list of them.

        Args:
            inp, target, gen_args, skip_tokens: see :class:`LLMAttribution`.
            kwargs: for the method's ``attribute``. ``baselines`` say which tokens are there [N, F]; none, if not given.
        """
        _attributions_alone(kwargs)
        prompts: list[Any] = self._prompts(inp)
        targets = self._targets(prompts, target, gen_args, skip_tokens)
        reader = Continuations(self.model, self.device)
        with untouched(self.model):
            probs = reader.log_probs([{"input_ids": p.inp_tensor} for p in prompts], targets).exp() if prompts else ()
        lengths = {p.inp_tensor.shape[1] + len(t) for p, t in zip(prompts, targets, strict=True)}
        alone = isinstance(self.attr_method, LayerGradientShap) or (len(lengths) > 1 and not reader.pads)
        groups = [[i] for i in range(len(prompts))] if alone else [list(range(len(prompts)))] * bool(prompts)
        results: list[Any] = []
        for which in groups:
            some, of = [prompts[i] for i in which], [targets[i] for i in which]
            answers = Answers(self.model, reader, some, of)
            for i, found in zip(which, self._at_embeddings(answers, kwargs), strict=True):
                both = torch.cat([found.sum(0, keepdim=True), found])
                results.append(self._result(prompts[i], targets[i], both, probs[i]))
        return results if isinstance(inp, list | tuple) else results[0]

    def _at_embeddings(self, answers: Answers, kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """Attributions of each answer's tokens to the tokens of its prompt [T, F]."""
        many = [p.n_itp_features for p in answers.prompts]
        there = torch.ones(len(many), max(many), dtype=torch.long, device=self.device)
        method, which = copy(self.attr_method), torch.arange(len(many), device=self.device)
        method.forward_func = answers
        if isinstance(method, LayerGradientShap):
            (layer,) = method._layers()
            begin = kwargs.get("baselines", torch.zeros_like(there))
            model = Embedded(answers, layer)
            with untouched(self.model):
                there, begin = model.embeddings(there), model.embeddings(begin)
            method, kwargs = GradientShap(model, method.multiplies_by_inputs), {**kwargs, "baselines": begin}
        found = method.attribute(there, target=Each(), additional_forward_args=(which,), **kwargs)
        for one, prompt, target in zip(found, answers.prompts, answers.targets, strict=True):
            length = prompt.inp_tensor.shape[1]
            first = answers.longest - (length + len(target) - 1)
            finer = torch.promote_types(one.dtype, torch.float32)
            tokens = one[: len(target), first : first + length].to(finer).sum(-1)
            yield tokens if prompt.itp_mask is None else tokens[:, prompt.itp_mask[0].to(tokens.device)]
