"""Edits of an image: by instruction alone, or inside a mask with the other codes kept.

A mask selects cells of the image's grid. Their codes are generated, in the order of the image, with
the codes of the cells before them as context; the codes of the other cells are those of the image.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from calumma.errors import GenerationError, ImageError
from calumma.generate.grammar import image_length
from calumma.generate.params import Request
from calumma.tokens.image_preprocessing import mask_to_size, to_grid, to_rgb, to_square
from calumma.vocabulary import Grid, Vocabulary

if TYPE_CHECKING:
    from calumma.generate.model import Model


def masked_cells(mask: PIL.Image.Image, cell: int, margin: int = 0) -> list[bool]:
    """Return for each cell of the grid, row by row, whether a mask selects any of its pixels.

    Args:
        mask: of `mask_to_size`, white where the image is edited.
        cell: pixels of a cell's side.
        margin: cells by which the selection grows on each side. An encoder has seen the pixels
            under the mask in the cells around it; with a margin these are generated too.

    Raises:
        GenerationError: no cell is selected.
    """
    pixels = np.asarray(mask.convert("L")) > 0
    rows, columns = (side // cell for side in pixels.shape)
    cells = pixels.reshape(rows, cell, columns, cell).any(axis=(1, 3))
    if not cells.any():
        raise GenerationError(
            "the mask selects nothing; expected transparent pixels, or white ones in a mask without transparency. "
            "Paint the area to edit."
        )
    for _ in range(margin):
        padded = np.pad(cells, 1)
        cells = np.stack([padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]).any(axis=0)
    return [bool(cell) for cell in cells.flat]


def known_codes(token_ids: Sequence[int], cells: Sequence[bool], vocabulary: Vocabulary) -> tuple[int | None, ...]:
    """Return the codes of the first image of a prompt, None in the cells to generate."""
    start = list(token_ids).index(vocabulary.begin_image) + 1
    codes = [vocabulary.id_to_code(id_) for id_ in token_ids[start:] if id_ in vocabulary.codes]
    return tuple(None if cell else code for cell, code in zip(cells, codes, strict=False))


def edited_grid(fitted: PIL.Image.Image, vocabulary: Vocabulary, cell: int) -> Grid | None:
    """Return the grid of an edited image: that of the given one, None in a model of squares."""
    return None if vocabulary.image_sizes is None else (fitted.height // cell, fitted.width // cell)


def require_same_size(mask_size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raise `ImageError` unless a mask has the size of its image, (width, height) in pixels."""
    if mask_size != image_size:
        found, expected = (f"{width} x {height}" for width, height in (mask_size, image_size))
        raise ImageError(
            f"the mask has {found} pixels, its image {expected}; expected the same size. Resize the mask."
        )


def edit_request(
    model: "Model",
    image: PIL.Image.Image,
    prompt: str,
    /,
    *,
    mask: PIL.Image.Image | None = None,
    mask_margin: int = 0,
    **options: Any,
) -> Request:
    """Build the request for an edited image: a crop of the given one to a size of the model, changed.

    Args:
        model: encodes the prompt.
        image: of any mode and size.
        prompt: the instruction.
        mask: of the same size: transparent, or white if it has no transparency, where the image is
            to change. The codes of all other cells stay. None lets every code change.
        mask_margin: cells around the mask that change too.
        options: as in `Model.generate_batch`.

    Raises:
        ImageError: the mask has another size.
        GenerationError: the mask selects nothing.
    """
    config, sizes = model.image.config, model.vocabulary.image_sizes
    cell = config.downsampling
    upright = to_rgb(image)
    fitted = to_square(upright, config.resolution) if sizes is None else to_grid(upright, sizes.grids, cell)
    token_ids = model.encode_chat([{"role": "user", "content": [fitted, prompt]}])
    known: tuple[int | None, ...] = ()
    if mask is not None:
        require_same_size(mask.size, upright.size)
        cells = masked_cells(mask_to_size(mask, *fitted.size), cell, mask_margin)
        known = known_codes(token_ids, cells, model.vocabulary)
    num_text = model.default_image_sampling.max_edit_text_tokens
    defaults: dict[str, Any] = {
        "text": model.default_text_sampling,
        "image": model.default_image_sampling,
        "modality": "image",
        "max_images": 1,
        "max_leading_text_tokens": num_text,
        "max_new_tokens": num_text + image_length(model.vocabulary, config.codes_per_image, None),
        "image_grid": edited_grid(fitted, model.vocabulary, cell),
    }
    return Request(prompt_token_ids=tuple(token_ids), known_codes=known, **defaults | options)


def open_last_image(token_ids: list[int], num_kept: int, vocabulary: Vocabulary) -> list[int]:
    """Cut a prompt after this many codes of the image that it ends in; height and width are kept.

    Raises:
        GenerationError: it ends in text, or the image has fewer codes.
    """
    if token_ids[-1] != vocabulary.end_image:
        raise GenerationError(
            f"keep_image_tokens={num_kept} of a prompt that ends in text; expected an image at the end. Add it."
        )
    begin = len(token_ids) - 1 - token_ids[::-1].index(vocabulary.begin_image)
    positions = [n for n in range(begin, len(token_ids)) if token_ids[n] in vocabulary.codes]
    if not 0 <= num_kept <= len(positions):
        raise GenerationError(
            f"keep_image_tokens={num_kept} of an image of {len(positions)} codes; expected from 0 to {len(positions)}."
        )
    return token_ids[: positions[num_kept - 1] + 1 if num_kept else positions[0]]
