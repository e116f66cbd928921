"""Training of an image tokenizer on documents, and resuming it."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from calumma.documents.document import Document, Image
from calumma.errors import CheckpointError
from calumma.files import sha256
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.vq.codebook import CodebookConfig
from calumma.tokens.vq.config import VQConfig
from calumma.train.config_image_tokenizer import (
    ImageTokenizerCheckpointConfig,
    ImageTokenizerRunConfig,
    ImageTokenizerTrainConfig,
    RegionConfig,
    VQLossConfig,
)
from calumma.train.image_tokenizer_trainer import (
    ImageTokenizerState,
    ImageTokenizerTrainer,
    image_tokenizer_step,
    train_image_tokenizer,
)
from calumma.train.run_log import EVENTS_NAME, METRICS_NAME
from calumma.train.stability import StabilityConfig
from calumma.train.step_metrics import DeferredMetrics
from calumma.train.training_loop import TrainCallbacks
from tests.apple_gpu import apple_gpu
from tests.images import png
from tests.train.runs import KilledError, dies_after, logged_events, records_steps

CONFIG = ImageTokenizerTrainConfig(
    steps=4,
    batch_size=2,
    quantize_start_step=1,
    precision="float32",
    network=VQConfig(
        resolution=16,
        base_channels=32,
        channel_multipliers=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=8,
        code_dim=4,
        num_codes=16,
    ),
)

NETWORK = VQConfig(
    resolution=16,
    base_channels=32,
    channel_multipliers=(1, 1, 2),
    num_res_blocks=1,
    latent_channels=16,
    code_dim=8,
    num_codes=16,
)
EMA = CodebookConfig(update="ema", decay=0.9, legacy=False, dead_code_restart_steps=3)
PLAIN = ImageTokenizerTrainConfig(steps=40, batch_size=8, network=NETWORK, lr=2e-3, precision="float32")
CONFIGS = {
    "gradient": PLAIN,
    "means, late start": replace(PLAIN, codebook=EMA, quantize_start_step=2, ema_decay=0.9),
    "cosine": replace(
        PLAIN, codebook=CodebookConfig(quantizer="cosine", dead_code_restart_steps=3), quantize_start_step=2
    ),
    "cosine ema": replace(PLAIN, codebook=replace(EMA, quantizer="cosine")),
    "ibq": replace(PLAIN, codebook=CodebookConfig(quantizer="ibq", entropy_weight=0.05)),
    "features": replace(PLAIN, losses=VQLossConfig(perceptual="efficientnet-lite0", perceptual_weight=0.1)),
    "dropout": replace(PLAIN, network=replace(NETWORK, dropout=0.1)),
    "bfloat16": replace(PLAIN, precision="bfloat16"),
    "discriminator": replace(
        PLAIN,
        codebook=EMA,
        losses=VQLossConfig(
            perceptual="pyramid", disc_weight=0.5, disc_start_step=2, disc_channels=32, disc_num_layers=1
        ),
    ),
}


def run_config(
    config: ImageTokenizerTrainConfig = CONFIG, interval: int = 2, **fields: Any
) -> ImageTokenizerRunConfig:
    checkpoint = ImageTokenizerCheckpointConfig(interval=interval)
    return ImageTokenizerRunConfig(documents=[], training=config, device="cpu", checkpoint=checkpoint, **fields)


def documents_with_images(number: int = 5) -> list[Document]:
    return [Document(id=str(n), content=(Image(data=png(n)),)) for n in range(number)]


def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train_image_tokenizer(run_config(), documents_with_images(), undisturbed)

    with pytest.raises(KilledError):
        train_image_tokenizer(run_config(), documents_with_images(), killed, dies_after(3))
    steps: list[int] = []
    train_image_tokenizer(run_config(), documents_with_images(), killed, records_steps(steps))
    assert steps == [2, 3, 4]
    names = sorted(path.name for path in undisturbed.glob("*.safetensors"))
    assert names
    assert [sha256(undisturbed / name) for name in names] == [sha256(killed / name) for name in names]
    assert len((killed / METRICS_NAME).read_text().splitlines()) == 4


def test_the_tokenizer_in_the_run_s_folder_is_the_returned_one(tmp_path: Path) -> None:
    made = train_image_tokenizer(run_config(), documents_with_images(), tmp_path)
    loaded = ImageTokenizer.load(tmp_path)
    image = documents_with_images(1)[0].images[0].open()
    assert loaded.encode_image(image) == made.encode_image(image)
    assert len(made.encode_image(image)) == 16


def test_a_step_needs_nothing_that_apple_gpus_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codebook = replace(EMA, quantizer="cosine")
    with apple_gpu(monkeypatch) as found:
        for number, made in enumerate((replace(CONFIG, codebook=codebook), CONFIGS["discriminator"])):
            train_image_tokenizer(run_config(replace(made, steps=3)), documents_with_images(), tmp_path / f"{number}")
    assert found <= {"train/distributed.py:sum_numbers_later float64"}


def test_a_run_on_other_images_is_refused(tmp_path: Path) -> None:
    train_image_tokenizer(run_config(), documents_with_images(), tmp_path)
    with pytest.raises(CheckpointError, match="was written by a run with documents="):
        train_image_tokenizer(run_config(), documents_with_images(4), tmp_path)
    with pytest.raises(CheckpointError, match=r"with training\.seed=0; this run has training\.seed=1"):
        train_image_tokenizer(run_config(replace(CONFIG, seed=1)), documents_with_images(), tmp_path)


def test_instability_is_skipped_or_rolled_back_whenever_the_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ImageTokenizerTrainer.step

    def step(trainer: ImageTokenizerTrainer, number: int) -> DeferredMetrics:
        consumed, factor = trainer.position.batches_consumed, trainer.position.lr_factor
        hook = None
        if consumed == 10:
            out = trainer.vq_state.network.decoder.conv_out
            hook = out.register_forward_hook(lambda module, x, y: y * math.nan)
        if consumed == 14:
            trainer.position = replace(trainer.position, lr_factor=1e4)
        metrics = real(trainer, number)
        if hook is not None:
            hook.remove()
        trainer.position = replace(trainer.position, lr_factor=factor)
        return metrics

    monkeypatch.setattr(ImageTokenizerTrainer, "step", step)
    stability = StabilityConfig(window=8, spike_steps=2)
    longer = run_config(replace(CONFIG, steps=24, quantize_start_step=2), 3, stability=stability)

    def train(run: Path, callbacks: TrainCallbacks | None = None) -> None:
        train_image_tokenizer(longer, documents_with_images(), run, callbacks)

    train(tmp_path / "undisturbed")
    events = logged_events(tmp_path / "undisturbed")
    assert [event["event"] for event in events] == ["step_skipped", "spike", "rollback"]
    assert [event["step"] for event in events] == [11, 17, 17]
    with pytest.raises(KilledError):
        train(tmp_path / "run", dies_after(17))
    train(tmp_path / "run")
    for name in ("image_tokenizer.safetensors", EVENTS_NAME):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert "Codebook usage" in (tmp_path / "undisturbed" / "report.html").read_text()


def batch(step: int = 0) -> Tensor:
    """Return eight squares of one color on backgrounds of another."""
    generator = torch.Generator().manual_seed(step)
    colors = torch.rand(8, 2, 3, generator=generator) * 2 - 1
    pixels = colors[:, 0, :, None, None].repeat(1, 1, 16, 16)
    pixels[:, :, 4:12, 6:14] = colors[:, 1, :, None, None]
    return pixels


def run(state: ImageTokenizerState, steps: range) -> list[dict[str, float]]:
    return [image_tokenizer_step(state, batch(step)).to_dict() for step in steps]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_loss_falls(config: ImageTokenizerTrainConfig) -> None:
    state = ImageTokenizerState(config)
    losses = [image_tokenizer_step(state, batch()).extra["loss_l1"] for _ in range(16)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_resumed_run_has_the_same_bits(config: ImageTokenizerTrainConfig) -> None:
    straight = ImageTokenizerState(config)
    expected = run(straight, range(8))

    first = ImageTokenizerState(config)
    before = run(first, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    second = ImageTokenizerState(replace(config, seed=7))
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert before + run(second, range(4, 8)) == expected

    ours, theirs = straight.trained_network(), second.trained_network()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_seed_decides_the_weights_and_torchs_generator_is_restored() -> None:
    torch.manual_seed(5)
    first = ImageTokenizerState(PLAIN)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    second = ImageTokenizerState(PLAIN)
    assert torch.equal(first.network.encoder.conv_in.weight, second.network.encoder.conv_in.weight)


def test_quantization_starts_late_with_a_codebook_of_the_batch() -> None:
    state = ImageTokenizerState(CONFIGS["means, late start"])
    first = state.network.quantizer.codebook.clone()
    metrics = run(state, range(2))
    assert torch.equal(state.network.quantizer.codebook, first)
    assert "loss_commitment" not in metrics[-1]
    (step,) = run(state, range(2, 3))
    assert "loss_commitment" in step
    assert not torch.equal(state.network.quantizer.codebook, first)


def test_the_discriminator_waits_for_its_step() -> None:
    state = ImageTokenizerState(CONFIGS["discriminator"])
    assert state.discriminator is not None
    first = [p.clone() for p in state.discriminator.parameters()]
    metrics = run(state, range(2))
    assert "loss_adversarial" not in metrics[-1]
    assert all(map(torch.equal, first, state.discriminator.parameters()))
    (step,) = run(state, range(2, 3))
    assert {"loss_adversarial", "loss_discriminator"} <= step.keys()
    assert not all(map(torch.equal, first, state.discriminator.parameters()))


def test_the_perceptual_loss_can_be_overridden() -> None:
    def seven(pixels: Tensor, expected: Tensor) -> Tensor:
        return pixels.new_tensor(7.0)

    state = ImageTokenizerState(PLAIN, perceptual=seven)
    (step,) = run(state, range(1))
    assert step["loss_perceptual"] == 7.0


def test_bfloat16_gives_losses_near_those_of_float32() -> None:
    exact, rounded = (run(ImageTokenizerState(CONFIGS[name]), range(4)) for name in ("gradient", "bfloat16"))
    assert [step["loss"] for step in rounded] == pytest.approx([step["loss"] for step in exact], rel=3e-2)


@pytest.mark.parametrize("has_products", [True, False])
def test_convolutions_are_in_bfloat16_where_the_cpu_has_them(
    has_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_products)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    automatic = ImageTokenizerState(replace(PLAIN, precision="auto"))
    assert automatic.precision == ("bfloat16" if has_products else "float32")
    assert ImageTokenizerState(PLAIN).precision == "float32"


def test_the_trained_network_of_every_variant_encodes_and_decodes() -> None:
    for name in ("gradient", "cosine", "ibq"):
        state = ImageTokenizerState(CONFIGS[name])
        run(state, range(4))
        network = state.trained_network()
        with torch.no_grad():
            made = network.decode(network.encode(batch(9)))
        assert made.shape == (8, 3, 16, 16) and bool(made.isfinite().all())
        assert network.config.code_dim == (9 if name == "ibq" else 8)


def test_regions_count_in_the_loss() -> None:
    config = replace(PLAIN, regions=RegionConfig(objects="given", crop_size=32, object_weight=0.5))
    full = torch.tensor([[float(n), 0.0, 0.0, 1.0, 1.0] for n in range(8)])
    with_regions, without = ImageTokenizerState(config), ImageTokenizerState(config)
    some = image_tokenizer_step(with_regions, batch(), {"objects": full})
    none = image_tokenizer_step(without, batch(), {"objects": full[:0]})
    assert none.extra["loss_objects"] == 0.0 < some.extra["loss_objects"]
    assert some.loss == pytest.approx(none.loss + 0.5 * some.extra["loss_objects"])


def test_the_trained_network_is_frozen_and_a_copy() -> None:
    state = ImageTokenizerState(CONFIGS["means, late start"])
    network = state.trained_network()
    before = network.decoder.conv_out.weight.clone()
    run(state, range(1))
    assert torch.equal(before, network.decoder.conv_out.weight)
    assert not before.requires_grad


def test_a_state_without_the_discriminator_is_refused() -> None:
    saved = ImageTokenizerState(PLAIN).state_dict()
    with pytest.raises(CheckpointError) as caught:
        ImageTokenizerState(CONFIGS["discriminator"]).load_state_dict(saved)
    assert str(caught.value) == (
        "the saved image tokenizer was trained with another discriminator or EMA; expected those "
        "of this config. Resume with the run's config.json, or choose another --out."
    )
