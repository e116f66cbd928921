"""Writing of a run's samples with the weights in training, without a trace in the training itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image

from calumma.checkpoints.sampling_params import ImageSampling
from calumma.model.decoder import Decoder
from calumma.train.parallelize import ModelTransform, RankLayout, gather_full_decoder
from calumma.train.run_samples import SampleConfig, write_step_samples
from calumma.train.training_loop import TrainCallbacks

ImageGenerator = Callable[[Decoder, Sequence[str], ImageSampling, int], Sequence[PIL.Image.Image]]
"""Returns an image of each prompt, by a decoder in evaluation mode and with a seed. It may use torch's
global generator, which `seed_step` seeds before every step."""


@dataclass(frozen=True)
class SampleWriter:
    """Writes the samples of a run when they are due."""

    run: Path
    config: SampleConfig
    generate: ImageGenerator
    steps: int
    """Steps of the run."""

    def with_samples(
        self, callbacks: TrainCallbacks, decoder: Decoder, layout: RankLayout, transform: ModelTransform | None
    ) -> TrainCallbacks:
        """Return callbacks that also write the samples of a decoder, sharded as `layout` says."""

        def write(step: int) -> None:
            if step % self.config.interval == 0 or step == self.steps:
                self.write(step, decoder, layout, transform)

        def on_step(step: int, metrics: Mapping[str, Any]) -> None:
            write(step)
            if callbacks.on_step is not None:
                callbacks.on_step(step, metrics)

        return replace(callbacks.with_start(write), on_step=on_step)

    def write(self, step: int, decoder: Decoder, layout: RankLayout, transform: ModelTransform | None) -> None:
        """Write the samples of a step; all ranks must take part.

        On a GPU one more step may be launched: then the images are of the weights after it.
        """
        full = gather_full_decoder(decoder, layout, transform)
        if full is None or not layout.dist.is_main:
            return
        if full is not decoder:
            full.to(decoder.embedding.weight.device, layout.compute_dtype)
        was_training = full.training
        full.eval()
        try:
            images = self.generate(full, self.config.prompts, self.config.image_sampling, self.config.seed)
        finally:
            full.train(was_training)
        write_step_samples(self.run, step, dict(zip(self.config.prompts, images, strict=True)))
