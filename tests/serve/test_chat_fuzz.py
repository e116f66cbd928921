"""Random chat bodies: each is answered, or refused in one line that names a field that is wrong.

Run 10,000 cases with `CALUMMA_FUZZ_CASES=10000`.
"""

import json
import os
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from calumma.serve.handler import RequestHandler
from tests.serve.conftest import image_part
from tests.serve.test_handler import is_idle

CASES = int(os.environ.get("CALUMMA_FUZZ_CASES", "200"))

SCALARS = st.none() | st.booleans() | st.integers(-3, 40) | st.floats(-3, 40) | st.sampled_from(["", "a", "auto", "1"])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abtype"), inner, max_size=2)
)
IMAGE = image_part(1)
URLS = st.sampled_from(
    [
        IMAGE["image_url"],
        IMAGE["image_url"]["url"],
        {"url": "data:,"},
        "",
        {},
        None,
        5,
        {"url": "http://localhost/a.png"},
    ]
)
PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.sampled_from(["a", "", "<image>", "\ud800", None, 5])}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": URLS}),
    st.fixed_dictionaries({"type": st.just("special_token"), "text": st.sampled_from(["<s>", "", 5])}),
    st.fixed_dictionaries({"type": st.sampled_from(["input_text", "input_image", "image", "file", "", None, 5])}),
    st.sampled_from(["a", IMAGE, {"type": "text", "text": "a", "image_url": IMAGE["image_url"]}]),
    JSON,
)
CONTENT = st.sampled_from(["a red ", "", "\x00", None]) | st.lists(PARTS, max_size=3) | JSON
MESSAGES = st.one_of(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "", None, 5])},
            optional={
                "content": CONTENT,
                "content_parts": st.lists(PARTS, max_size=2),
                "name": st.just("me"),
                "tool_calls": st.sampled_from([[], [{"id": "1"}], None]),
                "images": st.sampled_from([[], ["aGk="]]),
            },
        ),
        max_size=3,
    ),
    JSON,
)
BASE: dict[str, Any] = {"messages": [{"role": "user", "content": "a red "}], "max_tokens": 3}
VALID: dict[str, list[Any]] = {
    "temperature": [0, 1.5, None],
    "top_p": [0.5, 1],
    "top_k": [0, 3],
    "min_p": [0.1],
    "repetition_penalty": [1.2],
    "guidance_scale": [2.0],
    "image_temperature": [1],
    "num_speculative_tokens": [2],
    "seed": [7, -1],
    "n": [1, 2],
    "stop": ["a", ["a", "b"]],
    "stream": [True, False],
    "stream_options": [{"include_usage": True}],
    "modalities": [["text"], ["text", "image"]],
    "max_images": [0, 1],
    "max_completion_tokens": [4],
    "min_tokens": [2],
    "stop_token_ids": [[300]],
    "ignore_eos": [True],
    "return_token_ids": [True],
    "logprobs": [True],
    "top_logprobs": [0, 3],
}
REFUSED = (
    *("tools", "logit_bias", "echo", "frequency_penalty", "guided_choice", "response_format", "suffix"),
    *("use_beam_search", "chat_template", "truncate_prompt_tokens", "max_new_tokens", "extra_body"),
)
MISTYPED = ("temprature", "maxtokens", "message", "top_logprob")
IGNORED = ("user", "metadata", "store", "x")


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    body: dict[str, Any] = dict(BASE)
    if draw(st.booleans()):
        body["messages"] = draw(MESSAGES)
    for name in draw(
        st.lists(
            st.sampled_from([*VALID, *REFUSED, *MISTYPED, *IGNORED, "max_tokens", "model"]), max_size=3, unique=True
        )
    ):
        good = st.sampled_from(VALID[name]) if name in VALID else st.nothing()
        body[name] = draw(good | JSON)
    return body


def test_every_chat_is_answered_or_refused_with_the_name_of_a_field(
    client: TestClient, handler: RequestHandler
) -> None:
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=CASES,
        deadline=None,
        derandomize=CASES <= 200,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(body=bodies())
    def fuzz(body: dict[str, Any]) -> None:
        data = json.dumps(body)
        response = client.post("/v1/chat/completions", content=data, headers={"Content-Type": "application/json"})
        statuses[response.status_code] += 1
        assert response.status_code in (200, 400, 404), response.text
        if response.status_code == 200:
            assert not any(body.get(name) for name in REFUSED) and not body.keys() & set(MISTYPED)
            return
        error = response.json()["error"]
        message = error["message"]
        assert message and "\n" not in message and len(message) < 500
        suspects = {name for name, value in body.items() if name not in BASE or BASE[name] != value} | {"max_tokens"}
        if "messages" in suspects:
            suspects |= {"message", "image", "prompt"}
        if "n" in suspects:
            suspects.add("choices")
        assert any(name in message for name in suspects) or error["param"] in suspects, (body, message)

    fuzz()
    assert statuses[200] > CASES / 20 and statuses[400] > CASES / 5
    assert is_idle(handler)
