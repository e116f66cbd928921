"""The text tokenizer: byte-level BPE whose vocabulary also holds the image codes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from calumma.errors import FileError, TokenizerError
from calumma.files import read_json, write_json, write_text
from calumma.hub import find_model_folder
from calumma.vocabulary import BOS_NAME, UNK_NAME, ImageSizeTokens, Vocabulary

NUM_BYTES = 256
TEXT_TOKENIZER_NAME = "tokenizer.json"
IMAGE_SIZES_NAME = "image_sizes.json"
"""Name of the file of `ImageSizeTokens`, which tokenizers of squares do not have."""


def _bytes_of_characters() -> dict[str, int]:
    """Return the byte of each character of byte-level BPE: printable bytes are themselves."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printed]
    shifted = {chr(NUM_BYTES + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in printed} | shifted


_BYTE_OF_CHARACTER = _bytes_of_characters()


class TextTokenizer:
    """A byte-level BPE in the release's layout; it encodes any text, and never to control tokens.

    >>> tokenizer = TextTokenizer.train(["low lower lowest"] * 4, num_text=260, num_codes=4)
    >>> tokenizer.decode(tokenizer.encode("lowest <s> IMGIMGAZ")) == "lowest <s> IMGIMGAZ"
    True
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        # Without this, text such as "<eoss>" could begin or end an image.
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.from_token_names(tokenizer.get_vocab(with_added_tokens=True))
        # Other software may add control tokens as ordinary ones, which text could spell.
        controls = [
            AddedToken(token.content, special=True, normalized=False)
            for id_, token in tokenizer.get_added_tokens_decoder().items()
            if id_ not in self.vocabulary.text and not token.special
        ]
        tokenizer.add_special_tokens(controls)
        self.added_tokens = {
            token.content: id_
            for id_, token in tokenizer.get_added_tokens_decoder().items()
            if id_ in self.vocabulary.text
        }
        """Ids of the tokens that were added after training, special ones among them."""

        bpe = tokenizer.get_vocab(with_added_tokens=False)
        self._added_bytes = {
            id_: text.encode()
            for text, id_ in self.added_tokens.items()
            # An added "\u00e9" has the id of a byte, which other characters need.
            if text not in bpe or not _BYTE_OF_CHARACTER.keys() >= set(text)
        }

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        num_text: int,
        num_codes: int,
        image_sizes: ImageSizeTokens | None = None,
        allow_fewer: bool = False,
        show_progress: bool = False,
    ) -> "TextTokenizer":
        """Train a tokenizer.

        Args:
            texts: the training texts, of any length.
            num_text: number of text tokens, the 256 bytes included.
            num_codes: number of image codes.
            image_sizes: tokens of images of any size, in reserved slots; None for squares.
            allow_fewer: take as many text tokens as the texts give, if they are fewer.
            show_progress: print the library's progress bars.

        Raises:
            TokenizerError: `num_text` is below 256, or the texts have too few different pairs for
                as many merges.

        Source: as in the release, white-space runs, single digits and punctuation marks are split
        off before GPT-2's pattern.
        """
        if num_text < NUM_BYTES:
            raise TokenizerError(f"num_text={num_text}; expected at least {NUM_BYTES}, one token per byte.")
        layout = Vocabulary(num_codes=num_codes, num_text=num_text).with_image_sizes(image_sizes)
        tokenizer = Tokenizer(models.BPE(unk_token=UNK_NAME))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"[\t\n]|    |  "), "isolated"),
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.Punctuation("isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=layout.size,
            special_tokens=layout.control_names(),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=show_progress,
        )
        tokenizer.train_from_iterator(texts, trainer)
        # For other software, such as transformers; `encode` does not add it.
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS_NAME} $A", pair=f"{BOS_NAME} $A $B", special_tokens=[(BOS_NAME, layout.bos)]
        )
        trained = cls(tokenizer)
        trained.vocabulary = replace(trained.vocabulary, image_sizes=image_sizes)
        if trained.vocabulary.num_text != num_text and not allow_fewer:
            raise TokenizerError(
                f"the texts give {trained.vocabulary.num_text} text tokens; expected {num_text}. "
                "Give more text, or lower --num-text."
            )
        return trained

    def encode(self, text: str) -> list[int]:
        """Encode a text, never to control tokens.

        Raises:
            TokenizerError: it has a lone surrogate, as an argument in another encoding than UTF-8 has.
        """
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise TokenizerError(
                f"the text {text!r} is no valid Unicode; expected text that UTF-8 can encode. Fix its encoding."
            ) from error

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts on all cores."""
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_special_token(self, text: str) -> int:
        """Return the id of an added token by its text; control tokens cannot be written.

        Raises:
            TokenizerError: it is not an added token.
        """
        id_ = self.added_tokens.get(text)
        if id_ is None:
            known = ", ".join(self.added_tokens) or "none, as this tokenizer has no added tokens"
            raise TokenizerError(
                f"{text!r} is not an added token; expected one of: {known}. Add it to the "
                "tokenizer, or write it as text."
            )
        return id_

    def decode(self, ids: Sequence[int]) -> str:
        """Decode tokens; bytes that are not UTF-8 become the replacement character."""
        # The library's decoder would read an added "<\u00e9>" as the byte of that character.
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, id_: int) -> bytes:
        """Return the bytes of a token: one or more, possibly part of a character.

        An id without a token, of which the embedding may have some, has none.
        """
        if id_ in self._added_bytes:
            return self._added_bytes[id_]
        name = self.tokenizer.id_to_token(id_) or ""
        return bytes(map(_BYTE_OF_CHARACTER.__getitem__, name))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into a folder, and `image_sizes.json` if images have any size."""
        write_text(folder / TEXT_TOKENIZER_NAME, self.tokenizer.to_str(pretty=False))
        write_image_sizes(folder, self.vocabulary)

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer":
        """Read `tokenizer.json` from a folder, and `image_sizes.json` if it has one.

        Raises:
            TokenizerError: the file is missing or no tokenizer, or the folder is a model's.
        """
        folder = find_model_folder(folder)
        path = folder / TEXT_TOKENIZER_NAME
        if not path.is_file():
            raise_if_model_folder(folder)
            raise TokenizerError(
                f"{folder} holds no {TEXT_TOKENIZER_NAME}; expected a text tokenizer. Train one "
                "with `calumma train-text-tokenizer DOCS --out DIR`."
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"{path}: not a tokenizer ({error}); expected the JSON of the tokenizers library. "
                "Copy it again, or train one with `calumma train-text-tokenizer`."
            ) from error
        loaded = cls(tokenizer)
        if (path := folder / IMAGE_SIZES_NAME).is_file():
            loaded.vocabulary = replace(loaded.vocabulary, image_sizes=_read_image_sizes(path))
        return loaded


def write_image_sizes(folder: Path, vocabulary: Vocabulary) -> None:
    """Write `image_sizes.json` into a folder of a text tokenizer, or delete it for squares."""
    if vocabulary.image_sizes is None:
        (folder / IMAGE_SIZES_NAME).unlink(missing_ok=True)
    else:
        write_json(folder / IMAGE_SIZES_NAME, asdict(vocabulary.image_sizes))


def _read_image_sizes(path: Path) -> ImageSizeTokens:
    try:
        return ImageSizeTokens.from_json(read_json(path))
    except (FileError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{path}: the sizes of images cannot be read ({error}); expected the file that belongs to "
            f"{TEXT_TOKENIZER_NAME}. Copy it again."
        ) from error


def raise_if_model_folder(folder: Path) -> None:
    """Raise an error with the fix if a folder without tokenizer files is a model folder.

    Raises:
        TokenizerError: the folder holds a model in Hugging Face's or Meta's layout, or is the
            tokenizer folder of a release.
    """
    has_vqgan = (folder / "vqgan.yaml").is_file()
    model = folder.parent if has_vqgan and not _is_model_folder(folder) else folder
    if _is_model_folder(model):
        raise TokenizerError(
            f"{folder} is a model folder; expected a folder of tokenizers. Write the model's into "
            f"one with `calumma convert {model} tokenizers --to tokenizers`, and name that."
        )


def _is_model_folder(folder: Path) -> bool:
    if (folder / "params.json").is_file() or any(folder.glob("models/*/params.json")):
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # The config.json of a training run has no model_type.
    return isinstance(config, dict) and "model_type" in config
