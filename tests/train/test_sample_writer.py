"""Drawing of samples: what is written when, and that the training does not notice."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from calumma.checkpoints.sampling_params import ImageSampling
from calumma.generate.caption_images import generate_caption_images
from calumma.tokens.folder import Tokenizers
from calumma.train.config import PretrainConfig, run_identity
from calumma.train.pretraining import pretrain
from calumma.train.run_samples import SampleConfig, sample_steps, samples_folder
from calumma.train.sample_writer import ImageGenerator
from tests.train.runs import KilledError, assert_same_weights, dies_after, logged_metrics
from tests.train.test_pretraining import config

SAMPLES = SampleConfig(
    interval=3, prompts=["a red circle", "picture 7"], seed=5, image_sampling=ImageSampling(guidance_scale=2.0)
)


@pytest.fixture
def generate(tokenizers: Tokenizers, tmp_path: Path) -> ImageGenerator:
    tokenizers.save(tmp_path / "tokenizers")
    return partial(generate_caption_images, tmp_path / "tokenizers")


@pytest.fixture
def sampled(shards: Path) -> PretrainConfig:
    return replace(config(shards), samples=SAMPLES)


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in (run / "samples").glob("*/*.png")}


def test_drawing_leaves_no_trace_in_the_weights_and_a_killed_run_draws_the_same(
    sampled: PretrainConfig, generate: ImageGenerator, tmp_path: Path
) -> None:
    without = pretrain(replace(sampled, samples=SampleConfig()), tmp_path / "without", generate_images=generate)
    decoder = pretrain(sampled, tmp_path / "with", generate_images=generate)
    assert_same_weights(decoder, without)
    assert logged_metrics(tmp_path / "with") == logged_metrics(tmp_path / "without")
    assert sample_steps(tmp_path / "with", 8) == [0, 3, 6, 8]
    assert sample_steps(tmp_path / "without", 8) == []
    images = files(tmp_path / "with")
    assert len(images) == 8 and images["samples/step-00000000/0.png"] != images["samples/step-00000008/0.png"]
    with pytest.raises(KilledError):
        pretrain(sampled, tmp_path / "killed", dies_after(7), generate_images=generate)
    assert_same_weights(pretrain(sampled, tmp_path / "killed", generate_images=generate), decoder)
    assert files(tmp_path / "killed") == images


def test_samples_may_change_between_two_launches(
    sampled: PretrainConfig, generate: ImageGenerator, tmp_path: Path
) -> None:
    assert run_identity(sampled) == run_identity(replace(sampled, samples=SampleConfig()))
    with pytest.raises(KilledError):
        pretrain(replace(sampled, samples=SampleConfig()), tmp_path, dies_after(4), generate_images=generate)
    pretrain(sampled, tmp_path, generate_images=generate)
    assert sample_steps(tmp_path, 8) == [3, 6, 8]
    assert len(list(samples_folder(tmp_path, 6).glob("*.png"))) == 2


def test_without_a_generator_nothing_is_drawn(sampled: PretrainConfig, tmp_path: Path) -> None:
    pretrain(replace(sampled, steps=2), tmp_path)
    assert not (tmp_path / "samples").exists()
