"""transformers lays conversations out as the model reads them."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.generate.model import Model
from calumma.model.decoder import Decoder
from tests.images import noise

transformers = pytest.importorskip("transformers")

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": "a red circle?"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Why?"}],
    "turns": [
        {"role": "user", "content": [{"type": "text", "text": "a picture\n"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "number 3"}]},
        {"role": "user", "content": "words 12"},
    ],
    "image": [
        {"role": "user", "content": [{"type": "text", "text": "what is "}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "a cat"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " and this?"}]},
    ],
}


@pytest.fixture(scope="module")
def folder(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "model"
    save_model(folder, model_parts)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


def our_ids(model: Model, messages: list[dict[str, Any]]) -> list[int]:
    """Return the ids of `Model.encode_chat`, image codes replaced by placeholders."""
    numbers = iter(range(9))
    ours = []
    for message in messages:
        parts = [message["content"]] if isinstance(message["content"], str) else message["content"]
        opened = [noise(next(numbers)) if not isinstance(p, str) and p["type"] == "image" else p for p in parts]
        ours.append({"role": message["role"], "content": opened})
    v = model.vocabulary
    return [v.placeholder if id_ in v.codes else id_ for id_ in model.encode_chat(ours)]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_the_tokenizer_gives_our_ids(tokenizer: Any, model: Model, name: str, *, add_generation_prompt: bool) -> None:
    found = tokenizer.apply_chat_template(
        CONVERSATIONS[name], add_generation_prompt=add_generation_prompt, return_dict=False
    )
    ids, v = our_ids(model, CONVERSATIONS[name]), model.vocabulary
    if name == "image":  # one placeholder for each image
        ids = [
            id_
            for before, id_ in zip([None, *ids], ids, strict=False)
            if id_ not in (v.begin_image, v.end_image) and not (before == id_ == v.placeholder)
        ]
    assert found == ids


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_processor_gives_our_ids_with_placeholders_for_codes(folder: Path, model: Model, name: str) -> None:
    processor = transformers.ChameleonProcessor.from_pretrained(folder)
    options: dict[str, Any] = {"chat_template": processor.tokenizer.chat_template, "end_of_turn": False}
    prompt = processor.apply_chat_template(CONVERSATIONS[name], **options)
    images = [noise(n) for n in range(prompt.count("<image>"))] or None
    made = processor(text=prompt, images=images, add_special_tokens=False)
    assert list(made["input_ids"][0]) == our_ids(model, CONVERSATIONS[name])
    if images is None:
        tokenized = processor.apply_chat_template(CONVERSATIONS[name], tokenize=True, return_dict=True, **options)
        assert list(tokenized["input_ids"][0]) == our_ids(model, CONVERSATIONS[name])


def test_an_answer_is_closed_unless_it_is_continued(tokenizer: Any, model: Model) -> None:
    messages = CONVERSATIONS["turns"][:2]
    closed = tokenizer.apply_chat_template(messages, return_dict=False)
    open_ = tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=False)
    assert open_ == our_ids(model, messages)
    assert closed == [*open_, model.vocabulary.eos]


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([{"role": "assistant", "content": "a"}], "an answer has no prompt"),
        ([{"role": "tool", "content": "a"}], "the role tool is unknown"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "a part of type audio"),
    ],
)
def test_what_the_model_refuses_the_template_refuses(
    tokenizer: Any, messages: list[dict[str, Any]], found: str
) -> None:
    with pytest.raises(jinja2.TemplateError, match=found):
        tokenizer.apply_chat_template(messages)


def test_a_folder_of_a_text_model_has_the_template_as_well(
    model_parts: ModelComponents, model: Model, tmp_path: Path
) -> None:
    config = replace(model_parts.decoder.config, qk_norm="rms")
    save_model(tmp_path, ModelComponents(Decoder(config), model_parts.tokenizers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = tokenizer.apply_chat_template(CONVERSATIONS["turns"], return_dict=False)
    assert found == our_ids(model, CONVERSATIONS["turns"])
