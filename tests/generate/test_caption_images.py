"""Images of captions: those of the public interface, without a change of the decoder."""

from pathlib import Path

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate.caption_images import generate_caption_images
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, Request


def test_each_caption_is_continued_with_an_image(model_parts: ModelComponents, tmp_path: Path) -> None:
    decoder, tokenizers = model_parts.decoder, model_parts.tokenizers
    tokenizers.save(tmp_path)
    requires_grad = [parameter.requires_grad for parameter in decoder.parameters()]
    sampling, captions = ImageSampling(guidance_scale=2.0), ["a red circle", "words"]
    images = generate_caption_images(tmp_path, decoder, captions, sampling, 3)
    assert [parameter.requires_grad for parameter in decoder.parameters()] == requires_grad
    model = Model(model_parts)
    for caption, image in zip(captions, images, strict=True):
        request = Request(
            prompt_token_ids=tuple(model.encode([caption])),
            max_new_tokens=model.image.config.codes_per_image + 2,
            seed=3,
            image=sampling,
            modality="image",
            max_images=1,
        )
        [state] = model.engine.generate([request])
        codes = [model.vocabulary.id_to_code(id_) for id_ in state.output_token_ids if id_ in model.vocabulary.codes]
        assert model.decode_image(codes).tobytes() == image.tobytes()
