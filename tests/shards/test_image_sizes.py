"""Shards of images in their own aspect ratios: codes, tokens, counts, packing; squares unchanged."""

import hashlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from calumma.batches.loader import PackedLoader
from calumma.batches.packing import split_long_sequence
from calumma.batches.sampler import drop_condition, set_pair_order, split_pair
from calumma.documents.document import Document, Image, Text, Turn
from calumma.errors import ConfigError, ShardError, TokenizerError, VocabularyError
from calumma.shards.encode import DocumentEncoder
from calumma.shards.manifest import require_vocabulary
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image_preprocessing import image_to_grid_array
from calumma.tokens.sequence import CodeGrid, encode_document, split_modalities
from calumma.tokens.text import IMAGE_SIZES_NAME, TextTokenizer
from calumma.train.config import DataConfig
from calumma.vocabulary import ImageSizeTokens, Vocabulary
from tests.conftest import TEXTS
from tests.images import noise, png
from tests.shard_building import build_shards

SIDES = {"square": (16, 16), "wide": (24, 16), "tall": (16, 24)}
"""Width and height; the cells of the tests' image tokenizer have 8 pixels."""


@pytest.fixture(scope="module")
def sized(tokenizers: Tokenizers) -> Tokenizers:
    first = Vocabulary(num_codes=16, num_text=0).placeholder + 1
    sizes = ImageSizeTokens.parse("16x16,24x16,16x24", first, cell=8, max_cells=4)
    text = TextTokenizer.train(TEXTS * 4, num_text=300, num_codes=16, image_sizes=sizes)
    return Tokenizers(text, tokenizers.image)


@pytest.fixture(scope="module")
def sized_documents() -> list[Document]:
    """Return pairs, and questions about images, of three aspect ratios."""
    documents = []
    for number in range(12):
        name = list(SIDES)[number % 3]
        image = Image(data=png(number, *SIDES[name]))
        documents.append(Document(id=f"{number}", source="pairs", content=(Text(f"a {name} circle"), image)))
        turns = (Turn("user", (Text("what is this?"), image)), Turn("assistant", (Text(name),)))
        documents.append(Document(id=f"chat-{number}", source="chat", messages=turns))
    return documents


def test_tokens_of_three_aspect_ratios_written_out(sized: Tokenizers) -> None:
    """Ids: codes 4 to 19, end 20, begin 21, newline 24, sides from 25 on in units of one cell."""
    v = sized.text.vocabulary
    assert (v.end_image, v.begin_image, v.placeholder) == (20, 21, 23)
    assert v.image_sizes is not None
    assert (v.image_sizes.newline, v.image_sizes.sides) == (24, range(25, 29))
    document = Document(id="d", content=(Image(data=b"1"), Image(data=b"2"), Image(data=b"3")))
    codes = [CodeGrid(range(4), 2, 2), CodeGrid(range(6), 2, 3), CodeGrid(range(6), 3, 2)]
    assert encode_document(document, sized.text, codes).token_ids == [
        *(0, 21, 27, 27, 4, 5, 24, 6, 7, 24, 20),
        *(21, 27, 28, 4, 5, 6, 24, 7, 8, 9, 24, 20),
        *(21, 28, 27, 4, 5, 24, 6, 7, 24, 8, 9, 24, 20, 2),
    ]


def test_shards_hold_each_image_in_its_own_aspect_ratio(
    sized: Tokenizers, sized_documents: list[Document], tmp_path: Path
) -> None:
    manifest = build_shards(sized_documents, sized, tmp_path)
    reader = ShardReader(tmp_path)
    assert reader.manifest.vocabulary == manifest.vocabulary == sized.text.vocabulary
    counts = reader.manifest.counts("pairs")
    assert (counts.num_images, counts.num_image_tokens) == (12, 4 * 4 + 8 * 6)
    for number, document in enumerate(sized_documents):
        ids, mask = reader.read(number)
        [grid] = [run for kind, run in split_modalities(ids.tolist(), sized.text.vocabulary) if kind == "image"]
        assert isinstance(grid, CodeGrid)
        width, height = SIDES[list(SIDES)[number // 2 % 3]]
        assert (grid.rows, grid.columns) == (height // 8, width // 8)
        # The same codes as each image alone, by the network without batches.
        assert grid == sized.image.encode_grids([document.images[0].open()], [(grid.rows, grid.columns)])[0]
        assert mask.all() == (document.source == "pairs")


def test_a_document_of_a_mixed_batch_is_encoded_as_alone(sized: Tokenizers, sized_documents: list[Document]) -> None:
    together = DocumentEncoder(sized).encode(sized_documents)
    assert together == [DocumentEncoder(sized).encode([document])[0] for document in sized_documents]


def test_images_are_cropped_to_the_most_similar_size_without_distortion() -> None:
    image = PIL.Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    array = image_to_grid_array(image, [(2, 2), (2, 3), (3, 2)], 8)
    assert array.shape == (3, 16, 24)
    # The height decides the scale, so the blue square stays one of 16 pixels, between what is left of red.
    is_blue = array[2, 8] > 127
    assert is_blue.tolist() == [4 <= column < 20 for column in range(24)]
    exact = image_to_grid_array(noise(1, 24, 16), [(2, 2), (2, 3)], 8)
    assert (exact == np.asarray(noise(1, 24, 16)).transpose(2, 0, 1)).all()


def test_packed_rows_keep_images_whole_and_the_loss_covers_sizes_and_newlines(
    sized: Tokenizers, sized_documents: list[Document], tmp_path: Path
) -> None:
    build_shards(sized_documents, sized, tmp_path)
    reader = ShardReader(tmp_path)
    v = sized.text.vocabulary
    loader = PackedLoader(reader, DataConfig(seq_len=48, global_batch_size=4, pack_window=2, cond_dropout_prob=0.3))
    loader.set_mixture({"pairs": 1.0})
    num_unconditional = 0
    for _ in range(4):
        batch = loader.next()
        for row, documents in enumerate(batch.document_ids):
            for document in range(documents.max() + 1):
                ids = batch.labels[row][documents == document].tolist()
                [grid] = [run for kind, run in split_modalities(ids, v) if kind == "image"]
                assert isinstance(grid, CodeGrid) and len(grid) == grid.rows * grid.columns
                assert batch.loss_mask[row][documents == document].all()
                num_unconditional += ids[0] == v.begin_image and len(ids) == len(grid) + grid.rows + 5
    assert num_unconditional
    with pytest.raises(ConfigError) as caught:
        PackedLoader(reader, DataConfig(seq_len=12))
    assert str(caught.value) == (
        f"data.seq_len=12 does not hold the images in {tmp_path}, which take up to 13 tokens each; expected at least "
        "that. Raise data.seq_len."
    )


def test_pairs_and_prompts_are_recognized_and_long_sequences_split_between_images(sized: Tokenizers) -> None:
    v = sized.text.vocabulary
    pair = Document(id="p", content=(Text("a red circle"), Image(data=b"1")))
    ids = np.array(encode_document(pair, sized.text, [CodeGrid(range(6), 2, 3)]).token_ids)
    parts = split_pair(ids, v)
    assert parts is not None
    assert len(parts[1]) == 12
    flipped = set_pair_order(ids, parts, image_first=True)
    assert flipped[1] == v.begin_image
    dropped = drop_condition(ids, np.ones(len(ids), dtype=bool), v)
    assert dropped is not None
    assert dropped.tolist() == [v.bos, *parts[1].tolist(), v.eos]
    page = Document(id="p", content=(Image(data=b"1"), Image(data=b"2"), Image(data=b"3")))
    long = np.array(encode_document(page, sized.text, [CodeGrid(range(6), 3, 2)] * 3).token_ids)
    for chunk, _ in split_long_sequence((long, np.ones(len(long), dtype=bool)), 16, v):
        images = [run for kind, run in split_modalities(chunk.tolist(), v) if kind == "image"]
        assert [len(run) for run in images] == [6]


def test_tokenizers_with_sizes_are_saved_and_loaded(sized: Tokenizers, tokenizers: Tokenizers, tmp_path: Path) -> None:
    sized.save(tmp_path)
    loaded = Tokenizers.load(tmp_path)
    assert loaded.text.vocabulary == sized.text.vocabulary
    assert loaded.fingerprints == sized.fingerprints
    assert sized.fingerprints.keys() - tokenizers.fingerprints.keys() == {"image_sizes"}
    (tmp_path / IMAGE_SIZES_NAME).write_text('{"newline": 1}')
    with pytest.raises(TokenizerError) as caught:
        Tokenizers.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/image_sizes.json: the sizes of images cannot be read (ImageSizeTokens.__init__() missing 2 "
        "required keyword-only arguments: 'first_size' and 'max_cells'); expected the file that belongs to "
        "tokenizer.json. Copy it again."
    )
    tokenizers.save(tmp_path)
    assert not (tmp_path / IMAGE_SIZES_NAME).exists()


def test_shards_of_other_sizes_are_refused(sized: Tokenizers, tmp_path: Path) -> None:
    other = Vocabulary.from_json({**sized.text.vocabulary.to_json(), "image_sizes": None})
    with pytest.raises(ShardError) as caught:
        require_vocabulary(tmp_path, sized.text.vocabulary, other)
    assert str(caught.value) == (
        f"{tmp_path} holds token ids of vocabulary {sized.text.vocabulary.fingerprint} (329 ids); expected this run's "
        f"vocabulary {other.fingerprint} (329 ids). Build the shards again with this run's tokenizers."
    )
    with pytest.raises(VocabularyError) as size:
        ImageSizeTokens.parse("16x16,20x16", 24, cell=8, max_cells=4)
    assert str(size.value) == (
        "an image size of '20x16'; expected WIDTHxHEIGHT in multiples of 8 pixels, the side of a cell, or any. Fix it."
    )


def test_sequences_of_squares_are_those_of_earlier_versions(
    text_tokenizer: TextTokenizer, documents: list[Document]
) -> None:
    """Recorded before images of any size existed."""
    assert text_tokenizer.vocabulary.fingerprint == "086eb6e50df7"
    digest = hashlib.sha256()
    for document in documents:
        codes = [[(number + cell) % 16 for cell in range(4)] for number in range(len(document.images))]
        sequence = encode_document(document, text_tokenizer, codes)
        digest.update(repr((sequence.token_ids, sequence.loss_mask)).encode())
    assert digest.hexdigest() == "abbe990f6a9a7ff651fb0c2186b51924e5c401e9de76bf6e25c4289f30c6f73c"
