"""Language models that are asked over the network."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...engine.checks import ArgumentError, ArgumentTypeError, optional, whole
from ..base import Attribution
from .inputs import InterpretableInput, Tokenizer
from .llm import LLMAttribution, Reader


class RemoteLLMProvider(ABC):
    """A language model behind an address, which tells log probabilities."""

    api_url: str

    @abstractmethod
    def generate(self, prompt: str, **gen_args: Any) -> str:
        """What the model makes of a prompt."""

    @abstractmethod
    def get_logprobs(self, input_prompt: str, target_str: str, tokenizer: Tokenizer | None = None) -> list[float]:
        """The log probability of each token of a text behind a prompt."""


class VLLMProvider(RemoteLLMProvider):
    """A model behind a vLLM server, asked through its OpenAI-like door. Needs ``pip install 'robustx[llm]'``.

    The key is read from the environment, ``OPENAI_API_KEY``, if the server wants one.

    Args:
        api_url: where it is, such as ``"http://localhost:8000/v1"``.
        model_name: which model; None: the first that the server has.

    Raises:
        ImportError: the client is not installed.
        ValueError: there is no address, or no model.
        ConnectionError: there is no answer.
    """

    def __init__(self, api_url: str, model_name: str | None = None) -> None:
        if not api_url.strip():
            raise ArgumentError("api_url must say where the server is, such as 'http://localhost:8000/v1'")
        self._openai = optional("openai", "llm")
        self.api_url = api_url
        self.client: Any = self._openai.OpenAI(base_url=api_url, api_key=os.getenv("OPENAI_API_KEY", "EMPTY"))
        if model_name is None:
            models = self._asked(self.client.models.list).data
            if not models:
                raise ArgumentError(f"the server at {api_url} has no models; start one, or say which: model_name")
            model_name = str(models[0].id)
        self.model_name = model_name

    def generate(self, prompt: str, **gen_args: Any) -> str:
        """What the model makes of a prompt; ``gen_args`` are the server's, or ``max_new_tokens`` and ``do_sample``."""
        options = {k: v for k, v in gen_args.items() if v is not None}
        options.setdefault("max_tokens", options.pop("max_new_tokens", 25))
        if options.pop("do_sample", True) is False:
            options.setdefault("temperature", 0.0)
        return str(self._choice(prompt=prompt, **options).text)

    def get_logprobs(self, input_prompt: str, target_str: str, tokenizer: Tokenizer | None = None) -> list[float]:
        """The log probability of each token of ``target_str``; the server is given tokens, so that none merge.

        Raises:
            ValueError: there is no tokenizer, no target, or the answer does not tell what was asked.
        """
        if tokenizer is None:
            raise ArgumentError("tokenizer must be the model's, got None")
        target = list(tokenizer.encode(target_str, add_special_tokens=False))
        if not target:
            raise ArgumentError("target_str has no tokens")
        prompt = [*tokenizer.encode(input_prompt), *target]
        choice = self._choice(prompt=prompt, temperature=0.0, max_tokens=1, extra_body={"prompt_logprobs": 0})
        told = (getattr(choice, "prompt_logprobs", None) or [])[-len(target) :]
        if len(told) < len(target) or not all(told):
            raise ArgumentError(
                f"the server told log probabilities of {len(told)} of {len(target)} tokens of the target; "
                "it must be vLLM's, with prompt_logprobs"
            )
        return [self._of(token, each) for token, each in zip(target, told, strict=True)]

    @staticmethod
    def _of(token: int, told: dict[str, Any]) -> float:
        if str(token) not in told:
            raise ArgumentError(
                f"the server told of tokens {', '.join(told)} where {token} was asked; "
                "the tokenizer must be its model's"
            )
        return float(told[str(token)]["logprob"])

    def _choice(self, **request: Any) -> Any:
        answer = self._asked(lambda: self.client.completions.create(model=self.model_name, **request))
        if not getattr(answer, "choices", None):
            raise ArgumentError(f"the server at {self.api_url} answered without choices")
        return answer.choices[0]

    def _asked(self, question: Any) -> Any:
        try:
            return question()
        except self._openai.APIConnectionError as e:
            raise ConnectionError(f"no answer from {self.api_url}: {e}; is the server up?") from e


@dataclass(eq=False)
class _Provided:
    """Log probabilities from a provider; none is asked for twice."""

    provider: RemoteLLMProvider
    tokenizer: Tokenizer
    at_once: int
    known: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def log_probs(self, prompts: Sequence[str], targets: Sequence[Tensor]) -> Tensor:
        answers = [self.tokenizer.decode(t) for t in targets]
        asked = list(zip(prompts, answers, strict=True))
        fresh = {key: len(t) for key, t in zip(asked, targets, strict=True) if key not in self.known}
        with ThreadPoolExecutor(self.at_once) as pool:
            self.known.update(zip(fresh, pool.map(self._ask, fresh, fresh.values()), strict=True))
        return pad_sequence([self.known[key] for key in asked], batch_first=True)

    def _ask(self, key: tuple[str, str], tokens: int) -> Tensor:
        prompt, answer = key
        told = self.provider.get_logprobs(input_prompt=prompt, target_str=answer, tokenizer=self.tokenizer)
        if len(told) != tokens:
            raise ArgumentError(
                f"Number of token logprobs from provider ({len(told)}) does not match expected target token length "
                f"({tokens}); the tokenizer must be the model's"
            )
        return torch.tensor(told, dtype=torch.float32)


class _Placeholder:
    """Stands for a model that is elsewhere."""

    device = torch.device("cpu")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("the model is elsewhere; ask it through RemoteLLMAttribution")


class RemoteLLMAttribution(LLMAttribution):
    """:class:`LLMAttribution` of a model that is asked over the network.

    Args:
        attr_method: made with ``RemoteLLMAttribution.placeholder_model``.
        tokenizer: the model's.
        provider: knows the model's answers.
        attr_target: ``"log_prob"`` or ``"prob"``.
        concurrency: questions that are under way at once; more than one asks the provider from several threads.

    >>> import torch
    >>> from robustx.attribution import FeatureAblation, TextTemplateInput
    >>> class Letters:
    ...     def encode(self, text, **_):
    ...         return [ord(c) for c in text]
    ...
    ...     def decode(self, ids, **_):
    ...         return "".join(map(chr, ids))
    ...
    ...     convert_ids_to_tokens = staticmethod(lambda ids: list(map(chr, ids)))
    >>> class Likes(RemoteLLMProvider):
    ...     def generate(self, prompt, **_):
    ...         return "y"
    ...
    ...     def get_logprobs(self, input_prompt, target_str, tokenizer=None):
    ...         return [-1.0 if "sun" in input_prompt else -3.0 for _ in target_str]
    >>> method = FeatureAblation(RemoteLLMAttribution.placeholder_model)
    >>> prompt = TextTemplateInput("{} and {}", ["rain", "sun"])
    >>> RemoteLLMAttribution(method, Letters(), Likes()).attribute(prompt).seq_attr
    tensor([0., 2.])
    """

    placeholder_model: ClassVar[Any] = _Placeholder()

    def __init__(
        self,
        attr_method: Attribution,
        tokenizer: Tokenizer,
        provider: RemoteLLMProvider,
        attr_target: Literal["log_prob", "prob"] = "log_prob",
        *,
        concurrency: int = 1,
    ) -> None:
        super().__init__(attr_method, tokenizer, attr_target)
        if not callable(getattr(provider, "get_logprobs", None)):
            raise ArgumentTypeError(f"provider must be a RemoteLLMProvider, got {type(provider).__name__}")
        self.provider = provider
        self.concurrency = whole("concurrency", concurrency, 1)

    def _reader(self, caches: bool, apart: bool) -> Reader:
        return _Provided(self.provider, self.tokenizer, self.concurrency)

    def _formed(self, given: Any) -> str:
        return str(self.tokenizer.decode(given.flatten()) if isinstance(given, Tensor) else given)

    def _generated(self, prompt: InterpretableInput, gen_args: dict[str, Any]) -> Tensor:
        if not callable(getattr(self.provider, "generate", None)):
            raise ArgumentError("the provider has no generate: give the answer, target='...'")
        text = self.provider.generate(self._formed(prompt.to_model_input()), **gen_args)
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), dtype=torch.long)
