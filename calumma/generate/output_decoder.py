"""Output decoder: incremental detokenization, stop strings, and partial images of one output."""

import codecs
from collections.abc import Callable, Sequence

import PIL.Image

from calumma.generate.events import Event, ImageBegun, ImageCodes, ImageDone, ImageProgress, OutputPart, TextPiece
from calumma.generate.params import Request
from calumma.tokens.sequence import CodeGrid
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary


class OutputDecoder:
    """Turns the tokens of one output into events, each token once.

    A text event has complete characters: the bytes of a character that several tokens spell are
    held until the last one. Text that may be the beginning of a stop string is held too.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        decode_image: Callable[[Sequence[int]], PIL.Image.Image] | None,
        request: Request,
        partial_image_interval: int | None = 0,
    ) -> None:
        """Start the output of a request, whose prompt may leave an image open.

        `decode_image` decodes the codes of an image, all or the first of them; without it an image
        is a part that holds its codes. The interval is the
        number of codes from one partial image to the next, 0 for none, and None for one row of an
        image of any size.
        """
        self._tokenizer, self._vocabulary = tokenizer, tokenizer.vocabulary
        self._decode_image, self._request = decode_image, request
        self.partial_image_interval = partial_image_interval
        open_image = _open_image(request.prompt_token_ids, self._vocabulary)
        self._codes = [self._vocabulary.id_to_code(id_) for id_ in open_image if id_ in self._vocabulary.codes]
        """Codes of the open image."""

        sizes = self._vocabulary.image_sizes
        self._sides = [] if sizes is None else [sizes.side_cells(id_) for id_ in open_image[:2]]
        """Rows and columns of the open image, in a vocabulary with image sizes."""

        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        """Text that may be the beginning of a stop string."""

        self.parts: list[OutputPart] = []
        """Texts and finished images so far, in reading order."""

        self.num_tokens = 0
        """Tokens decoded so far."""

        self.is_stopped = False
        """Whether a stop string or token has ended the output: later tokens are ignored."""

    def decodes_image(self, id_: int) -> bool:
        """Return whether `push` of this token decodes an image, which takes time."""
        if self.is_stopped or self._decode_image is None:
            return False
        interval = self.partial_image_interval
        if interval is None:
            interval = self._sides[1] if len(self._sides) == 2 else 0
        is_partial = bool(interval) and (len(self._codes) + 1) % interval == 0
        return id_ == self._vocabulary.end_image or (id_ in self._vocabulary.codes and is_partial)

    def push(self, id_: int) -> list[Event]:
        """Decode one more token."""
        if self.is_stopped:
            return []
        decodes_image = self.decodes_image(id_)
        self.num_tokens += 1
        vocabulary = self._vocabulary
        if id_ == vocabulary.begin_image:
            events = self.flush()
            self._codes, self._sides = [], []
            return [*events, ImageBegun()]
        if id_ in vocabulary.codes:
            self._codes.append(vocabulary.id_to_code(id_))
            if not decodes_image or self._decode_image is None:
                return []
            return [ImageProgress(self._decode_image(self._grid()), len(self._codes))]
        if id_ == vocabulary.end_image:
            image = self._finished_image()
            self.parts.append(image)
            return [ImageDone(image)]
        if id_ in self._request.stop_token_ids:
            events = self.flush()
            self.is_stopped = True
            return events
        if vocabulary.image_sizes is not None and id_ in vocabulary.image_sizes and len(self._sides) < 2:
            self._sides.append(vocabulary.image_sizes.side_cells(id_))
            return []
        if id_ in vocabulary.text:
            return self._text_events(self._match_stop(self._utf8.decode(self._tokenizer.token_bytes(id_))))
        return []

    def flush(self) -> list[Event]:
        """End a text: emit an incomplete character and the held beginning of a stop string."""
        if self.is_stopped:
            return []
        rest = self._match_stop(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        held, self._held = self._held, ""
        return self._text_events(rest + held)

    def finish(self) -> list[OutputPart]:
        """End the output and return all its parts, an unfinished image among them."""
        self.flush()
        if self._codes and not self.is_stopped:
            self.parts.append(self._finished_image())
        return self.parts

    def _finished_image(self) -> PIL.Image.Image | ImageCodes:
        codes, self._codes = self._grid(), []
        return ImageCodes(tuple(codes)) if self._decode_image is None else self._decode_image(codes)

    def _grid(self) -> list[int]:
        """Return the codes of the open image, with its rows and columns if it has them."""
        return CodeGrid(self._codes, *self._sides) if len(self._sides) == 2 else self._codes

    def _match_stop(self, text: str) -> str:
        """Return the text that may be emitted: up to a stop string or the beginning of one."""
        stops = self._request.stop
        if not stops or 0 < self.num_tokens <= self._request.min_tokens:
            return text
        text = self._held + text
        found = [start for stop in stops if (start := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        num_held = max(_prefix_at_end(text, stop) for stop in stops)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def _text_events(self, text: str) -> list[Event]:
        if not text:
            return []
        if self.parts and isinstance(self.parts[-1], str):
            self.parts[-1] += text
        else:
            self.parts.append(text)
        return [TextPiece(text)]


def _prefix_at_end(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _open_image(token_ids: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """Return the token ids of the image that a prompt leaves open, after its begin."""
    ids: list[int] = []
    for id_ in reversed(token_ids):
        if id_ == vocabulary.begin_image:
            return ids[::-1]
        if id_ == vocabulary.end_image or not vocabulary.is_image_token(id_):
            break
        ids.append(id_)
    return []
