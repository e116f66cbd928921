"""Text to ids and back: byte-level BPE whose vocabulary holds the image codes too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

from calumma.errors import TokenizerError
from calumma.files import write_text
from calumma.tokens.mistaken import refuse_model
from calumma.vocabulary import BOS_NAME, UNK_NAME, Vocabulary

NUM_BYTES = 256
TEXT_TOKENIZER_NAME = "tokenizer.json"


def _bytes_of_characters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte: itself where it can be printed."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printed]
    shifted = {chr(NUM_BYTES + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in printed} | shifted


_BYTE_OF_CHARACTER = _bytes_of_characters()


class TextTokenizer:
    """A byte-level BPE in the release's layout; every text can be encoded, none holds an image.

    >>> tokenizer = TextTokenizer.train(["low lower lowest"] * 4, num_text=260, num_codes=4)
    >>> tokenizer.decode(tokenizer.encode("lowest <s> IMGIMGAZ")) == "lowest <s> IMGIMGAZ"
    True
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        # A user may write "<eoss>": without this, text could open or close an image.
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.from_token_names(tokenizer.get_vocab(with_added_tokens=True))
        # Other software may have added control tokens as ordinary ones, which text can spell.
        controls = [
            AddedToken(token.content, special=True, normalized=False)
            for id_, token in tokenizer.get_added_tokens_decoder().items()
            if id_ not in self.vocabulary.text and not token.special
        ]
        tokenizer.add_special_tokens(controls)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        num_text: int,
        num_codes: int,
        show_progress: bool = False,
    ) -> TextTokenizer:
        """Learn merges from texts.

        Args:
            texts: the training text, in pieces of any length.
            num_text: text ids expected, the 256 bytes included.
            num_codes: image codes to hold inside the vocabulary.
            show_progress: print the trainer's own bars.

        Raises:
            TokenizerError: fewer ids than bytes are expected, or the texts do not hold enough
                different pairs for the merges expected.

        Source: the release splits off white-space runs, single digits and every punctuation
        mark before GPT-2's pattern.
        """
        if num_text < NUM_BYTES:
            raise TokenizerError(
                f"num_text={num_text} is fewer than the {NUM_BYTES} bytes that every text can be "
                f"spelt with; expected at least {NUM_BYTES}."
            )
        layout = Vocabulary(num_codes=num_codes, num_text=num_text)
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
        # For others, such as transformers, who encode a whole prompt; `encode` leaves it out.
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS_NAME} $A",
            pair=f"{BOS_NAME} $A $B",
            special_tokens=[(BOS_NAME, layout.bos)],
        )
        trained = cls(tokenizer)
        if trained.vocabulary.num_text != num_text:
            raise TokenizerError(
                f"the texts give {trained.vocabulary.num_text} text ids; expected {num_text}. "
                "Give more text, or ask for fewer ids."
            )
        return trained

    def encode(self, text: str) -> list[int]:
        """The ids of a text, control tokens never among them."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, on all cores."""
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of text ids; bytes that are no UTF-8 become the replacement character."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, id_: int) -> bytes:
        """The bytes that a text id stands for: one to many, and not always whole characters."""
        name: str = self.tokenizer.id_to_token(id_)  # type: ignore[assignment]
        return bytes(map(_BYTE_OF_CHARACTER.__getitem__, name))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into a folder."""
        write_text(folder / TEXT_TOKENIZER_NAME, self.tokenizer.to_str(pretty=False))

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Read `tokenizer.json` from a folder.

        Raises:
            TokenizerError: it is not there or is no tokenizer, or the folder is a model's.
        """
        path = folder / TEXT_TOKENIZER_NAME
        if not path.is_file():
            refuse_model(folder)
            raise TokenizerError(
                f"{folder} holds no {TEXT_TOKENIZER_NAME}; expected a text tokenizer. Train one with "
                "`calumma train-text-tokenizer DOCS --out DIR`."
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"{path}: is no tokenizer ({error}); expected the JSON of the tokenizers library."
            ) from error
        return cls(tokenizer)
