"""Statistics of the data mixture of a training config, and pages of its packed sequences."""

from collections.abc import Mapping
from pathlib import Path

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.batches.mixture import format_mixture_stats, measure_mixture
from calumma.batches.modality_balance import format_balance
from calumma.checkpoints.model_folder import load_model
from calumma.cli.inspect.inspect_pages import sequences_page
from calumma.documents.document import Image
from calumma.documents.preferences import read_preferences
from calumma.files import write_text
from calumma.shards.manifest import require_vocabulary
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from calumma.toml_config import build_config, read_toml
from calumma.train.config import PretrainConfig
from calumma.train.config_dpo import DPOTrainConfig
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.finetuning import mixture, modality_balance

_SEQ_LEN = 1024
"""Tokens per packed sequence of a page of shards, unless an image is longer."""

_NUM_MEASURED, _NUM_SHOWN = 256, 20
"""Packed sequences that are measured for each stage, and shown on a page of the last stage."""


def config_lines(path: Path, page: Path | None) -> list[str]:
    """Measure the mixture of each stage of a training config, and write a page of sequences.

    Args:
        path: the TOML file of `calumma pretrain` or `calumma finetune`.
        page: the HTML file to write, or None.

    Raises:
        CalummaError: the config, its shards or its tokenizers cannot be read.
    """
    if "dpo" in read_toml(path):
        return _dpo_lines(path)
    config, stages = _stages(path)
    lines = [f"{path}: a config of {' and '.join(stages)} on {config.shards}"]
    loader = PackedLoader(ShardReader(config.shards), config.data)
    for name, weights in stages.items():
        loader.set_mixture(weights)
        lines += [f"{name}:", *format_mixture_stats(measure_mixture(loader, _NUM_MEASURED))]
    if isinstance(config, FinetuneConfig):
        lines += format_balance(modality_balance(config))
    if page is not None:
        if isinstance(config, PretrainConfig):
            tokenizers = Tokenizers.load(config.tokenizers)
        else:
            tokenizers = load_model(config.model).tokenizers
        write_text(page, sequences_page(loader, tokenizers, _NUM_SHOWN, f"{path.name}: {name}"))
        lines.append(f"{_NUM_SHOWN} packed sequences of {name} are shown in {page}")
    return lines


def write_shards_page(reader: ShardReader, folder: Path, page: Path) -> str:
    """Write a page of packed sequences of shards, sampled uniformly.

    Args:
        reader: the shards.
        folder: the tokenizers that the shards were built with.
        page: the HTML file to write.

    Returns:
        A line about the page.

    Raises:
        CalummaError: the tokenizers cannot be read, or the vocabulary is another one.
    """
    tokenizers = Tokenizers.load(folder)
    require_vocabulary(reader.folder, reader.manifest.vocabulary, tokenizers.text.vocabulary)
    seq_len = max(_SEQ_LEN, reader.manifest.vocabulary.max_image_tokens(reader.manifest.codes_per_image))
    loader = PackedLoader(reader, DataConfig(seq_len=seq_len, global_batch_size=_NUM_SHOWN, pack_window=1))
    sources = reader.manifest.sources
    loader.set_mixture({name: float(reader.num_sequences(name)) for name in sources})
    write_text(page, sequences_page(loader, tokenizers, _NUM_SHOWN, str(reader.folder)))
    return f"{_NUM_SHOWN} packed sequences of {seq_len} tokens are shown in {page}"


def _dpo_lines(path: Path) -> list[str]:
    """Return counts of the preference pairs of a DPO config."""
    config = build_config(DPOTrainConfig, read_toml(path), str(path))
    pairs = [pair for file in config.dpo.pairs for pair in read_preferences(file)]
    num_with_images = [
        sum(any(isinstance(part, Image) for part in answer) for answer in answers)
        for answers in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    ]
    return [
        f"{path}: a DPO config that starts from {config.model}",
        f"{len(pairs):,} pairs; images in {num_with_images[0]:,} chosen and {num_with_images[1]:,} rejected answers",
    ]


def _stages(path: Path) -> tuple[PretrainConfig | FinetuneConfig, dict[str, Mapping[str, float]]]:
    tree = read_toml(path)
    if isinstance(tree.get("model"), str) or {"weights", "categories"} & tree.keys():
        tuning = build_config(FinetuneConfig, tree, str(path))
        return tuning, {"fine-tuning": mixture(tuning, ShardReader(tuning.shards))}
    config = build_config(PretrainConfig, tree, str(path))
    config = config.with_default_weights(ShardReader(config.shards).manifest)
    stages: dict[str, Mapping[str, float]] = {"stage one": config.stage_one.weights}
    if config.stage_two is not None:
        stages["stage two"] = config.stage_two_weights
    return config, stages
