"""Images of captions by a decoder that is still in training."""

from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from calumma.generate.engine import Engine
from calumma.generate.grammar import image_length
from calumma.generate.output_decoder import OutputDecoder
from calumma.generate.params import EngineConfig, ImageSampling, Request
from calumma.model.decoder import Decoder
from calumma.tokens.folder import Tokenizers
from calumma.tokens.sequence import encode_prompt


def generate_caption_images(
    tokenizers_folder: Path, decoder: Decoder, captions: Sequence[str], sampling: ImageSampling, seed: int
) -> list[PIL.Image.Image]:
    """Continue each caption, as in a document of a text and an image, with an image.

    Args:
        tokenizers_folder: of both tokenizers.
        decoder: in evaluation mode; it is not changed.
        captions: at least one.
        sampling: of the image tokens.
        seed: of each image.
    """
    tokenizers = Tokenizers.load(tokenizers_folder)
    vocabulary, codes = tokenizers.text.vocabulary, tokenizers.image.config.codes_per_image
    length = image_length(vocabulary, codes, None)
    requests = [
        Request(
            prompt_token_ids=tuple(encode_prompt([caption], tokenizers.text, add_generation_prompt=False)),
            max_new_tokens=length,
            seed=seed,
            image=sampling,
            modality="image",
            max_images=1,
        )
        for caption in captions
    ]
    longest = max(len(request.prompt_token_ids) for request in requests)
    config = EngineConfig(
        max_cached_tokens=3 * len(requests) * (longest + length),
        max_num_seqs=3 * len(requests),
        compile=False,
        cuda_graphs=False,
    )
    engine = Engine(decoder, vocabulary, codes, config=config)
    images = []
    for state in engine.generate(requests):
        output = OutputDecoder(tokenizers.text, tokenizers.image.decode_image, state.request)
        for id_ in state.output_token_ids:
            output.push(id_)
        images += [part for part in output.finish() if isinstance(part, PIL.Image.Image)]
    return images
