"""Tests of model folders in both directions between calumma and transformers."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.errors import CheckpointError, OutputError, VocabularyError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.sequence import encode_image_codes
from calumma.tokens.text import TextTokenizer
from tests.checkpoints.random_models import without_image_decoder
from tests.images import noise

SHAPES: dict[str, dict[str, Any]] = {
    "multi-head attention": {"num_kv_heads": 4},
    "grouped-query attention": {"num_kv_heads": 2},
    "two QK-norm groups": {"num_kv_heads": 4, "qk_norm_groups": 2},
    "grouped-query attention, two QK-norm groups": {"num_kv_heads": 2, "qk_norm_groups": 2},
    "reordered norms": {"norm_order": "reordered"},
    "all at once": {"norm_order": "reordered", "qk_norm_groups": 2, "rope_theta": 300.0},
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Silence the log of transformers."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


def random_decoder(shape: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(shape).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return decoder


def some_ids(text: TextTokenizer) -> Tensor:
    ids = [0, *text.encode("a red circle"), *encode_image_codes([3, 1, 4, 15], text.vocabulary)]
    return torch.tensor([[*ids, *text.encode("on blue"), 2]])


@torch.no_grad()
def assert_same_logits(theirs: Any, ours: Decoder, text: TextTokenizer) -> None:
    """Compare to 1e-4, except the image tokens, which transformers masks."""
    ids = some_ids(text)
    expected, found = theirs(input_ids=ids).logits.float(), ours(ids).float()
    codes = text.vocabulary.codes
    assert (expected[..., codes.start : codes.stop] < -1e30).all()
    for part in (slice(0, codes.start), slice(codes.stop, None)):
        assert torch.allclose(expected[..., part], found[..., part], atol=1e-4)
    assert found.std() > 0.1


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_transformers_loads_our_folder(change: dict[str, Any], model_parts: ModelComponents, tmp_path: Path) -> None:
    decoder = random_decoder(replace(model_parts.decoder.config, **change))
    save_model(tmp_path, replace(model_parts, decoder=decoder))
    theirs, report = transformers.ChameleonForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(found) for key, found in report.items() if found} == {}
    assert_same_logits(theirs, decoder, model_parts.tokenizers.text)
    again = load_model(tmp_path)
    assert again.decoder.config == decoder.config
    assert again.tokenizers.has_image_decoder
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(again.decoder.state_dict()[name], tensor)
    assert again.tokenizers.image.fingerprint == model_parts.tokenizers.image.fingerprint


@pytest.fixture(scope="module")
def theirs_folder(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that transformers saved, with random weights but for the groups of norms."""
    folder = tmp_path_factory.mktemp("theirs")
    theirs = make_theirs(model_parts, folder, swin_norm=False, kv_heads=2, groups=1)
    theirs.save_pretrained(folder)
    return folder


def make_theirs(parts: ModelComponents, folder: Path, *, swin_norm: bool, kv_heads: int, groups: int) -> Any:
    config = transformers.ChameleonConfig(
        vocab_size=parts.tokenizers.text.vocabulary.size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        swin_norm=swin_norm,
        model_parallel_size=groups,
        vocabulary_map=parts.tokenizers.text.tokenizer.get_vocab(with_added_tokens=True),
        vq_config={
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "latent_channels": 8,
            "embed_dim": 4,
            "num_embeddings": 16,
        },
    )
    torch.manual_seed(3)
    theirs = transformers.ChameleonForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                heads, width = parameter.shape
                norms = torch.randn(groups, width).repeat_interleave(heads // groups, dim=0)
                parameter.copy_(norms)
            else:
                parameter.add_(torch.randn_like(parameter) / 5)
    parts.tokenizers.text.save(folder)
    return theirs


@pytest.mark.parametrize("swin_norm", [False, True])
@pytest.mark.parametrize(("kv_heads", "groups"), [(4, 1), (4, 2), (2, 1), (2, 2)])
def test_folder_of_transformers_is_loaded(
    swin_norm: bool, kv_heads: int, groups: int, model_parts: ModelComponents, tmp_path: Path
) -> None:
    theirs = make_theirs(model_parts, tmp_path, swin_norm=swin_norm, kv_heads=kv_heads, groups=groups)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert not ours.tokenizers.has_image_decoder
    assert ours.decoder.config.qk_norm_groups == groups
    assert ours.decoder.config.norm_order == ("reordered" if swin_norm else "pre")
    assert_same_logits(theirs, ours.decoder, ours.tokenizers.text)


@torch.no_grad()
def test_image_tokenizer_of_transformers_gives_our_codes(theirs_folder: Path, model_parts: ModelComponents) -> None:
    theirs = transformers.ChameleonForConditionalGeneration.from_pretrained(theirs_folder)
    ours = load_model(theirs_folder).tokenizers.image
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    ids = theirs.model.get_image_tokens(pixels).reshape(2, -1)
    assert (ids - 4).tolist() == ours.encode(pixels).flatten(1).tolist()


def test_processor_of_transformers_gives_our_prompt(model_parts: ModelComponents, tmp_path: Path) -> None:
    save_model(tmp_path, model_parts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    made = tokenizer("a red circle")["input_ids"]
    assert made == [0, *model_parts.tokenizers.text.encode("a red circle")]
    images = transformers.ChameleonImageProcessor.from_pretrained(tmp_path)
    processor = transformers.ChameleonProcessor.from_pretrained(tmp_path)
    inputs = processor(text="what is <image>", images=noise(0), return_tensors="pt")
    vocabulary = model_parts.tokenizers.text.vocabulary
    opened = [vocabulary.begin_image, *([vocabulary.placeholder] * 4), vocabulary.end_image]
    expected = [0, *model_parts.tokenizers.text.encode("what is "), *opened]
    assert inputs["input_ids"][0].tolist()[: len(expected)] == expected
    assert images is not None
    codes = model_parts.tokenizers.image.encode(inputs["pixel_values"].clamp(-1, 1)).flatten().tolist()
    assert codes == model_parts.tokenizers.image.encode_image(noise(0))


def test_weights_in_several_files(theirs_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(theirs_folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        save_file({n: tensors[n] for n in some}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    single, split = load_model(theirs_folder), load_model(tmp_path)
    assert torch.equal(single.decoder.head.weight, split.decoder.head.weight)


def test_save_without_image_decoder_replaces_one_with(model_parts: ModelComponents, tmp_path: Path) -> None:
    save_model(tmp_path, model_parts)
    save_model(tmp_path, replace(model_parts, tokenizers=without_image_decoder(model_parts.tokenizers)))
    assert not load_model(tmp_path).tokenizers.has_image_decoder


def test_interrupted_save_leaves_no_loadable_folder(
    model_parts: ModelComponents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, model_parts)

    def full(path: Path, text: str) -> None:
        raise OutputError("no space left")

    monkeypatch.setattr("calumma.checkpoints.model_folder.write_text", full)
    with pytest.raises(OutputError):
        save_model(tmp_path, model_parts)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no config.json; expected a model folder of `calumma demo` or `calumma "
        "pretrain`, or a Chameleon model in Hugging Face's layout. Check the path."
    )


@pytest.fixture
def folder(theirs_folder: Path, tmp_path: Path) -> Path:
    """Return a folder to break."""
    shutil.copytree(theirs_folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


def change_tensors(folder: Path, changes: dict[str, Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    changed = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises((CheckpointError, VocabularyError)) as caught:
        load_model(folder)
    return str(caught.value)


def test_other_model_type_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert refusal(folder) == (
        f"{folder / 'config.json'} has model_type 'llama'; expected 'chameleon', or 'qwen3' with "
        "an image tokenizer. Use such a model."
    )


def test_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == (
        f"{folder} holds no model*.safetensors; expected the weights of a Chameleon-family model. "
        "Pickled weights (.bin) are not read: save them as safetensors."
    )


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    message = refusal(folder)
    assert message.startswith(f"{path}: is not a complete safetensors file (")
    assert message.endswith("); expected a whole one. Copy or download it again.")


def test_missing_tensor_is_refused(folder: Path) -> None:
    change_tensors(folder, {"model.norm.weight": None})
    assert refusal(folder) == (
        f"{folder} lacks the tensor model.norm.weight; expected every tensor of a Chameleon-family "
        "model. Copy or download what is missing."
    )


def test_untied_norms_are_refused(folder: Path) -> None:
    name = "model.layers.1.self_attn.q_norm.weight"
    untied = load_file(folder / "model.safetensors")[name]
    untied[1] += 1
    change_tensors(folder, {name: untied})
    assert refusal(folder) == (
        f"{folder}: the query norms differ between heads that share a key head (4 query, 2 key "
        "heads); expected norms tied within groups of heads. Use a model that was fine-tuned with "
        "tied norms."
    )


def test_tokenizer_larger_than_the_decoder_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        change_tensors(folder, {name: torch.zeros(300, 32)})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    assert refusal(folder) == (
        f"{folder}: the tokenizer has 324 token ids, the decoder embeds 300; expected at most as "
        "many. Take the tokenizer that the decoder was trained with."
    )


def test_fixture_has_the_folder_s_image_tokenizer_config(image_tokenizer: ImageTokenizer, theirs_folder: Path) -> None:
    assert load_model(theirs_folder).tokenizers.image.config == image_tokenizer.config
