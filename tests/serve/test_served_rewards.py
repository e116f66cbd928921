"""Best of n in the server, by the rewards that its operator has named."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from calumma.cli.serve import served_rewards
from calumma.errors import ConfigError
from calumma.generate.best_of import RewardInput
from calumma.generate.model import Model
from calumma.serve.config import ServeConfig
from calumma.serve.served_rewards import load_served_rewards
from tests.serve.conftest import serving


def few_letters(completion: RewardInput) -> float:
    """Return the negative number of letters, or the negative brightness of an image."""
    if completion.images:
        return -float(sum(completion.images[0].convert("L").tobytes()))
    assert completion.prompt == "a red circle"
    return -float(len(completion.text))


REWARDS = {"likelihood": "likelihood", "few_letters": "tests.serve.test_served_rewards:few_letters"}


def choices(client: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["choices" if "chat" in path else "data"]
    return found


def test_chats_and_images_return_the_best_choices(model: Model) -> None:
    config = ServeConfig(served_model_name="m", rewards=REWARDS)
    with serving(model, config) as (client, _):
        prompt = {"messages": [{"role": "user", "content": "a red circle"}], "modalities": ["text"], "max_tokens": 9}
        path = "/v1/chat/completions"
        every = choices(client, path, **prompt, seed=3, n=4)
        best = choices(client, path, **prompt, seed=3, n=2, best_of=4, reward="few_letters")
        lengths = sorted(len(choice["message"]["content"]) for choice in every)
        assert [len(choice["message"]["content"]) for choice in best] == lengths[:2]
        assert [choice["index"] for choice in best] == [0, 1]
        texts = {choice["seed"]: choice["message"]["content"] for choice in every}
        assert all(texts[choice["seed"]] == choice["message"]["content"] for choice in best)
        path, prompt = "/v1/images/generations", {"prompt": "a red circle"}
        images = choices(client, path, **prompt, seed=3, n=3)
        likely = choices(client, path, **prompt, seed=3, best_of=3, reward="likelihood")
        dark = choices(client, path, **prompt, seed=3, n=2, best_of=3, reward="few_letters")
        assert len(likely) == 1 and len(dark) == 2
        pngs = {image["seed"] for image in images}
        assert {image["seed"] for image in [*likely, *dark]} <= pngs
        assert len(choices(client, path, **prompt, best_of=2)) == 1  # by the log-probability


def test_rewards_that_are_not_served_are_refused(client: TestClient) -> None:
    body = {"prompt": "a", "best_of": 2, "reward": "likelihood"}
    response = client.post("/v1/images/generations", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == ("no reward of that name is served here; expected 'logprob'.")


def test_names_of_the_command_line_are_resolved() -> None:
    own = "tests.serve.test_served_rewards:few_letters"
    paths = served_rewards(["likelihood", "still_life", own])
    assert paths == {"likelihood": "likelihood", "still_life": "calumma.rl.rewards:still_life", "few_letters": own}
    loaded = load_served_rewards(paths)
    assert loaded["likelihood"] == "likelihood" and loaded["logprob"] == "logprob" and callable(loaded["still_life"])
    with pytest.raises(ConfigError, match=r"reward .no\.such:f. cannot be loaded"):
        served_rewards(["no.such:f"])
