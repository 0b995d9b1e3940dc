"""Language models, as log probabilities of given tokens after given prompts."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...engine.files import digest
from ...engine.memory import Pace, unweighed
from ...engine.probe import ModelError
from .inputs import Prompt

SAVED = 0.25  # of all tokens: from there on it pays to compute once what prompts have in common
PLAIN = {"input_ids", "attention_mask"}


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt and the tokens [T] that are to follow it.

    >>> import torch
    >>> row = Row({"input_ids": torch.tensor([[3, 1]])}, torch.tensor([4, 5]))
    >>> row.tokens  # what the model reads; nothing follows the last one
    [3, 1, 4]
    >>> [one.tokens for one in row.split()]
    [[3, 1], [3, 1, 4]]
    """

    prompt: Prompt
    target: Tensor

    @cached_property
    def tokens(self) -> list[int]:
        """The prompt and the target, but for its last token."""
        return [*self.prompt["input_ids"][0].tolist(), *self.target[:-1].tolist()]

    @cached_property
    def key(self) -> str:
        """The same for the same prompt and target alone."""
        return digest(sorted(self.prompt.items()), self.target)

    @cached_property
    def plain(self) -> bool:
        """Whether it is of tokens alone, all of which are read."""
        mask = self.prompt.get("attention_mask")
        return set(self.prompt) <= PLAIN and (mask is None or bool(mask.all()))

    @property
    def kind(self) -> tuple[Any, ...]:
        """Rows of one kind can go through the model together, if they are as long or can be padded."""
        further = {k: v for k, v in self.prompt.items() if k not in PLAIN}
        shapes = ((k, v.shape[1:] if isinstance(v, Tensor) else repr(v)) for k, v in sorted(further.items()))
        return (self.plain, *shapes, 0 if self.plain else len(self.tokens))

    def split(self) -> "list[Row]":
        """The same, token by token: each after the prompt and those before it."""
        return [Row(self._after(t), self.target[t : t + 1]) for t in range(len(self.target))]

    def _after(self, t: int) -> Prompt:
        if not t:
            return self.prompt
        length = self.prompt["input_ids"].shape[1]
        return {k: _longer(k, v, length, self.target[:t]) for k, v in self.prompt.items()}


def _longer(name: str, v: Any, length: int, more: Tensor) -> Any:
    """What a model takes of a prompt of that length, with more tokens behind it: read, and of text (type 0)."""
    if not isinstance(v, Tensor) or v.shape != (1, length) or v.is_floating_point():
        return v
    made = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    if name == "position_ids":
        made[name] = v[0, -1].to(more) + 1 + torch.arange(len(more), device=more.device)
    return torch.cat([v, made.get(name, torch.zeros_like(more)).to(v)[None]], 1)


@dataclass(eq=False)
class Continuations:
    """How likely a causal language model finds given tokens after given prompts.

    All tokens of a target come from one pass (a causal model has no way to look ahead), many prompts go through the
    model at once, padded on the left, and none of them twice. What all prompts of a batch begin with is computed once
    and kept as keys and values where that saves a quarter of the tokens.

    Padding, and keys and values that are kept, are exact for most models and not for all. So the first batch that makes
    use of either is checked against its shortest row alone, and a model that fails goes without.

    Args:
        model: takes ``input_ids`` by keyword, and gives ``logits`` [N, L, V] (or a tensor, or a tuple that begins with
            one); padding needs ``attention_mask``, as of the models of transformers.
        caches: False keeps no keys and values.
        apart: ask for each token of a target by itself.
        pace: the batching rule.

    >>> import torch
    >>> class Bigrams(torch.nn.Embedding):
    ...     def forward(self, input_ids):
    ...         return super().forward(input_ids)
    >>> model, device = Bigrams(5, 5), torch.device("cpu")
    >>> prompts = [{"input_ids": torch.tensor([ids])} for ids in ([0, 1, 2], [3, 2])]
    >>> found = Continuations(model, device).log_probs(prompts, [torch.tensor([4, 1]), torch.tensor([4])])
    >>> expected = model.weight[2].log_softmax(0)[4]  # what comes before the last token does not matter
    >>> torch.allclose(found[:, 0], expected), found[1, 1].item()
    (True, 0.0)
    """

    model: Callable[..., Any]
    device: torch.device
    caches: bool = True
    apart: bool = False
    pace: Pace = field(default_factory=Pace)
    pads: bool = True
    checked: dict[tuple[bool, bool], int] = field(default_factory=dict)  # up to how many tokens caches, pads are exact
    known: dict[str, Tensor] = field(default_factory=dict)  # what was asked already
    eps: float = 0.0  # of the model's numbers

    def __post_init__(self) -> None:
        self.pads = self.pads and "attention_mask" in self.takes
        self.caches = self.caches and {"attention_mask", "use_cache", self._cache} <= self.takes

    @cached_property
    def takes(self) -> set[str]:
        """The names of the model's arguments; of what an adapter wraps, as it hands on all that it is given."""
        wrapped = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return set(signature(wrapped.forward if isinstance(wrapped, nn.Module) else wrapped).parameters)

    @property
    def _cache(self) -> str:
        return "cache" if "cache" in self.takes else "past_key_values"  # as transformers called it until 5.2x

    @cached_property
    def _hidden(self) -> int:
        """Bytes of a token between the layers, or a guess."""
        layer = getattr(self.model, "get_input_embeddings", lambda: None)()
        weight = getattr(layer, "weight", None)
        return weight.shape[1] * weight.element_size() if isinstance(weight, Tensor) else 1 << 12

    def log_probs(self, prompts: Sequence[Prompt], targets: Sequence[Tensor]) -> Tensor:
        """Log probabilities of each target's tokens [N, T], zero behind its last one; in float32 at least."""
        rows = [Row(p, t) for p, t in zip(prompts, targets, strict=True)]
        parts = [row.split() if self.apart else [row] for row in rows]
        fresh = {part.key: part for each in parts for part in each if part.key not in self.known}
        kinds: dict[Any, list[Row]] = {}
        for row in fresh.values():
            kinds.setdefault(row.kind, []).append(row)
        with torch.no_grad(), unweighed():
            for alike in kinds.values():
                self._ask(sorted(alike, key=lambda row: len(row.tokens)))
        found = [torch.cat([self.known[part.key] for part in each]) for each in parts]
        return pad_sequence(found, batch_first=True) if found else torch.zeros(0, 0)

    def _ask(self, rows: list[Row]) -> None:
        """Answers rows of one kind, the shortest first."""
        uneven = len(rows[0].tokens) < len(rows[-1].tokens)
        if uneven and not self.pads:
            for length in sorted({len(row.tokens) for row in rows}):
                self._ask([row for row in rows if len(row.tokens) == length])
            return
        past, length = self._begun(rows) if self.caches and rows[0].plain else (None, 0)
        longest = len(rows[-1].tokens)

        def work(part: slice) -> list[Tensor]:
            found = self.together(rows[part], past=past, begun=length).cpu()
            return [v[: len(row.target)] for v, row in zip(found, rows[part], strict=True)]

        size = (longest - length) * self._hidden
        for part, values in self.pace.batches(len(rows), self.device, work, (longest, length), size):
            some = rows[part]
            tricks = length > 0, len(some[0].tokens) < len(some[-1].tokens)
            if any(tricks) and self.checked.get(tricks, 0) < longest:
                if not self._close(values[0], self.together(some[:1]).cpu()[0]):
                    self.caches, self.pads = False, self.pads and length > 0
                    return self._ask(rows)
                self.checked[tricks] = longest
            self.known.update((row.key, v) for row, v in zip(some, values, strict=True))

    def _begun(self, rows: list[Row]) -> tuple[Any, int]:
        """Keys and values of what all rows begin with, and how many tokens that is; nothing where it does not pay."""
        every = [row.tokens for row in rows]
        first, last = min(every), max(every)  # what these two have in common, all have
        alike = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(first, last, strict=False)))
        length = min(alike, *(len(row.tokens) - len(row.target) for row in rows))
        if length <= 0 or (len(rows) - 1) * length < SAVED * sum(len(row.tokens) for row in rows):
            return None, 0
        few = {"logits_to_keep": 1} if "logits_to_keep" in self.takes else {}
        out = self.model(input_ids=torch.tensor([first[:length]], device=self.device), use_cache=True, **few)
        past: Any = getattr(out, self._cache, None)
        try:
            deepcopy(past).batch_repeat_interleave(1)
        except AttributeError:  # what this model keeps, or a layer of it, is of one row only
            self.caches = False
            return None, 0
        return past, length

    def together(self, rows: Sequence[Row], longest: int = 0, past: Any = None, begun: int = 0) -> Tensor:
        """Log probabilities of each row's target [n, T], zero behind its last token: one call of the model.

        Args:
            longest: pad to at least so many tokens.
            past: keys and values of the first ``begun`` tokens, which all rows have in common.
        """
        n, device = len(rows), self.device
        most = max(len(row.target) for row in rows)
        given = [row.tokens[begun:] for row in rows]
        longest = max(longest - begun, *map(len, given))
        tokens = torch.tensor([[0] * (longest - len(t)) + t for t in given], device=device)
        feed: dict[str, Any] = {"input_ids": tokens}
        if "attention_mask" in self.takes:
            feed["attention_mask"] = self._mask(rows, longest, begun)
            if min(map(len, given)) < longest and "position_ids" in self.takes:
                feed["position_ids"] = (feed["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, begun:]
        if "logits_to_keep" in self.takes:
            feed["logits_to_keep"] = most
        if "use_cache" in self.takes:
            feed["use_cache"] = past is not None
        if past is not None:
            feed[self._cache] = deepcopy(past)  # a model writes into it
            feed[self._cache].batch_repeat_interleave(n)
        return self._read(self.model(**feed, **self._further(rows)), rows, most)

    def _mask(self, rows: Sequence[Row], longest: int, begun: int) -> Tensor:
        """What of ``begun`` common tokens and ``longest`` further ones is read [n, begun + longest]."""
        mask = torch.ones(len(rows), begun + longest, dtype=torch.long)
        for line, row in zip(mask, rows, strict=True):
            line[begun : 2 * begun + longest - len(row.tokens)] = 0
            if not row.plain and "attention_mask" in row.prompt:  # then all rows are as long
                given = row.prompt["attention_mask"][0]
                line[: len(given)] = given.to(line)
        return mask.to(self.device)

    def _further(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What else the model takes, for all rows: tensors one behind the other."""
        names = [k for k in rows[0].prompt if k not in PLAIN]
        each = []
        for row in rows:
            length = row.prompt["input_ids"].shape[1]
            each.append({k: _longer(k, row.prompt[k], length, row.target[:-1]) for k in names})
        return {
            k: torch.cat([one[k] for one in each]).to(self.device) if isinstance(each[0][k], Tensor) else each[0][k]
            for k in names
        }

    def _read(self, out: Any, rows: Sequence[Row], most: int) -> Tensor:
        logits = getattr(out, "logits", out[0] if isinstance(out, tuple) else out)
        if isinstance(out, Mapping) and "logits" in out:
            logits = out["logits"]
        if not isinstance(logits, Tensor) or logits.ndim not in (3, 4) or len(logits) != len(rows):
            told = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(f"a language model must give logits [N, L, V] for {len(rows)} rows, got {told}")
        self.eps = torch.finfo(logits.dtype).eps
        logits = logits[:, 0] if logits.ndim == 4 else logits  # heads for several tokens ahead; the first is the next
        logits = logits[:, -most:]
        many = torch.tensor([len(row.target) for row in rows], device=logits.device)
        place = torch.arange(most, device=logits.device)
        # the last column of every row is its last token; rows with fewer tokens begin later
        wanted = pad_sequence([row.target.flip(0) for row in rows], batch_first=True).flip(1).to(logits.device)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        found = logits.gather(-1, wanted[..., None])[..., 0] - logits.logsumexp(-1)  # [n, most]
        there = place < many[:, None]
        return torch.where(there, found.gather(1, (place + most - many[:, None]).clamp(max=most - 1)), 0)

    def _close(self, among: Tensor, alone: Tensor) -> bool:
        """Whether a row's numbers are to rounding those that it has alone."""
        return bool(((among - alone).abs() <= 0.3 * self.eps**0.5 * alone.abs().clamp(min=1)).all())


__all__ = ["Continuations", "Row"]
