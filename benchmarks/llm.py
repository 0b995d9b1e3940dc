"""Attribution of language models in robustx and in Captum: the same answers, in how many calls, how much time?

    python benchmarks/llm.py [--rounds 5] [--width 128] [--layers 4] [--words 2000] [--device cpu] [--dtype float32]

A transformer of GPT-2's kind with random weights, and random words. The contestants take turns in one process. Each row
says how far the answers are apart (as a share of the largest number), the calls of the model and the tokens that went
through it (counted from outside), and the processor's time as a share of Captum's in the same round (median, quartiles;
on a GPU the processor waits for it). Captum is asked both ways: token by token, its default (without kept keys and
values, with which its scores are others), and with ``forward_in_tokens=False``. Needs transformers.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import captum.attr as captum
import torch
from contest import Run, apart, shares, spread
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from robustx import attribution as robustx

ANSWER = 12  # tokens


def counted(model: GPT2LMHeadModel) -> list[int]:
    """How many tokens the model is given from now on, call by call."""
    seen: list[int] = []
    forward = model.forward

    @wraps(forward)
    def counting(*args: Any, **kwargs: Any) -> Any:
        seen.append((args[0] if args else kwargs["input_ids"]).numel())
        return forward(*args, **kwargs)

    model.forward = counting
    return seen


def contests(model: GPT2LMHeadModel, tokenizer: Any, words: list[str]) -> dict[str, tuple[Run, Run]]:
    """What is compared: name -> (robustx, Captum); each gives attributions of the answer's tokens."""
    generator = torch.Generator().manual_seed(0)

    def text(count: int) -> str:
        return " ".join(words[i] for i in torch.randint(1, len(words), (count,), generator=generator).tolist())

    answer, short, many = text(ANSWER), text(24), [text(n) for n in (12, 16, 20, 24)]
    begin, parts, others = text(96), [text(3) for _ in range(6)], [text(2) for _ in range(6)]

    def tokens(library: Any, prompt: str) -> Any:
        return library.TextTokenInput(prompt, tokenizer)

    def template(library: Any, *_: Any) -> Any:
        return library.TextTemplateInput(begin + " {}" * 6, parts, others)

    def values(library: Any, method: str, make: Callable[..., Any], prompt: str = "", **options: Any) -> Any:
        of = library.LLMAttribution(getattr(library, method)(model), tokenizer)
        return of.attribute(make(library, prompt), answer, **options).token_attr

    def together() -> Any:
        of = robustx.LLMAttribution(robustx.FeatureAblation(model), tokenizer)
        return tuple(r.token_attr for r in of.attribute([tokens(robustx, p) for p in many], answer))

    def gradients(library: Any) -> Any:
        method = library.LayerIntegratedGradients(model, model.get_input_embeddings())
        of = library.LLMGradientAttribution(method, tokenizer)
        return of.attribute(tokens(library, short), answer, n_steps=10).token_attr

    apart_, once = {"use_cached_outputs": False}, {"forward_in_tokens": False}
    ours, theirs = partial(values, robustx), partial(values, captum)
    sampled = {"n_samples": 8}

    def seeded(run: Run) -> Any:
        torch.manual_seed(0)
        return run()

    one = partial(ours, "FeatureAblation", tokens, short)
    long = partial(ours, "FeatureAblation", template)
    shapley = partial(seeded, partial(ours, "ShapleyValueSampling", template, **sampled))
    return {
        "ablation of 24 tokens": (one, partial(theirs, "FeatureAblation", tokens, short, **apart_)),
        "  Captum in one pass": (one, partial(theirs, "FeatureAblation", tokens, short, **once)),
        "ablation of 4 prompts": (
            together,
            lambda: tuple(theirs("FeatureAblation", tokens, p, **apart_) for p in many),
        ),
        "  Captum in one pass ": (together, lambda: tuple(theirs("FeatureAblation", tokens, p, **once) for p in many)),
        "ablation behind 96 tokens": (long, partial(theirs, "FeatureAblation", template, **apart_)),
        "  Captum in one pass  ": (long, partial(theirs, "FeatureAblation", template, **once)),
        "Shapley sampling, 8 orders": (
            shapley,
            partial(seeded, partial(theirs, "ShapleyValueSampling", template, **sampled, **once)),
        ),
        "integrated gradients": (partial(gradients, robustx), partial(gradients, captum)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--words", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args()
    torch.manual_seed(0)
    size = {"n_embd": asked.width, "n_layer": asked.layers, "n_head": max(asked.width // 32, 1), "n_positions": 256}
    config = GPT2Config(vocab_size=asked.words, bos_token_id=None, eos_token_id=None, **size)
    model = GPT2LMHeadModel(config).eval().to(asked.device, getattr(torch, asked.dtype))
    words = [f"w{i}" for i in range(asked.words)]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0")
    seen = counted(model)
    where = torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} thread(s)"
    shape = f"{asked.layers} layers of {asked.width}, {asked.words} words, {asked.dtype}"
    print(f"torch {torch.__version__}, {where}, {shape}")
    print(f"{'':28}{'difference':>11}{'calls':>14}{'tokens':>18}{'time / Captum':>24}")
    for name, pair in contests(model, tokenizer, words).items():
        answers, calls, lengths = [], [], []
        for run in pair:  # the warm-up counts
            seen.clear()
            answers.append(run())
            calls.append(len(seen))
            lengths.append(sum(seen))
        told = f"{apart(*answers):>11.0e}{calls[0]:>6} / {calls[1]:<5}{lengths[0]:>9} / {lengths[1]:<8}"
        print(f"{name:28}{told}{spread(shares(*pair, asked.rounds)):>22}", flush=True)


if __name__ == "__main__":
    main()
