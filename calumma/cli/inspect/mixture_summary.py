"""What a config's mixture comes to, for `calumma inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.batches.mixture_stats import format_mixture_stats, measure_mixture
from calumma.batches.modality_balance import format_balance
from calumma.cli.inspect.sequences_page import rows_page
from calumma.documents.document import Image
from calumma.documents.preferences import read_preferences
from calumma.files import write_text
from calumma.shards.manifest import require_vocabulary
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from calumma.toml_config import build_config, read_toml
from calumma.train.config import PretrainConfig, TrainConfig
from calumma.train.config_dpo import DPOTrainConfig
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.finetune import balance, mixture

ROW_LENGTH = 1024
"""Of a page of shards, unless an image is longer."""

SURVEYED, SHOWN = 256, 20
"""Rows of each stage that are counted, and rows of the last stage that a page shows."""


def mixture_lines(path: Path, page: Path | None) -> list[str]:
    """Count over rows of each stage of a training config, and draw some of them.

    Args:
        path: the TOML file of `calumma pretrain` or `calumma finetune`.
        page: an HTML file to write, or None.

    Raises:
        CalummaError: the config, its shards or its tokenizers cannot be read.
    """
    if "preference" in read_toml(path):
        return _pairs_lines(path)
    config, stages = _stages(path)
    lines = [f"{path}: a config of {' and '.join(stages)} on {config.shards}"]
    stream = PackedLoader(ShardReader(config.shards), config.data)
    for name, weights in stages.items():
        stream.set_mixture(weights)
        lines += [f"{name}:", *format_mixture_stats(measure_mixture(stream, SURVEYED))]
    if isinstance(config, FinetuneConfig):
        lines += format_balance(balance(config))
    if page is not None:
        both = Tokenizers.load(config.tokenizers)
        write_text(page, rows_page(stream, both, SHOWN, f"{path.name}: rows of {name}"))
        lines.append(f"{SHOWN} rows of {name} are drawn in {page}")
    return lines


def shard_page(reader: ShardReader, tokenizers: Path, page: Path) -> str:
    """Draw rows of all that shards hold, each sequence as likely as any other.

    Args:
        reader: the shards.
        tokenizers: the folder of those that they were made with.
        page: an HTML file to write.

    Returns:
        A line that says what was drawn.

    Raises:
        CalummaError: the tokenizers cannot be read, or are others.
    """
    both = Tokenizers.load(tokenizers)
    require_vocabulary(reader.folder, reader.manifest.vocabulary, both.text.vocabulary)
    length = max(ROW_LENGTH, reader.manifest.codes_per_image + 2)
    stream = PackedLoader(
        reader, DataConfig(seq_len=length, global_batch_size=SHOWN, pack_window=1)
    )
    sources = reader.manifest.sources
    stream.set_mixture({name: float(reader.num_sequences(name)) for name in sources})
    write_text(page, rows_page(stream, both, SHOWN, f"{reader.folder}: rows"))
    return f"{SHOWN} rows of {length} ids are drawn in {page}"


def _pairs_lines(path: Path) -> list[str]:
    """What the pairs of a config of preference tuning are."""
    config = build_config(DPOTrainConfig, read_toml(path), str(path))
    found = [pair for file in config.dpo.pairs for pair in read_preferences(file)]
    drawn = [
        sum(any(isinstance(part, Image) for part in answer) for answer in answers)
        for answers in ([pair.chosen for pair in found], [pair.rejected for pair in found])
    ]
    return [
        f"{path}: a config of preference tuning from {config.model}",
        f"{len(found):,} pairs; pictures in {drawn[0]:,} chosen and {drawn[1]:,} rejected answers",
    ]


def _stages(path: Path) -> tuple[TrainConfig, dict[str, Mapping[str, float]]]:
    tree = read_toml(path)
    if "stage_one" not in tree:
        tuning = build_config(FinetuneConfig, tree, str(path))
        return tuning, {"fine-tuning": mixture(tuning, ShardReader(tuning.shards))}
    config = build_config(PretrainConfig, tree, str(path))
    one, two = config.stage_one.weights, config.stage_two_weights
    return config, {"stage one": one, "stage two": two}
