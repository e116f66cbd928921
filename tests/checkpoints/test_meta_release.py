"""Tests of releases in Meta's layout: reading, writing and errors."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.meta.release import (
    find_meta_model,
    meta_model_name,
    meta_params,
    meta_shard_files,
    open_meta_model,
    rename_placeholder,
    write_meta_model,
)
from calumma.checkpoints.model_folder import ModelComponents, load_model, open_model_folder
from calumma.errors import CheckpointError, TokenizerError, VocabularyError
from calumma.model.config import DecoderConfig
from calumma.tokens.text import TextTokenizer
from tests.checkpoints.random_models import save_random_model


@pytest.fixture(scope="module")
def made(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model folder and a release of four shards made from it."""
    root = tmp_path_factory.mktemp("made")
    save_random_model(root / "own", model_parts, qk_norm_groups=4, max_seq_len=77, norm_order="reordered")
    write_meta_model(root / "release", open_model_folder(root / "own"))
    return root


@pytest.fixture
def release(made: Path, tmp_path: Path) -> Path:
    """Return a release to change."""
    return Path(shutil.copytree(made / "release", tmp_path / "release"))


@pytest.fixture
def folder(release: Path) -> Path:
    """Return the folder of its weights."""
    return release / "models" / "1m"


def change(path: Path, work: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = torch.load(path, weights_only=True)
    work(tensors)
    torch.save(tensors, path)


def refusal(path: Path) -> str:
    with pytest.raises((CheckpointError, TokenizerError, VocabularyError)) as caught:
        open_model(path)
    return str(caught.value)


def test_release_is_found_by_its_root_or_its_model(release: Path, folder: Path) -> None:
    assert find_meta_model(release) == find_meta_model(folder) == folder
    assert find_meta_model(folder.parent) is None
    assert open_model(folder).decoder_config == open_model(release).decoder_config
    assert open_model(release).layout == "a release in Meta's layout (4 shards)"


def test_config_round_trip(made: Path, release: Path) -> None:
    assert open_model(release).decoder_config == open_model_folder(made / "own").decoder_config


def test_only_the_placeholder_is_renamed(made: Path, release: Path) -> None:
    ours = (made / "own" / "tokenizer.json").read_text()
    theirs = (release / "tokenizer" / "text_tokenizer.json").read_text()
    assert '"<image>"' not in theirs
    assert theirs == ours.replace('"<image>"', '"<reserved08707>"')
    assert open_model(release).tokenizer_json == ours
    both = '{"<image>": 1, "<reserved08707>": 2}'
    assert rename_placeholder(both, to_release=True) == rename_placeholder(both, to_release=False) == both


@pytest.mark.parametrize("nested", [True, False])
def test_params_of_both_forms_are_read(nested: bool, release: Path, folder: Path) -> None:
    """Read a release without our own file and with unfused projections, as downloaded."""
    (folder / "calumma.json").unlink()
    (folder / "consolidate_params.json").unlink()
    record = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({"model": record} if nested else record))
    for path in meta_shard_files(folder):
        change(path, _unfuse)
        change(path, lambda tensors: tensors.update({"rope.freqs": torch.ones(4)}))
    model = open_model(release)
    assert (model.decoder_config.max_seq_len, model.decoder_config.qk_norm_groups) == (4096, 4)
    assert model.decoder_config.norm_order == "reordered"


def _unfuse(tensors: dict[str, Tensor]) -> None:
    for layer in range(2):
        fused = tensors.pop(f"layers.{layer}.attention.wqkv.weight").split([16, 8, 8])
        for name, part in zip("qkv", fused, strict=True):
            tensors[f"layers.{layer}.attention.w{name}.weight"] = part.clone()
        first, third = tensors.pop(f"layers.{layer}.feed_forward.w13.weight").chunk(2)
        tensors[f"layers.{layer}.feed_forward.w1.weight"] = first.clone()
        tensors[f"layers.{layer}.feed_forward.w3.weight"] = third.clone()


def test_single_shard_may_be_numbered(made: Path, tmp_path: Path, model_parts: ModelComponents) -> None:
    save_random_model(tmp_path / "own", model_parts)
    write_meta_model(tmp_path / "release", open_model_folder(tmp_path / "own"))
    folder = find_meta_model(tmp_path / "release")
    assert folder is not None
    assert [path.name for path in meta_shard_files(folder)] == ["consolidated.pth"]
    (folder / "consolidated.pth").rename(folder / "consolidated.00.pth")
    assert open_meta_model(folder).layout == "a release in Meta's layout (one shard)"


def test_names_and_params_of_the_released_sizes() -> None:
    seven: dict[str, Any] = {
        "vocabulary_size": 65_536,
        "model_dim": 4096,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 32,
        "feed_forward_dim": 11_008,
    }
    assert meta_params(DecoderConfig(**seven), 1) == {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 32,
        "vocab_size": 65_536,
        "ffn_dim_multiplier": None,
        "multiple_of": 256,
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "qk_normalization": True,
        "swin_norm": False,
        "model_parallel_size": 1,
    }

    class Sized:
        def __init__(self, num_parameters: float) -> None:
            self.num_parameters = num_parameters

    names = [meta_model_name(Sized(size)) for size in (7.01e9, 34.3e9, 1.5e9, 9.4e7, 10)]  # type: ignore[arg-type]
    assert names == ["7b", "30b", "2b", "94m", "1m"]


@pytest.mark.parametrize("width", [48, 170, 171, 4000])
def test_any_feed_forward_dim_can_be_written(width: int, model_parts: ModelComponents, tmp_path: Path) -> None:
    save_random_model(tmp_path / "own", model_parts, feed_forward_dim=width)
    write_meta_model(tmp_path / "release", open_model_folder(tmp_path / "own"))
    assert open_model(tmp_path / "release").decoder_config.feed_forward_dim == width


def test_several_models_are_refused(release: Path, folder: Path) -> None:
    shutil.copytree(folder, release / "models" / "2m")
    assert refusal(release) == (f"{release} holds 2 models (1m, 2m); expected one. Name it: {folder}.")
    assert open_model(folder).decoder_config.max_seq_len == 77


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (["consolidated.02.pth"], "3 of 4 shards, and consolidated.02.pth is missing"),
        ([f"consolidated.0{number}.pth" for number in range(4)], "0 of 4 shards, and consolidated.00.pth is missing"),
    ],
)
def test_missing_shard_is_refused(missing: list[str], expected: str, release: Path, folder: Path) -> None:
    for name in missing:
        (folder / name).unlink()
    assert refusal(release) == (
        f"{folder} holds {expected}; expected consolidated.pth, or consolidated.00.pth and so on. "
        "Copy or download it again."
    )


def test_additional_shard_is_refused(release: Path, folder: Path) -> None:
    shutil.copy(folder / "consolidated.03.pth", folder / "consolidated.04.pth")
    assert "holds 5 of 4 shards, and consolidated.04.pth is one too many" in refusal(release)


def test_missing_unknown_and_misshapen_tensors_are_refused(release: Path, folder: Path) -> None:
    path = folder / "consolidated.01.pth"
    change(path, lambda tensors: tensors.update({"layers.0.extra": torch.ones(1)}))
    assert refusal(release).startswith(
        f"{path} holds the tensor layers.0.extra, unknown in a Chameleon release's shard; expected"
    )
    change(path, lambda tensors: tensors.pop("layers.0.extra"))
    wrong = {"layers.0.attention.wqkv.weight": torch.ones(30, 64)}
    change(path, lambda tensors: tensors.update(wrong))
    assert refusal(release) == (
        f"{path}: tensor layers.0.attention.wqkv.weight is [30, 64], but its config implies [32, "
        "64]. Copy both again from where they were written together."
    )
    change(path, lambda tensors: tensors.pop("layers.0.attention.wqkv.weight"))
    assert refusal(release).startswith(f"{path} lacks 3 tensors (layers.0.attention.wq.weight, ")


def test_shards_of_two_types_are_refused(release: Path, folder: Path) -> None:
    name = "output.weight"
    change(folder / "consolidated.02.pth", lambda tensors: tensors.update({name: tensors[name].half()}))
    assert refusal(release) == (
        f"{folder}: tensor {name} is of type float16 and float32; expected one type in all "
        "shards. Use shards that were saved together."
    )


@pytest.mark.parametrize(
    ("change_params", "expected"),
    [
        ({"n_heads": 7}, "its numbers do not fit together. model_dim=64 "),
        ({"dim": None}, "dim is null; expected an integer of at least 1."),
    ],
)
def test_invalid_params_are_refused(change_params: dict[str, Any], expected: str, release: Path, folder: Path) -> None:
    path = folder / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change_params))
    assert refusal(release).startswith(f"{path}: {expected}")


def test_release_with_tokenizers_elsewhere(
    made: Path, release: Path, folder: Path, model_parts: ModelComponents, tmp_path: Path
) -> None:
    shutil.move(release / "tokenizer", tmp_path / "elsewhere")
    assert refusal(release) == (
        f"{release / 'tokenizer'} lacks vqgan.yaml; expected the release's image tokenizer, "
        "vqgan.yaml and vqgan.ckpt. Use --tokenizers DIR if they are elsewhere."
    )
    model_parts.tokenizers.text.save(tmp_path / "own")
    model_parts.tokenizers.image.save(tmp_path / "own")
    for number, tokenizers in enumerate((tmp_path / "elsewhere", tmp_path / "own")):
        model, out = open_model(release, tokenizers), tmp_path / f"out{number}"
        convert_model(model, release, out, ConversionTarget(layout="calumma"))
        assert load_model(out).tokenizers.image.fingerprint == model_parts.tokenizers.image.fingerprint
    (tmp_path / "own" / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError) as caught:
        open_model(release, tmp_path / "own")
    assert str(caught.value) == (
        f"{tmp_path / 'own'} holds no text_tokenizer.json; expected the release's text tokenizer. "
        "Use --tokenizers DIR if it is elsewhere."
    )


def test_invalid_text_tokenizer_is_refused(release: Path) -> None:
    path = release / "tokenizer" / "text_tokenizer.json"
    path.write_text("{}")
    message = refusal(release)
    assert message.startswith(f"{path}: is not a tokenizer (")
    assert message.endswith("); expected the JSON of the tokenizers library. Copy it again.")


def test_tokenizer_of_another_vocabulary_is_refused(release: Path) -> None:
    other = TextTokenizer.train(["a red circle"] * 4, num_text=260, num_codes=32)
    other.save(release / "tokenizer")
    (release / "tokenizer" / "tokenizer.json").rename(release / "tokenizer/text_tokenizer.json")
    assert refusal(release) == (
        f"{release / 'models' / '1m'}: the image tokenizer has 16 codes, the vocabulary 32; "
        "expected the same number. Take the tokenizers that the decoder was trained with."
    )


def test_unrepresentable_models_are_refused(made: Path, model_parts: ModelComponents, tmp_path: Path) -> None:
    model = open_model_folder(made / "own")
    with pytest.raises(CheckpointError) as caught:
        write_meta_model(tmp_path / "out", model, 2)
    assert str(caught.value) == (
        f"{tmp_path / 'out'} has 4 groups of QK-norms, and 2 shards hold one norm each; expected a "
        "multiple of the groups. Use --shards 4."
    )
    with pytest.raises(CheckpointError) as caught:
        write_meta_model(tmp_path / "out", replace(model, decoder_config=replace(model.decoder_config, qk_norm="rms")))
    assert str(caught.value) == (
        f'{tmp_path / "out"} has qk_norm = "rms"; expected "layer" for --to meta. Use --to calumma or --to qwen3.'
    )
    with pytest.raises(CheckpointError) as caught:
        write_meta_model(
            tmp_path / "out", replace(model, decoder_config=replace(model.decoder_config, qk_norm="none"))
        )
    assert str(caught.value) == (
        f'{tmp_path / "out"} has qk_norm = "none"; expected "layer" for --to meta. Use --to calumma.'
    )
    assert list(tmp_path.iterdir()) == []
