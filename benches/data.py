"""Measure the data pipeline: loader throughput, shard building, and peak memory.

    python benches/data.py             # minutes
    python benches/data.py --quick     # small, seconds

Loader: tokens per second of packed sequences of 4,096 tokens from shards of captioned images (1,026
image tokens) and texts, in this process and with two workers; peer: random access of grain to
sequences of fixed length, if grain is installed. Build: images per second compared with the same
network on prepared pixels, and the fraction of time spent on writing and hashing. Memory: the peak
of a build and of reading an epoch, for a small and a large corpus and for many small shards.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.measure import (
    OURS,
    child_peak_memory_bytes,
    describe_machine,
    format_result,
    median_seconds,
    time_interleaved,
)
from calumma.batches.loader import DataConfig, PackedLoader
from calumma.batches.prefetch import PrefetchLoader
from calumma.documents.document import Document, Image, Text
from calumma.documents.writers import write_parquet
from calumma.shards.encode import DocumentEncoder
from calumma.shards.manifest import Manifest, encoding_fingerprint, write_manifest
from calumma.shards.reader import ShardReader
from calumma.shards.shard_builder import ShardBuilder, ShardWriter
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer, image_to_pixels
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from calumma.vocabulary import Vocabulary

SEQ_LEN, BATCH_SIZE = 4096, 16
WORDS = ("the", "red", "green", "blue", "small", "large", "circle", "bird", "boat", "under")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaders = loader_throughput(folder, 400 if args.quick else 6000, args.rounds)
        ours: dict[str, float] = loaders.pop(OURS)
        ours |= encode_throughput(folder, 32 if args.quick else 256, 64 if args.quick else 256)
        small, factor = (40, 5) if args.quick else (500, 100)
        ours |= memory_growth(folder, small, factor)
    print(format_result("data", {OURS: ours, **loaders}, describe_machine(threads=1), quick=args.quick))


def loader_throughput(folder: Path, num_sequences: int, num_rounds: int) -> dict[str, dict[str, float]]:
    """Return the tokens per second of each loader."""
    reader = synthetic_shards(folder / "loader", num_sequences)
    config = DataConfig(seq_len=SEQ_LEN, global_batch_size=BATCH_SIZE)
    plain, prefetching = PackedLoader(reader, config), PrefetchLoader(reader, config, num_workers=2)
    sides: dict[str, Callable[[], None]] = {}
    for name, one in (("here", plain), ("workers", prefetching)):
        one.set_mixture(dict.fromkeys(reader.manifest.sources, 1.0))
        one.next()
        sides[name] = batches_of(one)
    if (peer := grain_loader(reader)) is not None:
        sides["grain"] = peer
    seconds = median_seconds(time_interleaved(sides, num_rounds=num_rounds))
    prefetching.close()
    tokens = BATCHES * BATCH_SIZE * SEQ_LEN
    rates = {name: tokens / value for name, value in seconds.items()}
    sides = {
        OURS: {
            "tokens_per_second": rates["here"],
            "tokens_per_second_two_workers": rates["workers"],
            "non_padding_fraction": float(np.mean([plain.next().non_padding_fraction for _ in range(8)])),
        }
    }
    if "grain" in rates:
        sides["grain"] = {"tokens_per_second": rates["grain"]}
    return sides


BATCHES = 16


def batches_of(loader: PackedLoader) -> Callable[[], None]:
    """Return a function that takes `BATCHES` batches."""

    def work() -> None:
        for _ in range(BATCHES):
            loader.next()

    return work


def grain_loader(reader: ShardReader) -> Callable[[], None] | None:
    """Return the same function for grain: shuffled sequences of fixed length, not packed."""
    try:
        import grain
    except ImportError:
        return None
    ids = np.concatenate([reader.read(number)[0] for number in range(len(reader))])
    num_rows = len(ids) // (SEQ_LEN + 1)

    def build_row(number: int) -> dict[str, np.ndarray]:
        cut = ids[number * (SEQ_LEN + 1) : (number + 1) * (SEQ_LEN + 1)]
        document_ids = np.cumsum(cut[:-1] == 0)
        return {
            "input_ids": cut[:-1],
            "labels": cut[1:],
            "loss_mask": np.ones(SEQ_LEN, dtype=bool),
            "document_ids": document_ids,
            "position_ids": np.arange(SEQ_LEN),
        }

    data = grain.MapDataset.range(num_rows).shuffle(seed=0).repeat().map(build_row).batch(BATCH_SIZE)
    indices = iter(range(1 << 40))

    def work() -> None:
        for _ in range(BATCHES):
            data[next(indices)]

    return work


def synthetic_shards(folder: Path, num_sequences: int, *, sequences_per_shard: int = 500) -> ShardReader:
    """Write shards of captioned images of 1,024 codes and of texts of 30 to 6,000 tokens."""
    vocabulary = Vocabulary.release()
    folder.mkdir()
    random = np.random.default_rng(0)
    writer, shards = ShardWriter(vocabulary), []
    for number in range(num_sequences):
        num_text = int(random.lognormal(6, 1)) + 30 if number % 2 else int(random.integers(5, 60))
        text = random.integers(vocabulary.text.start, vocabulary.text.stop, min(num_text, 6000))
        ids = [vocabulary.bos, *text.tolist()]
        if number % 2 == 0:
            codes = random.integers(4, 8196, 1024).tolist()
            ids += [vocabulary.begin_image, *codes, vocabulary.end_image]
        ids.append(vocabulary.eos)
        writer.add(ids, [True] * len(ids), ("pairs", "text")[number % 2])
        if len(writer.offsets) == sequences_per_shard or number == num_sequences - 1:
            shards.append(writer.write(folder, f"shard-{len(shards):05d}"))
            writer = ShardWriter(vocabulary)
    Manifest(vocabulary=vocabulary, fingerprint="synthetic", fingerprints={}, shards=shards).save(folder)
    return ShardReader(folder)


def random_tokenizers(resolution: int) -> Tokenizers:
    """Return a text tokenizer, and a narrow image tokenizer with random weights."""
    torch.manual_seed(0)
    config = VQConfig(
        resolution=resolution,
        base_channels=32,
        channel_multipliers=(1, 1, 2, 2),
        num_res_blocks=1,
        latent_channels=16,
        code_dim=8,
        num_codes=256,
    )
    text = TextTokenizer.train([" ".join(WORDS)] * 20, num_text=270, num_codes=256)
    return Tokenizers(text=text, image=ImageTokenizer(VQModel(config)))


def caption_and_jpeg(number: int, side: int) -> Document:
    """Return a document of a caption and a JPEG of smooth noise."""
    random = np.random.default_rng(number)
    small = PIL.Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
    file = io.BytesIO()
    small.resize((side * 3 // 2, side)).save(file, "JPEG", quality=90)
    words = random.choice(WORDS, 20)
    parts = (Text(f"{number} {' '.join(words)}"), Image(data=file.getvalue()))
    return Document(id=str(number), source="pairs", content=parts)


def encode_throughput(folder: Path, count: int, resolution: int) -> dict[str, float]:
    """Return the images per second of a build, compared with the bare network."""
    tokenizers = random_tokenizers(resolution)
    documents = [caption_and_jpeg(number, resolution) for number in range(count)]
    pixels = torch.stack([image_to_pixels(d.images[0].open(), resolution) for d in documents])

    def encode_pixels() -> None:
        for start in range(0, count, 32):
            tokenizers.image.encode(pixels[start : start + 32])

    def build() -> None:
        encoder = DocumentEncoder(tokenizers, decode_threads=1)
        build_shard(Path(tempfile.mkdtemp(dir=folder)), encoder, documents)

    seconds = time_interleaved({"network": encode_pixels, "build": build}, num_rounds=3, num_warmups=1)
    median = median_seconds(seconds)
    return {
        "images_per_second": count / median["build"],
        "fraction_of_network_speed": median["network"] / median["build"],
        "write_and_hash_fraction": writing_seconds(folder, tokenizers, documents) / median["build"],
    }


def build_shard(out: Path, encoder: DocumentEncoder, documents: list[Document]) -> None:
    """Build one shard of the documents, and its manifest."""
    fingerprints = encoder.tokenizers.fingerprints
    builder = ShardBuilder(encoder, out, encoding_fingerprint(fingerprints))
    shard = builder.build("shard-00000", documents).shard
    write_manifest(out, encoder.tokenizers.text.vocabulary, fingerprints, [shard])


def writing_seconds(folder: Path, tokenizers: Tokenizers, documents: list[Document]) -> float:
    """Return the seconds of a build whose documents are encoded already: hash and write only."""
    encoder = DocumentEncoder(tokenizers, decode_threads=1)
    encoded = list(encoder.encode_each(documents))
    encoder.encode_each = lambda group: iter(encoded)  # type: ignore[method-assign,assignment]
    started = time.perf_counter()
    build_shard(Path(tempfile.mkdtemp(dir=folder)), encoder, documents)
    return time.perf_counter() - started


def memory_growth(folder: Path, small: int, factor: int) -> dict[str, float]:
    """Return peak memory for a small and a large corpus, and their ratios."""
    peaks: dict[str, float] = {}
    tokenizers = random_tokenizers(16)
    tokenizers.text.save(folder / "tok")
    tokenizers.image.save(folder / "tok")
    for name, count in (("small", small), ("large", small * factor)):
        docs, out = folder / f"{name}.parquet", folder / name
        write_parquet(docs, (text_document(number) for number in range(count)))
        command = [sys.executable, "-m", "calumma", "build-shards", str(docs), "--out", str(out)]
        command += ["--tokenizers", str(folder / "tok"), "--workers", "1"]
        peaks[f"build_peak_bytes_{name}"] = float(child_peak_memory_bytes(command))
        peaks[f"loader_peak_bytes_{name}"] = loader_peak_bytes(out)
        many_shards = folder / f"{name}-many-shards"
        synthetic_shards(many_shards, count // 10, sequences_per_shard=2)
        peaks[f"many_shards_loader_peak_bytes_{name}"] = loader_peak_bytes(many_shards)
    for measure in ("build_peak_bytes", "loader_peak_bytes", "many_shards_loader_peak_bytes"):
        peaks[f"{measure}_ratio"] = peaks[f"{measure}_large"] / peaks[f"{measure}_small"]
    return {**peaks, "num_documents_ratio": float(factor)}


def loader_peak_bytes(folder: Path) -> float:
    """Return the peak memory in bytes of a process that reads one epoch of shards."""
    done = subprocess.run([sys.executable, "-c", _READ, str(folder)], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


_READ = """
import sys
from pathlib import Path
from calumma.batches.loader import DataConfig, PackedLoader
from calumma.shards.reader import ShardReader
reader = ShardReader(Path(sys.argv[1]))
loader = PackedLoader(reader, DataConfig(seq_len=2048, global_batch_size=8))
loader.set_mixture(dict.fromkeys(reader.manifest.sources, 1.0))
while sum(loader.state.sequences_drawn.values()) < len(reader):
    loader.next()
[line] = [l for l in open("/proc/self/status") if l.startswith("VmHWM")]
print(int(line.split()[1]) * 1024)
"""


def text_document(number: int) -> Document:
    """Return a document of 300 words; one in fifty has a small image."""
    words = np.random.default_rng(number).choice(WORDS, 300)
    text = Text(f"{number} {' '.join(words)}")
    parts: tuple[Any, ...] = (text, *caption_and_jpeg(number, 16).images) if number % 50 == 0 else (text,)
    return Document(id=str(number), source="text", content=parts)


if __name__ == "__main__":
    main()
