"""Log probabilities of chats and completions, complete and streamed, in OpenAI's shapes."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from starlette.testclient import TestClient

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.generate.model import Model
from calumma.serve.handler import RequestHandler
from calumma.serve.logprobs import CompletionLogprobsBuilder, TokenLogprobs, chat_logprobs
from tests.serve.conftest import ALONE, WILD, image_part, user_message


def post(client: TestClient, path: str, **body: Any) -> Any:
    response = client.post(path, json={"max_tokens": 12, "modalities": ["text"], **WILD, **body})
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return response.json()
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_a_chat_has_the_most_likely_tokens(client: TestClient, model: Model) -> None:
    options = ALONE | {"max_new_tokens": 12, "modality": "text", "seed": 4, "num_logprobs": 3}
    sample = model.generate(["a red "], **options)
    body = {"messages": user_message("a red "), "seed": 4, "logprobs": True, "top_logprobs": 3}
    response = post(client, "/v1/chat/completions", **body)
    ChatCompletion.model_validate(response, strict=True)
    content = response["choices"][0]["logprobs"]["content"]
    texts = [id_ in model.vocabulary.text for id_ in sample.token_ids]
    tops = [top for top, is_text in zip(sample.top_logprobs, texts, strict=True) if is_text]
    assert len(content) == sum(texts)
    for item, top in zip(content, tops, strict=True):
        assert [t["logprob"] for t in item["top_logprobs"]] == pytest.approx(list(top.values()))
        assert item["logprob"] < 0 and len(item["top_logprobs"]) == 3
    chunks = post(client, "/v1/chat/completions", **body, stream=True)
    streamed = [c["choices"][0]["logprobs"] for c in chunks if c["choices"]]
    assert [item for scored in streamed if scored for item in scored["content"]] == content
    plain = post(client, "/v1/chat/completions", **body | {"logprobs": False, "top_logprobs": 0})
    assert plain["choices"][0]["logprobs"] is None


def test_a_completion_has_the_most_likely_tokens(client: TestClient, model: Model) -> None:
    body = {"prompt": "a red ", "seed": 4, "logprobs": 2}
    response = post(client, "/v1/completions", **body)
    Completion.model_validate(response, strict=True)
    choice = response["choices"][0]
    logprobs = choice["logprobs"]
    lengths = {len(values) for values in logprobs.values()}
    assert lengths == {len(logprobs["tokens"])} and lengths != {0}
    for token, logprob, top, offset in zip(
        *(logprobs[k] for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")), strict=True
    ):
        assert top[token] == logprob and len(top) in (2, 3)
        if not token.startswith("bytes:"):
            assert choice["text"][offset:].startswith(token)
    chunks = [c["choices"][0]["logprobs"] for c in post(client, "/v1/completions", **body, stream=True)]
    for name, values in logprobs.items():
        assert [value for chunk in chunks if chunk for value in chunk[name]] == values
    chosen = post(client, "/v1/completions", **body | {"logprobs": 0})["choices"][0]["logprobs"]
    assert chosen == logprobs | {"top_logprobs": None}
    assert post(client, "/v1/completions", prompt="a")["choices"][0]["logprobs"] is None


def test_best_of_returns_the_most_likely_completions(client: TestClient) -> None:
    body = {"prompt": ["a red ", "the "], "seed": 1, "return_token_ids": True, "logprobs": 0}
    every = post(client, "/v1/completions", **body, n=4)["choices"]
    best = post(client, "/v1/completions", **body, n=2, best_of=4)
    assert best["usage"]["completion_tokens"] == sum(len(c["token_ids"]) for c in every)

    def mean(choice: Any) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return float(sum(values) / len(choice["token_ids"]))

    for number in range(2):
        four = sorted(every[4 * number : 4 * number + 4], key=mean, reverse=True)
        two = best["choices"][2 * number : 2 * number + 2]
        assert [c["token_ids"] for c in two] == [c["token_ids"] for c in four[:2]]
        assert [c["index"] for c in best["choices"]] == [0, 1, 2, 3]


def test_characters_of_several_tokens_have_names_and_offsets(model: Model) -> None:
    ids = [*model.text.encode("\u2603"), *model.text.encode("ab")]
    tokens = TokenLogprobs(ids, [-1.0] * len(ids), [{model.vocabulary.eos: -0.5}] * len(ids))
    made = CompletionLogprobsBuilder(model, 1).add(tokens)
    assert made.tokens[0].startswith("bytes:\\xe2")
    assert made.text_offset[0] == 0 and made.text_offset[-1] in (1, 2)
    assert made.top_logprobs is not None and made.top_logprobs[0]["</s>"] == -0.5
    first = chat_logprobs(model, tokens).content[0]
    assert first.top_logprobs[0].token == "</s>"
    infinite = TokenLogprobs(ids[:1], [-float("inf")], [{}])
    assert chat_logprobs(model, infinite).content[0].logprob == -9999.0


def test_token_ids_are_a_prompt_and_stops_are_honored(client: TestClient, model: Model) -> None:
    ids = model.encode(["a red "])
    assert ids[0] == model.vocabulary.bos
    text = post(client, "/v1/completions", prompt="a red ", seed=2)["choices"][0]["text"]
    for prompt in (ids, [ids]):
        assert post(client, "/v1/completions", prompt=prompt, seed=2)["choices"][0]["text"] == text
    two = post(client, "/v1/completions", prompt=[ids, ids[:2]], seed=2)["choices"]
    assert len(two) == 2 and two[0]["text"] == text
    error = client.post("/v1/completions", json={"prompt": [0, 10**6]}).json()["error"]
    assert error["message"].startswith("the prompt has the token id 1000000; expected ids below")
    body = {"prompt": ids, "seed": 2, "return_token_ids": True, "ignore_eos": True}
    (choice,) = post(client, "/v1/completions", **body)["choices"]
    assert len(choice["token_ids"]) == 12 and choice["finish_reason"] == "length"
    stop = choice["token_ids"][5]
    (short,) = post(client, "/v1/completions", **body, stop_token_ids=[stop])["choices"]
    count = choice["token_ids"].index(stop) + 1
    assert short["token_ids"] == choice["token_ids"][:count]
    assert short["finish_reason"] == "stop"
    error = client.post("/v1/completions", json={"prompt": "a", "stop_token_ids": [4]}).json()
    assert error["error"]["message"].startswith("stop_token_ids has 4; expected ids of text")
    (longer,) = post(client, "/v1/completions", **body, stop_token_ids=[stop], min_tokens=12)["choices"]
    assert len(longer["token_ids"]) == 12 and stop not in longer["token_ids"]


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_an_echoed_prompt_has_log_probabilities(client: TestClient, model: Model, max_tokens: int) -> None:
    prompts = [model.encode(["a red circle"]), model.encode(["the words"])]
    options = {"max_tokens": max_tokens, "logprobs": 2, "seed": 1}
    response = post(client, "/v1/completions", prompt=prompts, echo=True, **options)
    generated = post(client, "/v1/completions", prompt=prompts, **options | {"max_tokens": 3})["choices"]
    codes = model.vocabulary.codes
    for choice, ids, alone in zip(response["choices"], prompts, generated, strict=True):
        logits = model.logits(ids)[0].numpy()
        logits[:, codes.start : codes.stop] = -np.inf
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = [float(logs[n, id_]) for n, id_ in enumerate(ids[1:])]
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        assert logprobs["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=1e-4)
        for n, top in enumerate(logprobs["top_logprobs"][1 : len(ids)]):
            assert max(top.values()) == pytest.approx(float(logs[n].max()), abs=1e-4)
        text = model.text.decode(ids[1:])
        assert choice["text"] == text + (alone["text"] if max_tokens else "")
        assert logprobs["tokens"][0] == "<s>"
        if max_tokens:
            assert logprobs["token_logprobs"][len(ids) :][: len(alone["logprobs"]["tokens"])] == pytest.approx(
                alone["logprobs"]["token_logprobs"]
            )
        else:
            assert len(logprobs["tokens"]) == len(ids)
    assert (response["usage"]["completion_tokens"] == 0) == (max_tokens == 0)
    (plain,) = post(client, "/v1/completions", prompt="a red circle", echo=True, max_tokens=0)["choices"]
    assert plain["text"] == "a red circle" and plain["logprobs"] is None


def test_echo_is_of_text_and_complete(client: TestClient, model: Model) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"prompt": user_message("a", image_part(1))[0]["content"], "echo": True},
            "the prompt has an image; expected text or token ids of text with echo. Remove it.",
        ),
        (
            {"prompt": "a", "echo": True, "stream": True},
            "echo is not supported in a stream: expected stream: false. Fix it, or leave it out.",
        ),
        (
            {"prompt": "a", "max_tokens": 0},
            "max_tokens must be at least 1 without echo; expected such a number. Fix it, or leave it out.",
        ),
    ]
    for body, message in cases:
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["message"] == message


def test_the_harness_gives_over_http_what_our_adapter_gives(
    running_server: tuple[str, RequestHandler],
    model: Model,
    model_parts: ModelComponents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    for name in ("tenacity", "aiohttp"):
        pytest.importorskip(name)
    from calumma.evaluate.harness import HarnessModel, register_harness_model

    save_model(tmp_path / "model", model_parts)
    questions = [{"q": f"a {word} circle on", "a": n % 2} for n, word in enumerate(("red", "blue", "large", "words"))]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    task = {
        "task": "circles",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "q.jsonl")}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "doc_to_choice": ["red", "a blue ground"],
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def scores(served: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = lm_eval.simple_evaluate(model=served, tasks=[task], bootstrap_iters=0, **options)
        return [sample["filtered_resps"] for sample in results["samples"]["circles"]]

    arguments = {
        "base_url": f"{running_server[0]}/v1/completions",
        "model": "tiny",
        "tokenizer": str(tmp_path / "model"),
        "tokenizer_backend": "huggingface",
        "add_bos_token": True,
        "max_length": 128,
        "batch_size": 2,
        "num_concurrent": 2,
    }
    over_http = scores("local-completions", model_args=arguments)
    ours = scores(register_harness_model(HarnessModel(model)))
    for one, other in zip(over_http, ours, strict=True):
        for (score, is_greedy), (our_score, our_is_greedy) in zip(one, other, strict=True):
            assert score == pytest.approx(our_score, abs=1e-4)
            assert is_greedy == our_is_greedy
