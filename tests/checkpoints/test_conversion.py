"""Tests of conversion: detection of layouts, and no partial output."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.model_folder import ModelComponents, load_model
from calumma.errors import CalummaError, CheckpointError, OutputError
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from tests.checkpoints.random_models import folder_bytes, save_random_model
from tests.checkpoints.test_meta_torch_pickle import Bomb
from tests.images import noise

CALUMMA = ConversionTarget(layout="calumma")
TOKENIZERS = ConversionTarget(layout="tokenizers")


@pytest.fixture(scope="module")
def made(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert one model to several files, to a release of four shards, and to Qwen3."""
    root = tmp_path_factory.mktemp("made")
    save_random_model(root / "one", model_parts, qk_norm_groups=4)
    few = ConversionTarget(layout="calumma", max_shard_bytes=100_000)
    convert_model(open_model(root / "one"), root, root / "hf", few)
    convert_model(open_model(root / "one"), root, root / "meta", ConversionTarget(layout="meta"))
    save_random_model(root / "rms", model_parts, qk_norm="rms")
    convert_model(open_model(root / "rms"), root, root / "qwen3", ConversionTarget(layout="qwen3"))
    return root


def test_on_write_reports_bytes(made: Path, tmp_path: Path) -> None:
    for layout in ("calumma", "meta"):
        written: list[int] = []
        model = open_model(made / "hf")
        convert_model(model, made / "hf", tmp_path / layout, ConversionTarget(layout=layout), written.append)
        # Repeated QK-norms take a little more.
        assert model.num_bytes <= sum(written) < 1.05 * model.num_bytes
        assert load_model(tmp_path / "calumma").tokenizers.has_image_decoder


def test_tokenizers_are_the_same_bytes_from_any_layout(
    made: Path, model_parts: ModelComponents, tmp_path: Path
) -> None:
    for number, name in enumerate(("one", "one", "hf", "meta", "rms", "qwen3")):
        written: list[int] = []
        model, out = open_model(made / name), tmp_path / str(number)
        convert_model(model, made / name, out, TOKENIZERS, written.append)
        assert sum(written) == model.num_vq_bytes
        assert folder_bytes(out) == folder_bytes(tmp_path / "0")
    both = Tokenizers.load(tmp_path / "0")
    expected = model_parts.tokenizers
    assert both.fingerprints == expected.fingerprints
    assert both.text.vocabulary == expected.text.vocabulary


@pytest.mark.parametrize("layout", ["calumma", "meta"])
def test_tokenizers_without_a_decoder_stay_without(layout: Any, model_parts: ModelComponents, tmp_path: Path) -> None:
    save_random_model(tmp_path / "blind", model_parts, has_image_decoder=False)
    source = tmp_path / "source"
    convert_model(open_model(tmp_path / "blind"), source, source, ConversionTarget(layout=layout))
    for name in ("first", "again"):
        convert_model(open_model(source), source, tmp_path / name, TOKENIZERS)
    assert folder_bytes(tmp_path / "first") == folder_bytes(tmp_path / "again")
    found, own = (ImageTokenizer.load(tmp_path / "first"), load_model(tmp_path / "blind").tokenizers.image)
    assert not found.has_decoder
    assert found.fingerprint == own.fingerprint != model_parts.tokenizers.image.fingerprint
    assert found.encode_image(noise(1)) == model_parts.tokenizers.image.encode_image(noise(1))


def test_output_folder_must_be_empty(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert_model(open_model(made / "hf"), made / "hf", tmp_path / "out", CALUMMA)
    before = folder_bytes(tmp_path / "out")
    with pytest.raises(OutputError) as caught:
        convert_model(open_model(made / "hf"), made / "hf", tmp_path / "out", CALUMMA)
    assert str(caught.value) == (
        f"{tmp_path / 'out'} is not empty; expected a folder that does not exist or is empty. "
        "Choose another, or delete it."
    )
    assert folder_bytes(tmp_path / "out") == before


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_model(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds neither config.json nor params.json nor models/*/params.json; expected "
        "a model folder in Hugging Face's layout, or a release in Meta's. Name the folder itself."
    )


def test_num_shards_needs_meta_layout(made: Path, tmp_path: Path) -> None:
    target = ConversionTarget(layout="calumma", num_shards=4)
    with pytest.raises(CheckpointError) as caught:
        convert_model(open_model(made / "hf"), made / "hf", tmp_path / "out", target)
    assert str(caught.value) == (
        "--shards 4 with --to calumma; expected it with --to meta only. Use --max-shard-size for the other layouts."
    )


def _cut(pattern: str, fraction: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = sorted(folder.glob(pattern))[0]
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])

    return damage


def _bomb(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = sorted(folder.glob(pattern))[0]
        torch.save({"a": Bomb(folder.parent / "ran")}, path)

    return damage


def _unlink(pattern: str) -> Callable[[Path], None]:
    return lambda folder: sorted(folder.glob(pattern))[0].unlink()


def _config(pattern: str, **change: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = sorted(folder.glob(pattern))[0]
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return damage


def _tensor(name: str, shape: tuple[int, ...] | None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        path = folder / index.get(name, sorted(index.values())[0])
        tensors = {n: t for n, t in load_file(path).items() if n != name}
        save_file(tensors | ({name: torch.ones(shape)} if shape else {}), path)

    return damage


BREAKS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a truncated safetensors file": (
        "hf", _cut("model-00002*", 0.7), "is not a complete safetensors file (",
    ),
    "a safetensors file cut in its header": (
        "hf", _cut("model-00001*", 0.001), "is not a complete safetensors file (",
    ),
    "a missing file of the index": ("hf", _unlink("model-00002*"), "lacks the file model-00002-of"),
    "a missing tensor": ("hf", _tensor("lm_head.weight", None), "as lm_head.weight; expected the"),
    "an unknown tensor": ("hf", _tensor("lm_head.bias", (3,)), "holds the tensor lm_head.bias,"),
    "a wrong shape": ("hf", _tensor("lm_head.weight", (3, 64)), "tensor lm_head.weight is [3, 64]"),
    "indivisible heads": (
        "hf", _config("config.json", num_attention_heads=7), "is not a multiple of num_heads=7",
    ),
    "another kind": (
        "hf", _config("config.json", model_type="llama"), "has model_type 'llama'",
    ),
    "scaled rotary embeddings": (
        "hf", _config("config.json", rope_scaling={"type": "linear"}), "of type 'linear'",
    ),
    "embedding smaller than vocabulary": (
        "hf", _config("config.json", vocab_size=100), "[324, 64], but its config implies [100, 64]"
    ),
    "cut JSON": ("hf", _cut("config.json", 0.5), "not valid JSON"),
    "a cut VQ decoder": ("hf", _cut("vq_decoder.*", 0.5), "is not a complete safetensors file"),
    "a pickle with code": ("meta", _bomb("models/*/*.02.pth"), "holds code or pickled objects"),
    "a VQGAN with code": ("meta", _bomb("tokenizer/*.ckpt"), "holds code or pickled objects"),
    "a truncated shard": ("meta", _cut("models/*/*.03.pth", 0.9), "is truncated, or not a file of"),
    "a truncated VQGAN": ("meta", _cut("tokenizer/*.ckpt", 0.5), "is truncated, or not a file of"),
    "a missing shard": ("meta", _unlink("models/*/*.01.pth"), "01.pth is missing"),
    "no text tokenizer": ("meta", _unlink("tokenizer/text*"), "holds no text_tokenizer.json"),
    "a cut image tokenizer": (
        "qwen3", _cut("image_tokenizer/*.safetensors", 0.9), "is not a complete safetensors file",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "damage", "expected"), BREAKS.values(), ids=BREAKS)
def test_broken_source_is_refused_in_one_line_and_nothing_is_written(
    source: str, damage: Callable[[Path], None], expected: str, made: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(made / source, tmp_path / source))
    damage(broken)
    for layout in ("calumma", "meta"):
        with pytest.raises(CalummaError) as caught:
            convert_model(open_model(broken), broken, tmp_path / "out", ConversionTarget(layout=layout))
        message = str(caught.value)
        assert expected in message
        assert message.startswith(str(broken))
        assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == [source]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutputError("full")])
@pytest.mark.parametrize("layout", ["calumma", "meta", "tokenizers"])
def test_interrupted_conversion_leaves_nothing(layout: Any, error: BaseException, made: Path, tmp_path: Path) -> None:
    def stop(num_bytes: int) -> None:
        raise error

    target = ConversionTarget(layout=layout)
    with pytest.raises(type(error)):
        convert_model(open_model(made / "hf"), made / "hf", tmp_path / "out", target, stop)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_conversion_are_cleared(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made / "meta", tmp_path / "out.tmp")
    convert_model(open_model(made / "hf"), made / "hf", out, CALUMMA)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert folder_bytes(out) == folder_bytes(made / "one")
