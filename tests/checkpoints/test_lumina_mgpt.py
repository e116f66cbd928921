"""Folders of Lumina-mGPT 1.0, made from its public description with random weights."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import calumma
from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.hf_weights import hf_decoder_names
from calumma.checkpoints.lumina_mgpt import lumina_image_sizes
from calumma.checkpoints.meta.vqgan_files import vqgan_config
from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import CheckpointError
from calumma.files import read_json
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.sequence import CodeGrid, encode_image_codes
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from calumma.tokens.vq.tensor_names import transformers_names, vq_decoder_names
from calumma.vocabulary import Vocabulary
from tests.images import noise

LAYOUT = Vocabulary(num_codes=8192, num_text=256, num_sentinels=512, num_reserved=7672)
"""The ids of the Chameleon release, with bytes for its text tokens."""

VQ = VQConfig(resolution=512, base_channels=32, channel_multipliers=(1, 1, 1, 1, 1), num_res_blocks=1,
              latent_channels=8, code_dim=4, num_codes=8192)  # fmt: skip
DECODER = DecoderConfig(vocabulary_size=LAYOUT.size, model_dim=32, num_layers=2, num_heads=4, num_kv_heads=2,
                        feed_forward_dim=48, max_seq_len=10_240, qk_norm_groups=2)  # fmt: skip
HOT = ImageSampling(temperature=1.0, top_p=1.0, top_k=2000, guidance_scale=4.0)
"""Guidance and top-k of the examples of Lumina-mGPT."""


def write_release_tokenizers(folder: Path) -> None:
    """Write text_tokenizer.json, vqgan.yaml and vqgan.ckpt, as the Chameleon release has them."""
    names = LAYOUT.control_names()
    # The release's tokens by name; the alphabet of byte-level BPE begins with "!".
    table = [*names, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: id_ for id_, name in enumerate(table)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(names)
    folder.mkdir(parents=True)
    (folder / "text_tokenizer.json").write_text(tokenizer.to_str().replace('"<image>"', '"<reserved08707>"'))
    torch.manual_seed(0)
    network = VQModel(VQ).state_dict()
    theirs = transformers_names(VQ) | vq_decoder_names(VQ)
    torch.save({"state_dict": {theirs[ours]: tensor for ours, tensor in network.items()}}, folder / "vqgan.ckpt")
    (folder / "vqgan.yaml").write_text(json.dumps(vqgan_config(VQ)))


def write_lumina(folder: Path) -> None:
    """Write a folder as its training does: no image tokenizer, one row a group in the QK-norms."""
    decoder = Decoder(DECODER)
    decoder.init_weights(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8)
    state = decoder.state_dict()
    weights = {theirs: state[ours].bfloat16() for ours, theirs in hf_decoder_names(DECODER).items()}
    assert weights["model.layers.0.self_attn.q_norm.weight"].shape == (2, 8)
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    config = {
        "architectures": ["ChameleonXLLMXForConditionalGeneration"],
        "model_type": "chameleon",
        "attention_bias": False,
        "dropout": 0.05,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "mask_image_logits": False,
        "max_position_embeddings": 10_240,
        "mlp_bias": False,
        "model_parallel_size": 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10_000.0,
        "swin_norm": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": LAYOUT.size,
        "vq_config": {"model_type": "chameleon_vqgan"},
        "z_loss_weight": 1e-05,
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the model, the release's tokenizers, and the converted model."""
    root = tmp_path_factory.mktemp("lumina")
    write_release_tokenizers(root / "tokenizer")
    write_lumina(root / "lumina-7b-768")
    opened = open_model(root / "lumina-7b-768", root / "tokenizer", 768)
    convert_model(opened, root / "lumina-7b-768", root / "model", ConversionTarget(layout="calumma"))
    return root


@pytest.fixture(scope="module")
def model(root: Path) -> Model:
    return calumma.load(root / "model", device="cpu", dtype="float32")


def test_a_converted_folder_has_the_layout_and_the_weights(root: Path, model: Model) -> None:
    sizes = model.vocabulary.image_sizes
    assert sizes is not None
    assert (sizes.newline, sizes.first_size, sizes.max_cells) == (8803, 8804, 2304)
    names = model.text.tokenizer.get_vocab(with_added_tokens=True)
    assert (names["<reserved08799>"], names["<reserved08824>"]) == (8803, 8828)
    theirs = load_file(root / "lumina-7b-768" / "model.safetensors")
    for ours, name in hf_decoder_names(DECODER).items():
        assert torch.equal(model.decoder.state_dict()[ours], theirs[name].float()), ours


def test_images_are_encoded_in_their_sequences(model: Model) -> None:
    """Begin, height, width, rows of codes with newlines, end."""
    ids = model.encode([noise(1, 64, 96), "a"])
    rows, columns = (ids[2] - 8804) * 2, (ids[3] - 8804) * 2
    assert ids[:2] == [0, 8197]
    # 29 x 19 units of 32 pixels, of at most 576 units, are the most similar to 3 x 2.
    assert (rows, columns) == (58, 38)
    assert [id_ == 8803 for id_ in ids[4 : 4 + rows * (columns + 1)]] == ([False] * columns + [True]) * rows
    assert ids[4 + rows * (columns + 1)] == 8196


def test_codes_are_those_of_the_release_s_encoder(model: Model) -> None:
    small = noise(2, 96, 64)
    [codes] = model.image.encode_grids([small], [(4, 6)])
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 127.5 - 1
    assert codes == model.image.encode(pixels).flatten().tolist()
    expected = [8197, 8804 + 2, 8804 + 3]
    for row in range(4):
        expected += [*(4 + code for code in codes[6 * row : 6 * row + 6]), 8803]
    assert encode_image_codes(codes, model.vocabulary) == [*expected, 8196]


@pytest.mark.parametrize("size", ["64x96", "96x64", "64x64"])
def test_images_are_drawn_in_the_size_of_the_request(model: Model, size: str) -> None:
    sample = model.generate(["a"], size=size, modality="image", max_images=1, max_new_tokens=40, image=HOT)
    (image,) = sample.decoded_parts
    assert isinstance(image, PIL.Image.Image)
    assert "{}x{}".format(*image.size) == size
    width, height = image.size
    codes = [id_ - 4 for id_ in sample.token_ids if id_ in model.vocabulary.codes]
    grid = CodeGrid(codes, height // 16, width // 16)
    assert sample.token_ids[: 4 + grid.rows * (grid.columns + 1)] == encode_image_codes(grid, model.vocabulary)


@pytest.mark.slow
def test_768_x_1024_is_drawn(root: Path) -> None:
    """With --target-size 1024: more cells than images of 768 have."""
    opened = open_model(root / "lumina-7b-768", root / "tokenizer", 1024)
    convert_model(opened, root, root / "large", ConversionTarget(layout="calumma"))
    model = calumma.load(root / "large", device="cpu", dtype="float32")
    plain = ImageSampling(temperature=1.0, top_p=1.0)
    sample = model.generate(["a"], size="768x1024", modality="image", max_images=1, max_new_tokens=3200, image=plain)
    (image,) = sample.decoded_parts
    assert isinstance(image, PIL.Image.Image)
    assert image.size == (768, 1024)
    assert sample.token_ids[1:3] == [8804 + 32, 8804 + 24]


def test_a_converted_folder_is_exported_again(root: Path, tmp_path: Path) -> None:
    convert_model(open_model(root / "model"), root, tmp_path / "back", ConversionTarget(layout="lumina"))
    before = load_file(root / "lumina-7b-768" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    # The encoder under transformers' names, which Lumina-mGPT's own code reads.
    assert all(name.startswith("model.vqmodel.") for name in after.keys() - before.keys())
    config = read_json(tmp_path / "back" / "config.json")
    assert config["architectures"] == ["ChameleonXLLMXForConditionalGeneration"]
    assert config["model_parallel_size"] == 2
    again = open_model(tmp_path / "back")
    assert again.layout == "a Lumina-mGPT folder"
    assert again.text_tokenizer.vocabulary == open_model(root / "model").text_tokenizer.vocabulary
    convert_model(again, root, tmp_path / "twice", ConversionTarget(layout="calumma"))
    for name in ("model.safetensors", "vq_decoder.safetensors", "tokenizer.json", "image_sizes.json", "config.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (root / "model" / name).read_bytes(), name


def test_text_is_generated_too(model: Model) -> None:
    sample = model.generate(["a"], max_images=0, max_new_tokens=5, text=TextSampling(temperature=1.0))
    assert len(sample.token_ids) == 5


def test_what_is_missing_is_named(root: Path, tmp_path: Path, model_parts: ModelComponents) -> None:
    folder = root / "lumina-7b-768"
    with pytest.raises(CheckpointError) as image:
        calumma.load(folder)
    assert str(image.value) == (
        f"{folder} is a folder of Lumina-mGPT without an image tokenizer; expected that of the Chameleon release. Use "
        f"`calumma convert {folder} DST --to calumma --tokenizers CHAMELEON/tokenizer --target-size 768`."
    )
    with pytest.raises(CheckpointError) as size:
        open_model(folder, root / "tokenizer")
    assert str(size.value) == (
        f"{folder} is a folder of Lumina-mGPT, and its sizes of images are not known; expected them from its name. "
        f"Use `calumma convert {folder} DST --to calumma --target-size 768`, or 512 or 1024."
    )
    with pytest.raises(CheckpointError) as token:
        lumina_image_sizes({"a": 1}, 768)
    assert str(token.value) == (
        "the tokenizer has no token <reserved08799>; expected the text tokenizer of the Chameleon release. Name its "
        "folder with --tokenizers."
    )
    save_model(tmp_path / "square", model_parts)
    with pytest.raises(CheckpointError) as square:
        convert_model(
            open_model(tmp_path / "square"), Path("square"), tmp_path / "x", ConversionTarget(layout="lumina")
        )
    assert str(square.value) == (
        "square has no images in Lumina-mGPT's sizes; expected a model converted from its layout, in which "
        "<reserved08799> is the newline (tokenizer.json). Use --to calumma."
    )
