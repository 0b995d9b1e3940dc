"""Tiny language models and a tokenizer, made on the spot; nothing is downloaded."""

from functools import cache, wraps

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

WORDS = [
    "<unk>",
    "<s>",
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "in",
    "mat",
    "park",
    "sun",
    "rain",
    "likes",
    "and",
    "so",
    "it",
    "is",
    "big",
    "red",
]


@cache
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>")


SHARED = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.5}


def gpt2(dtype=torch.float32):
    """Absolute positions, by a table."""
    config = transformers.GPT2Config(n_positions=96, n_embd=16, n_layer=2, n_head=2, **SHARED)
    return _made(transformers.GPT2LMHeadModel, config, dtype)


def llama(dtype=torch.float32):
    """Relative positions, by rotation; heads share keys and values."""
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(num_key_value_heads=1, max_position_embeddings=96, **size, **SHARED)
    return _made(transformers.LlamaForCausalLM, config, dtype)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2}


def mistral():
    """Each token sees the six before it, and keys and values are kept of these alone."""
    more = {"intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = transformers.MistralConfig(sliding_window=6, **SMALL, **more, **SHARED)
    return _made(transformers.MistralForCausalLM, config, torch.float32)


def bloom():
    """No positions go in: attention falls with the distance."""
    config = transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=2, **SHARED)
    return _made(transformers.BloomForCausalLM, config, torch.float32)


def mamba():
    """Recurrent: a state in the place of attention."""
    config = transformers.MambaConfig(state_size=4, **SMALL, **SHARED)
    return _made(transformers.MambaForCausalLM, config, torch.float32)


def _made(of, config, dtype):
    torch.manual_seed(0)
    return of(config).eval().to(dtype)


MODELS = {"gpt2": gpt2, "llama": llama}


def counted(model):
    """The shapes of the token ids that the model is given from now on, call by call."""
    seen, forward = [], model.forward

    @wraps(forward)
    def counting(*args, **kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        seen.append(tuple(ids.shape))
        return forward(*args, **kwargs)

    model.forward = counting
    return seen


class Plain(nn.Module):
    """A language model of one's own: a running mean of embeddings; nothing but ids goes in, nothing but logits out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(len(WORDS), 8), nn.Linear(8, len(WORDS))

    def forward(self, input_ids):
        here = self.embedding(input_ids).cumsum(1) / torch.arange(1, input_ids.shape[1] + 1)[:, None]
        return self.head(torch.tanh(3 * here))


class Sighted(Plain):
    """One that also sees a picture [N, 3, H, W], and the kinds of its tokens."""

    def __init__(self):
        super().__init__()
        self.eye = nn.Linear(3, 8)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, pixel_values=None):
        here = self.embedding(input_ids).cumsum(1) / torch.arange(1, input_ids.shape[1] + 1)[:, None]
        here = here + self.eye(pixel_values.mean((2, 3)))[:, None] + 0.1 * token_type_ids[..., None]
        logits = self.head(torch.tanh(here))
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


def one_by_one(model, ids, target):
    """Log probabilities of a target's tokens behind a prompt's [L], each from a pass of its own."""
    found = []
    with torch.no_grad():
        for t, token in enumerate(target):
            out = model(input_ids=torch.tensor([[*ids, *target[:t]]]))
            logits = getattr(out, "logits", out)
            found.append(logits[0, -1].log_softmax(-1)[token])
    return torch.stack(found)
