"""What is a language model's answer owed to? A small one learns a language of one sentence, and is asked.

    python examples/llm_attribution.py
    python examples/llm_attribution.py --prompt "today the cow near the ducks"

The language: ``tonight the dogs behind the cat`` goes on ``bark at night``. What is said depends on the first animal
and its number, whatever animal comes between, and when depends on the first word. So it is known which word each token
of the answer rests on, and the table tells how much of each token's attribution a method gives to that word. Words are
taken away by putting ``...`` in their place; the model has seen sentences with such gaps.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from torch.nn.functional import cross_entropy

from robustx.attribution import (
    FeatureAblation,
    KernelShap,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    LLMAttribution,
    LLMGradientAttribution,
    ShapleyValues,
    TextTokenInput,
)
from robustx.engine.checks import optional
from robustx.plot import TIGHT

GAP = "..."
SAYS = {"dog": "bark", "cat": "meow", "cow": "moo", "duck": "quack", "hen": "cluck"}
WHEN = {"tonight": "night", "today": "noon"}
BETWEEN = ["near", "behind", "beside"]
ANIMALS = [*SAYS, *(f"{animal}s" for animal in SAYS)]
SOUNDS = [*SAYS.values(), *(f"{sound}s" for sound in SAYS.values())]
WORDS = [GAP, "the", "at", *WHEN, *WHEN.values(), *BETWEEN, *ANIMALS, *SOUNDS]
SUBJECT, TIME = 2, 0  # where they stand in a prompt


def answer(prompt: str) -> str:
    """How a sentence goes on."""
    when, _, subject, *_ = prompt.split()
    sound = SAYS[subject.removesuffix("s")]
    return f"{sound if subject.endswith('s') else sound + 's'} at {WHEN[when]}"


def sentences(count: int, generator: torch.Generator) -> torch.Tensor:
    """Whole sentences, at random [N, 9]."""

    def one(of: list[str]) -> str:
        return of[int(torch.randint(len(of), (), generator=generator))]

    prompts = [f"{one([*WHEN])} the {one(ANIMALS)} {one(BETWEEN)} the {one(ANIMALS)}" for _ in range(count)]
    number = {word: i for i, word in enumerate(WORDS)}
    return torch.tensor([[number[word] for word in f"{p} {answer(p)}".split()] for p in prompts])


def learnt(steps: int, batch: int = 64, rate: float = 5e-3) -> torch.nn.Module:
    """A transformer of two layers that has read so many batches."""
    transformers = optional("transformers", "hf")
    torch.manual_seed(0)
    size = {"n_positions": 16, "n_embd": 48, "n_layer": 2, "n_head": 4}
    ends = {"bos_token_id": None, "eos_token_id": None}
    dry = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(WORDS), **size, **ends, **dry))
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = sentences(batch, generator)
        gaps = torch.rand(x.shape, generator=generator) < 0.15
        gaps[:, 6:] = False  # an answer has none
        logits = model(input_ids=x.masked_fill(gaps, 0)).logits
        optimizer.zero_grad()
        cross_entropy(logits[:, 5:-1].flatten(0, 1), x[:, 6:].flatten()).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def tokenizer() -> "object":
    """Each word is a token."""
    made, of = optional("tokenizers", "hf"), optional("transformers", "hf")
    words = made.Tokenizer(made.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=GAP))
    words.pre_tokenizer = made.pre_tokenizers.WhitespaceSplit()
    return of.PreTrainedTokenizerFast(tokenizer_object=words, unk_token=GAP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="tonight the dogs behind the cat")
    parser.add_argument("--steps", type=int, default=400, help="batches of 64 sentences that the model learns from")
    parser.add_argument("--out", type=Path, default=Path("explanation"), help="folder for the picture")
    asked = parser.parse_args()
    model, words = learnt(asked.steps), tokenizer()
    layer = model.get_input_embeddings()
    prompt = TextTokenInput(asked.prompt, words, baselines=GAP)
    gen_args = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    attributions = {
        "ablation": LLMAttribution(FeatureAblation(model), words),
        "Shapley values": LLMAttribution(ShapleyValues(model), words),
        "kernel SHAP": LLMAttribution(KernelShap(model), words),
        "integrated gradients": LLMGradientAttribution(LayerIntegratedGradients(model, layer), words),
        "gradient x activation": LLMGradientAttribution(LayerGradientXActivation(model, layer), words),
    }
    results = {name: of.attribute(prompt, gen_args=gen_args) for name, of in attributions.items()}
    first = results["Shapley values"]
    said, _, when = first.output_tokens
    right = " ".join(first.output_tokens) == answer(asked.prompt)
    print(f"{asked.prompt} -> {' '.join(first.output_tokens)} ({'right' if right else 'wrong'})")
    print(f"{'of the attribution of':24}{said!r:>12}{when!r:>12}")
    print(f"{'goes to':24}{prompt.values[SUBJECT]!r:>12}{prompt.values[TIME]!r:>12}")
    for name, result in results.items():
        shares = result.token_attr.abs() / result.token_attr.abs().sum(1, keepdim=True)
        print(f"{name:24}{shares[0, SUBJECT]:>12.0%}{shares[2, TIME]:>12.0%}")
    figure, axes = first.plot_token_attr()
    axes.set_title(
        "what each token of the answer is owed to: Shapley values of its log probability", fontsize=10, pad=12
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(asked.out / "llm_attribution.png", dpi=90, **TIGHT)
    print(f"written to {asked.out}/llm_attribution.png")


if __name__ == "__main__":
    main()
