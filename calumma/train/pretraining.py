"""Pre-training of a decoder on shards."""

from dataclasses import asdict
from pathlib import Path

from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.runtime import is_first_rank
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from calumma.train.config import PretrainConfig, run_identity
from calumma.train.decoder_trainer import TrainJob, train_decoder
from calumma.train.init_from import open_initial_run
from calumma.train.sample_writer import ImageGenerator, SampleWriter
from calumma.train.training_loop import TrainCallbacks


def pretrain(
    config: PretrainConfig,
    run: Path,
    callbacks: TrainCallbacks | None = None,
    *,
    export: bool = False,
    generate_images: ImageGenerator | None = None,
) -> Decoder | None:
    """Train a decoder from random weights through its stages, or resume the run.

    Under torchrun the ranks share it.

    Args:
        config: of the run.
        run: its folder.
        callbacks: are called at the start and after each step.
        export: whether to write model folders: of the checkpoints that are kept for good, and
            `RUN/model` of the last one. Then no process ever holds the full decoder.
        generate_images: generates the samples that the config asks for; None generates none.

    Returns:
        The full decoder, on rank 0; None on the others, and with `export`.
    """
    reader = ShardReader(config.shards)
    resolved = config.with_default_weights(reader.manifest)
    start, stage_two = config.stage_two_start, resolved.stage_two_weights
    vocabulary_size = reader.manifest.vocabulary.size
    identity, initial = open_initial_run(
        config, run, run_identity(config, shards=reader.manifest.fingerprint), vocabulary_size
    )
    samples = None
    if config.samples.interval and generate_images is not None:
        samples = SampleWriter(run, config.samples, generate_images, config.steps)
    job = TrainJob(
        config=config,
        reader=reader,
        shape=DecoderConfig(vocabulary_size=vocabulary_size, **asdict(config.model)),
        mixture_at=lambda step: resolved.stage_one.weights if step < start else stage_two,
        initial_weights=lambda decoder: decoder.initial_weights(config.seed),
        identity=identity,
        initial_run=initial,
        tokenizers=Tokenizers.load(config.tokenizers) if export and is_first_rank() else None,
        gather=not export,
        samples=samples,
    )
    return train_decoder(job, run, callbacks)
