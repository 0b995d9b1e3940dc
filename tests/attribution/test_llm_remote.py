"""Language models over the network: a provider of one's own, and vLLM's door, spoken to by the client itself."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import captum.attr as captum
import pytest
from language_models import WORDS, gpt2, one_by_one, tokenizer
from torch.testing import assert_close

from robustx import attribution as ours
from robustx.attribution import (
    FeatureAblation,
    LLMAttribution,
    RemoteLLMAttribution,
    RemoteLLMProvider,
    ShapleyValueSampling,
    TextTokenInput,
    VLLMProvider,
)

ANSWER = "it is big"


class Here(RemoteLLMProvider):
    """A provider that asks a model next door."""

    def __init__(self):
        self.model, self.asked, self.at_once, self.most = gpt2(), [], 0, 0

    def generate(self, prompt, **gen_args):
        return ANSWER

    def get_logprobs(self, input_prompt, target_str, tokenizer=None):
        self.asked.append(input_prompt)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        time.sleep(0.005)
        found = one_by_one(self.model, tokenizer.encode(input_prompt), tokenizer.encode(target_str)).tolist()
        self.at_once -= 1
        return found


def template(library):
    return library.TextTemplateInput("the {} {} on {}", ["cat", "sat", "the mat"], ["dog", "ran", "it"])


@pytest.mark.parametrize("method", ["FeatureAblation", "ShapleyValues"])
def test_remote_models_are_local_ones_and_captums(method):
    provider, found = Here(), []
    for library in (captum, ours):
        of = getattr(library, method)(library.RemoteLLMAttribution.placeholder_model)
        attribution = library.RemoteLLMAttribution(of, tokenizer(), provider)
        for target in (None, ANSWER):
            found.append(attribution.attribute(template(library), target))
    local = LLMAttribution(getattr(ours, method)(provider.model), tokenizer()).attribute(template(ours), ANSWER)
    for result in found:
        assert_close(result.token_attr, local.token_attr, atol=1e-5, rtol=1e-5)
        assert_close(result.seq_attr, local.seq_attr, atol=1e-5, rtol=1e-5)
        assert result.output_tokens == ANSWER.split()


def test_nothing_is_asked_twice_and_several_at_once():
    provider = Here()
    method = ShapleyValueSampling(RemoteLLMAttribution.placeholder_model)
    attribution = RemoteLLMAttribution(method, tokenizer(), provider, concurrency=4)
    result = attribution.attribute(template(ours), ANSWER, n_samples=30, seed=0)
    assert len(provider.asked) == len(set(provider.asked)) <= 2**3
    assert provider.most > 1
    exact = RemoteLLMAttribution(ours.ShapleyValues(method.forward_func), tokenizer(), provider)
    assert (result.seq_attr - exact.attribute(template(ours), ANSWER).seq_attr).abs().max() < 1
    tokens = RemoteLLMAttribution(FeatureAblation(method.forward_func), tokenizer(), provider)
    heard = []
    tokens.attribute(TextTokenInput("the cat", tokenizer()), ANSWER, _inspect_forward=lambda *of: heard.append(of))
    assert [of[:2] for of in heard] == [(text, ANSWER) for text in ("the cat", "<unk> cat", "the <unk>")]


def test_errors_of_providers():
    class Poor(Here):
        generate = None

        def get_logprobs(self, input_prompt, target_str, tokenizer=None):
            return [0.0]

    attribution = RemoteLLMAttribution(
        FeatureAblation(RemoteLLMAttribution.placeholder_model), tokenizer(), Poor(), "prob"
    )
    with pytest.raises(ValueError, match=r"\(1\) does not match expected target token length \(3\)"):
        attribution.attribute(template(ours), ANSWER)
    with pytest.raises(TypeError, match="must be a RemoteLLMProvider, got str"):
        RemoteLLMAttribution(attribution.attr_method, tokenizer(), "http://localhost:8000/v1")
    with pytest.raises(ValueError, match="provider has no generate"):
        attribution.attribute(template(ours))
    with pytest.raises(TypeError, match="elsewhere"):
        RemoteLLMAttribution.placeholder_model()


class Door(BaseHTTPRequestHandler):
    """What vLLM answers to completions, of a tiny model; keeps what it was asked."""

    model, requests, empty = gpt2(), [], False

    def do_GET(self):
        self._say({"object": "list", "data": [] if self.empty else [{"id": "tiny", "object": "model"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(asked)
        choice = {"index": 0, "text": "it is", "finish_reason": "length", "logprobs": None}
        if "prompt_logprobs" in asked:
            ids = asked["prompt"]
            found = one_by_one(self.model, ids[:1], ids[1:]).tolist()
            told = [{str(t): {"logprob": v, "rank": 1}} for t, v in zip(ids[1:], found, strict=True)]
            choice["prompt_logprobs"] = [None, *told]
        self._say({"id": "c", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice]})

    def _say(self, what):
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture
def door(monkeypatch):
    pytest.importorskip("openai")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Door.requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_vllm_is_asked_in_tokens(door):
    provider = VLLMProvider(door)
    assert provider.model_name == "tiny"
    method = FeatureAblation(RemoteLLMAttribution.placeholder_model)
    remote = RemoteLLMAttribution(method, tokenizer(), provider, concurrency=2)
    local = LLMAttribution(FeatureAblation(Door.model), tokenizer()).attribute(template(ours), "it is")
    assert_close(remote.attribute(template(ours)).token_attr, local.token_attr, atol=1e-5, rtol=1e-5)
    first, *others = Door.requests
    assert (first["max_tokens"], first["temperature"], first["model"]) == (25, 0.0, "tiny")
    assert all(isinstance(t, int) for asked in others for t in asked["prompt"])
    assert len(others) == 4
    provider.client.close()


def test_errors_of_vllm(door, monkeypatch):
    with pytest.raises(ValueError, match="api_url must say"):
        VLLMProvider(" ")
    provider = VLLMProvider(door, "mine")
    with pytest.raises(ValueError, match="tokenizer must be the model's"):
        provider.get_logprobs("the", "cat")
    with pytest.raises(ValueError, match="target_str has no tokens"):
        provider.get_logprobs("the", "", tokenizer())

    class Other:
        def encode(self, text, **_):
            return [len(WORDS) - 1] if text == "cat" else [2]

    monkeypatch.setattr(VLLMProvider, "_choice", lambda *_, **__: type("C", (), {"prompt_logprobs": [None, {"5": 1}]}))
    with pytest.raises(ValueError, match="told of tokens 5 where 20 was asked"):
        provider.get_logprobs("the", "cat", Other())
    provider.client.close()
    monkeypatch.setattr(Door, "empty", True)
    with pytest.raises(ValueError, match="has no models"):
        VLLMProvider(door)


def test_no_answer_is_a_connection_error(door, monkeypatch):
    import openai

    client = openai.OpenAI
    monkeypatch.setattr(openai, "OpenAI", lambda **options: client(**options, max_retries=0))
    with pytest.raises(ConnectionError, match="is the server up"):
        VLLMProvider("http://127.0.0.1:9/v1")
