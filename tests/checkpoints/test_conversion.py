"""Converting: which layout a folder has, and that nothing is ever left half written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.model_folder import ModelParts, load_model
from calumma.errors import CalummaError, CheckpointError, OutputError
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from tests.checkpoints.drawn import bytes_of, save_drawn
from tests.checkpoints.test_meta_torch_pickle import Bomb
from tests.images import noise

CALUMMA = ConversionTarget(layout="calumma")
TOKENIZERS = ConversionTarget(layout="tokenizers")


@pytest.fixture(scope="module")
def made(model_parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in several files, as a release of four shards, and as Qwen3."""
    root = tmp_path_factory.mktemp("made")
    save_drawn(root / "one", model_parts, qk_norm_groups=4)
    few = ConversionTarget(layout="calumma", max_shard_bytes=100_000)
    convert_model(open_model(root / "one"), root, root / "hf", few)
    convert_model(open_model(root / "one"), root, root / "meta", ConversionTarget(layout="meta"))
    save_drawn(root / "rms", model_parts, qk_norm="rms")
    convert_model(open_model(root / "rms"), root, root / "qwen3", ConversionTarget(layout="qwen3"))
    return root


def test_bytes_are_told_as_they_are_written(made: Path, tmp_path: Path) -> None:
    for layout in ("calumma", "meta"):
        told: list[int] = []
        model = open_model(made / "hf")
        convert_model(
            model, made / "hf", tmp_path / layout, ConversionTarget(layout=layout), told.append
        )
        # Spelling norms out, or giving every shard its own, takes a little more.
        assert model.num_bytes <= sum(told) < 1.05 * model.num_bytes
        assert load_model(tmp_path / "calumma").tokenizers.has_image_decoder


def test_tokenizers_are_the_same_bytes_whichever_layout_their_model_has(
    made: Path, model_parts: ModelParts, tmp_path: Path
) -> None:
    for place, name in enumerate(("one", "one", "hf", "meta", "rms", "qwen3")):
        told: list[int] = []
        model, out = open_model(made / name), tmp_path / str(place)
        convert_model(model, made / name, out, TOKENIZERS, told.append)
        assert sum(told) == model.num_vq_bytes
        assert bytes_of(out) == bytes_of(tmp_path / "0")
    both = Tokenizers.load(tmp_path / "0")
    expected = model_parts.tokenizers
    assert both.fingerprints == expected.fingerprints
    assert both.text.vocabulary == expected.text.vocabulary


@pytest.mark.parametrize("layout", ["calumma", "meta"])
def test_tokenizers_without_a_decoder_are_the_model_s_own(
    layout: Any, model_parts: ModelParts, tmp_path: Path
) -> None:
    save_drawn(tmp_path / "blind", model_parts, draws=False)
    source = tmp_path / "source"
    convert_model(open_model(tmp_path / "blind"), source, source, ConversionTarget(layout=layout))
    for name in ("first", "again"):
        convert_model(open_model(source), source, tmp_path / name, TOKENIZERS)
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "again")
    found, own = (
        ImageTokenizer.load(tmp_path / "first"),
        load_model(tmp_path / "blind").tokenizers.image,
    )
    assert not found.has_decoder
    assert found.fingerprint == own.fingerprint != model_parts.tokenizers.image.fingerprint
    assert found.encode_image(noise(1)) == model_parts.tokenizers.image.encode_image(noise(1))


def test_an_empty_folder_is_taken_and_another_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert_model(open_model(made / "hf"), made / "hf", tmp_path / "out", CALUMMA)
    before = bytes_of(tmp_path / "out")
    with pytest.raises(OutputError) as caught:
        convert_model(open_model(made / "hf"), made / "hf", tmp_path / "out", CALUMMA)
    assert str(caught.value) == (
        f"{tmp_path / 'out'} holds other things; expected a folder that is not there yet, or is "
        "empty. Choose another, or delete it."
    )
    assert bytes_of(tmp_path / "out") == before


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_model(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds neither config.json nor params.json nor models/*/params.json; expected a "
        "model folder in Hugging Face's layout, or a release in Meta's. Name the folder itself."
    )


def test_shards_are_meta_s_only(made: Path, tmp_path: Path) -> None:
    target = ConversionTarget(layout="calumma", num_shards=4)
    with pytest.raises(CheckpointError) as caught:
        convert_model(open_model(made / "hf"), made / "hf", tmp_path / "out", target)
    assert str(caught.value) == (
        "--shards 4 with --to calumma; expected it with --to meta only. How large files of the other "
        "layouts are, --max-shard-size says."
    )


def _cut(pattern: str, kept: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = sorted(folder.glob(pattern))[0]
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])

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
        "hf", _cut("model-00002*", 0.7), "is no whole safetensors file (it has",
    ),
    "a safetensors file cut in its header": (
        "hf", _cut("model-00001*", 0.001), "is no whole safetensors file (its header is cut short",
    ),
    "a missing file of the index": ("hf", _unlink("model-00002*"), "lacks the file model-00002-of"),
    "a missing tensor": ("hf", _tensor("lm_head.weight", None), "lm_head.weight; expected the files"),
    "an unknown tensor": ("hf", _tensor("lm_head.bias", (3,)), "holds the tensor lm_head.bias,"),
    "a wrong shape": ("hf", _tensor("lm_head.weight", (3, 64)), "tensor lm_head.weight is [3, 64]"),
    "heads that do not divide": (
        "hf", _config("config.json", num_attention_heads=7), "does not divide over num_heads=7",
    ),
    "another kind": (
        "hf", _config("config.json", model_type="llama"), "describes a model of type 'llama'",
    ),
    "stretched positions": (
        "hf", _config("config.json", rope_scaling={"type": "linear"}), "positions of type 'linear'",
    ),
    "fewer rows than ids": (
        "hf", _config("config.json", vocab_size=100), "is [324, 64], but its config wants [100, 64]"
    ),
    "cut JSON": ("hf", _cut("config.json", 0.5), "not valid JSON"),
    "a cut VQ decoder": ("hf", _cut("vq_decoder.*", 0.5), "is no whole safetensors file"),
    "a pickle with code": ("meta", _bomb("models/*/*.02.pth"), "holds pickled objects that are no"),
    "a VQ-GAN with code": ("meta", _bomb("tokenizer/*.ckpt"), "holds pickled objects that are no"),
    "a truncated shard": ("meta", _cut("models/*/*.03.pth", 0.9), "is no whole file of torch.save"),
    "a truncated VQ-GAN": ("meta", _cut("tokenizer/*.ckpt", 0.5), "is no whole file of torch.save"),
    "a missing shard": ("meta", _unlink("models/*/*.01.pth"), "01.pth is not among them"),
    "no text tokenizer": ("meta", _unlink("tokenizer/text*"), "holds no text_tokenizer.json"),
    "a cut image tokenizer": (
        "qwen3", _cut("image_tokenizer/*.safetensors", 0.9), "is no whole safetensors file",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "damage", "told"), BREAKS.values(), ids=BREAKS)
def test_what_is_broken_is_refused_in_one_line_and_nothing_is_written(
    source: str, damage: Callable[[Path], None], told: str, made: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(made / source, tmp_path / source))
    damage(broken)
    for layout in ("calumma", "meta"):
        with pytest.raises(CalummaError) as caught:
            convert_model(
                open_model(broken), broken, tmp_path / "out", ConversionTarget(layout=layout)
            )
        message = str(caught.value)
        assert told in message
        assert message.startswith(str(broken))
        assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == [source]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutputError("full")])
@pytest.mark.parametrize("layout", ["calumma", "meta", "tokenizers"])
def test_what_stops_half_way_leaves_nothing(
    layout: Any, error: BaseException, made: Path, tmp_path: Path
) -> None:
    def stop(num_bytes: int) -> None:
        raise error

    target = ConversionTarget(layout=layout)
    with pytest.raises(type(error)):
        convert_model(open_model(made / "hf"), made / "hf", tmp_path / "out", target, stop)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_conversion_left_is_cleared_by_the_next(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made / "meta", tmp_path / "out.tmp")
    convert_model(open_model(made / "hf"), made / "hf", out, CALUMMA)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert bytes_of(out) == bytes_of(made / "one")
