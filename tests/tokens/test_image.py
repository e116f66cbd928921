"""The image tokenizer on a tiny network with random weights: 16 px, four codes an image."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from calumma.documents.document import Image
from calumma.errors import ImageError, TokenizerError
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.image_prefetch import ImageInput
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel

CONFIG = VQConfig(
    resolution=16,
    base_channels=32,
    channel_multipliers=(1, 1, 1, 1),
    num_res_blocks=1,
    latent_channels=8,
    code_dim=4,
    num_codes=32,
)


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(VQModel(CONFIG))


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(values)


def test_an_image_becomes_rows_of_codes(tokenizer: ImageTokenizer) -> None:
    codes = tokenizer.encode(torch.zeros(2, 3, 16, 32))
    assert codes.shape == (2, 2, 4) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 32


def test_codes_run_left_to_right_and_then_down(tokenizer: ImageTokenizer) -> None:
    codes = [3, 14, 15, 9]
    made = np.asarray(tokenizer.decode_image(codes))
    pixels = tokenizer.decode(torch.tensor([[[3, 14], [15, 9]]]))[0]
    expected = ((pixels.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(made, expected) and made.shape == (16, 16, 3)


def test_a_batch_of_images_gives_what_each_alone_gives(tokenizer: ImageTokenizer) -> None:
    images = [noise(20, 30, seed) for seed in range(40)]
    assert tokenizer.encode_images(images) == [tokenizer.encode_image(p) for p in images]
    assert tokenizer.encode_images([]) == []


def test_a_stream_gives_the_codes_of_each_image_and_the_errors_in_order(tokenizer: ImageTokenizer) -> None:
    images: list[ImageInput] = [(noise(20, 30, seed), "crop") for seed in range(11)]
    images[3] = (Image(data=b"no image"), "crop")
    images[7] = (noise(20, 30, 7), "pad")
    found = list(tokenizer.encode_stream(images, num_threads=2, batch_size=4))
    assert isinstance(found.pop(3), ImageError)
    del images[3]
    opened = [(p, fit) for p, fit in images if isinstance(p, PIL.Image.Image)]
    assert found == [tokenizer.encode_image(image, resize_mode=fit) for image, fit in opened]


@pytest.mark.parametrize("number", [0, 4, 5])
def test_a_stream_of_broken_images_is_all_errors(tokenizer: ImageTokenizer, number: int) -> None:
    images: list[ImageInput] = [(Image(data=b"no image"), "crop")] * number
    found = list(tokenizer.encode_stream(images, num_threads=1, batch_size=4))
    assert len(found) == number and all(isinstance(one, ImageError) for one in found)


def test_padding_shows_what_cropping_cuts(tokenizer: ImageTokenizer) -> None:
    wide = noise(64, 16)
    white_first = PIL.Image.new("RGB", (16, 16), "white")
    white_first.paste(wide.resize((16, 4), PIL.Image.Resampling.LANCZOS), (0, 6))
    assert tokenizer.encode_image(wide, resize_mode="pad") == tokenizer.encode_image(white_first)
    assert tokenizer.encode_image(wide) == tokenizer.encode_image(wide.crop((24, 0, 40, 16)))


def test_a_growing_image_is_filled_with_its_first_code(tokenizer: ImageTokenizer) -> None:
    partial = np.asarray(tokenizer.decode_image([7, 1]))
    assert np.array_equal(partial, np.asarray(tokenizer.decode_image([7, 1, 7, 7])))


def test_saved_and_loaded_it_is_the_same(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    loaded = ImageTokenizer.load(tmp_path / "tokenizer")
    assert loaded.config == CONFIG and loaded.fingerprint == tokenizer.fingerprint
    image = noise(16, 16)
    assert loaded.encode_image(image) == tokenizer.encode_image(image)
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == [
        "image_tokenizer.json",
        "image_tokenizer.safetensors",
    ]


def test_without_a_decoder_it_gives_the_same_codes_and_no_images(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    tensors = tokenizer.network.state_dict()
    for left_out in (("decoder",), ("decoder", "post_quant_conv")):
        kept = {n: t.contiguous() for n, t in tensors.items() if n.split(".")[0] not in left_out}
        tokenizer.save(tmp_path)
        save_file(kept, tmp_path / "image_tokenizer.safetensors")
        blind, again = ImageTokenizer.load(tmp_path), ImageTokenizer.load(tmp_path)
        assert tokenizer.has_decoder and not blind.has_decoder
        assert blind.encode_image(noise(16, 16)) == tokenizer.encode_image(noise(16, 16))
        assert blind.fingerprint == again.fingerprint != tokenizer.fingerprint
        blind.save(tmp_path / "copy")
        assert load_file(tmp_path / "copy" / "image_tokenizer.safetensors").keys() == kept.keys()
        with pytest.raises(TokenizerError) as caught:
            blind.decode_image([1, 2, 3, 4])
        assert str(caught.value) == (
            "this image tokenizer has no decoder, so it cannot decode images; expected one with a "
            "decoder. Use the tokenizers of a model folder with vq_decoder.safetensors "
            "(`calumma convert MODEL DIR --to tokenizers`)."
        )


def test_a_decoder_without_the_convolution_before_it_is_broken(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    tensors = tokenizer.network.state_dict()
    kept = {n: t.contiguous() for n, t in tensors.items() if not n.startswith("post_quant")}
    save_file(kept, tmp_path / "image_tokenizer.safetensors")
    with pytest.raises(TokenizerError, match=r"tensor post_quant_conv\.bias is nothing; expected"):
        ImageTokenizer.load(tmp_path)


def test_all_who_may_read_its_config_may_read_its_weights(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_fingerprint_is_of_the_weights() -> None:
    torch.manual_seed(1)
    network = VQModel(CONFIG)
    before = ImageTokenizer(network).fingerprint
    network.decoder.conv_out.bias.data[0] += 1e-6
    after = ImageTokenizer(network).fingerprint
    assert len(before) == 12 and before != after


def test_the_precision_is_part_of_the_fingerprint() -> None:
    torch.manual_seed(0)
    network = VQModel(CONFIG)
    exact, rough = ImageTokenizer(network), ImageTokenizer(network, precision="bfloat16")
    assert exact.fingerprint != rough.fingerprint

    assert len(rough.encode_image(noise(16, 16))) == 4


def test_compilation_is_part_of_the_fingerprint_because_it_rounds_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda encoder: encoder)
    network = VQModel(CONFIG)
    assert ImageTokenizer(network).fingerprint != ImageTokenizer(network, compiled=True).fingerprint


def test_images_are_encoded_and_decoded_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ImageTokenizer(VQModel(CONFIG))
    expected = [tokenizer.encode_image(noise(16, 16)), tokenizer.decode_image([1, 2, 3, 0]).tobytes()]
    log: list[str] = []

    @contextmanager
    def own_stream() -> Iterator[None]:
        log.append("begin")
        yield
        log.append("end")

    def decode(codes: torch.Tensor) -> torch.Tensor:
        log.append("decode")
        return ImageTokenizer.decode(tokenizer, codes)

    def encode(images: Any) -> torch.Tensor:
        log.append("encode")
        return ImageTokenizer._encode_arrays(tokenizer, images)

    monkeypatch.setattr(tokenizer, "_own_stream", own_stream)
    monkeypatch.setattr(tokenizer, "decode", decode)
    monkeypatch.setattr(tokenizer, "_encode_arrays", encode)
    assert [tokenizer.encode_image(noise(16, 16)), tokenizer.decode_image([1, 2, 3, 0]).tobytes()] == expected
    assert log == ["begin", "encode", "end", "begin", "decode", "end"]


def test_the_stream_is_one_for_all_images_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ImageTokenizer(VQModel(CONFIG))
    used: list[object] = []
    assert isinstance(tokenizer._own_stream(), nullcontext)
    monkeypatch.setattr(ImageTokenizer, "device", torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: [device])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: used.append(stream) or nullcontext())
    for _ in range(2):
        tokenizer._own_stream()
    assert used == [[torch.device("cuda", 1)]] * 2
    assert used[0] is used[1]


def test_it_is_frozen_and_in_float32() -> None:
    tokenizer = ImageTokenizer(VQModel(CONFIG).to(torch.bfloat16))
    parameters = list(tokenizer.network.parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not any(p.requires_grad for p in parameters) and not tokenizer.network.training


def refused(call: object) -> str:
    with pytest.raises(ImageError) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


def test_pixels_that_do_not_fit_are_refused(tokenizer: ImageTokenizer) -> None:
    assert refused(lambda: tokenizer.encode(torch.zeros(3, 16, 16))) == (
        "pixels of shape [3, 16, 16]; expected [images, 3, height, width]."
    )
    assert refused(lambda: tokenizer.encode(torch.zeros(1, 3, 16, 20))) == (
        "1 images of 16 x 20 pixels; expected at least one, with sides that are multiples of 8. "
        "Resize them, or call encode_image."
    )
    assert refused(lambda: tokenizer.encode(torch.full((1, 3, 16, 16), 255.0))) == (
        "pixels from 255 to 255; expected them from -1 (black) to 1 (white). "
        "Convert values from 0 to 255 with x / 255 * 2 - 1."
    )
    assert refused(lambda: tokenizer.encode(torch.full((1, 3, 16, 16), torch.nan))).startswith(
        "pixels from nan to nan;"
    )


def test_codes_that_do_not_fit_are_refused(tokenizer: ImageTokenizer) -> None:
    assert refused(lambda: tokenizer.decode_image([1, 2, 3, 4, 5])) == (
        "5 codes; expected 4, or at least 1 of an incomplete image. Pass the codes of exactly one image."
    )
    assert refused(lambda: tokenizer.decode_image([])).startswith("0 codes; expected 4,")
    assert refused(lambda: tokenizer.decode_image([1, 2, 32, 0])) == (
        "code 32 is not in the codebook; expected codes from 0 to 31. Convert token ids to codes first."
    )
    assert refused(lambda: tokenizer.decode_image([-1])).startswith("code -1 is not in")
    assert refused(lambda: tokenizer.decode(torch.zeros(4, dtype=torch.int64))) == (
        "codes of shape [4], torch.int64; expected [images, rows, columns] of int64. "
        "For the codes of one image, call decode_image."
    )
    assert refused(lambda: tokenizer.decode(torch.zeros(0, 2, 2, dtype=torch.int64))) == (
        "no codes: shape [0, 2, 2]; expected at least one image."
    )


def test_a_folder_that_holds_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        ImageTokenizer.load(tmp_path)
    path = tmp_path / "image_tokenizer.json"
    assert str(caught.value) == (
        f"{path}: the config of the image tokenizer cannot be read (No such file or "
        "directory); expected the file that `calumma train-image-tokenizer` writes. "
        "Name the folder that holds it."
    )


def test_broken_and_foreign_weights_are_refused(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    weights, config = tmp_path / "image_tokenizer.safetensors", tmp_path / "image_tokenizer.json"
    config.write_text(config.read_text().replace('"num_codes": 32', '"num_codes": 33'))
    with pytest.raises(TokenizerError) as caught:
        ImageTokenizer.load(tmp_path)
    assert str(caught.value) == (
        f"{weights}: tensor quantizer.codebook is [32, 4]; expected [33, 4] by "
        "image_tokenizer.json. Copy both files of the same tokenizer again."
    )
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TokenizerError, match="the weights cannot be read"):
        ImageTokenizer.load(tmp_path)
