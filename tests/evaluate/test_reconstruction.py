import numpy as np
import pytest

from calumma.documents.document import Document, Text
from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.reconstruction import codebook_metrics, evaluate_reconstruction, reconstruction
from calumma.evaluate.reconstruction_details import psnr_db
from calumma.generate.model import Model
from calumma.tokens.image import image_to_pixels
from tests.evaluate.oracle import letter_documents, oracle_model


def test_the_metric_is_the_mean_over_images_with_mean_colors_as_baseline(model: Model, scenes: list[Document]) -> None:
    metric = reconstruction(EvalContext(model, scenes), EvalConfig())[0]
    each, flat = [], []
    for document in scenes:
        pixels = image_to_pixels(document.images[0].open(), 16)
        decoded = model.image.decode(model.image.encode(pixels[None]))
        each.append(psnr_db(pixels[None], decoded)[0])
        mean = pixels.mean(dim=(1, 2), keepdim=True).expand(3, 16, 16)
        flat.append(psnr_db(pixels[None], mean[None])[0])
    assert metric.name == "reconstruction_psnr_db"
    assert metric.value == pytest.approx(np.mean(each), abs=1e-3)
    assert metric.baseline == pytest.approx(np.mean(flat), abs=1e-3)
    assert metric.n == len(scenes)


def test_codebook_metrics_by_hand() -> None:
    used, perplexity = codebook_metrics(np.array([[0, 0], [1, 1]]), num_codes=8)
    assert (used.name, used.value, used.n) == ("codebook_used", 0.25, 2)
    assert used.note == "2 of 8 codes occur in 4 cells"
    assert (perplexity.name, perplexity.value) == ("codebook_perplexity", pytest.approx(2.0))


def test_documents_without_images_are_refused() -> None:
    context = EvalContext(oracle_model(0.0), [Document(id="1", content=(Text("a"),))])
    with pytest.raises(EvaluationError) as caught:
        reconstruction(context, EvalConfig())
    assert str(caught.value) == (
        "reconstruction: found no image in 1 document; expected at least one. Give documents with "
        "images (--documents), or leave this task out."
    )


def test_a_model_without_its_image_decoder_is_refused() -> None:
    context = EvalContext(oracle_model(0.0, has_image_decoder=False), letter_documents("a"))
    with pytest.raises(EvaluationError) as caught:
        reconstruction(context, EvalConfig())
    assert str(caught.value) == (
        "reconstruction: the model folder has no vq_decoder.safetensors, so codes cannot be "
        "decoded to images; expected the decoder of its image tokenizer. Put that file into the "
        "folder, or leave this task out."
    )


def test_a_tokenizer_alone_gives_the_same_metrics(model: Model, scenes: list[Document]) -> None:
    images = [image for document in scenes for image in document.images]
    metrics, grids, skipped = evaluate_reconstruction(model.image, images, EvalConfig())
    assert metrics == reconstruction(EvalContext(model, scenes), EvalConfig())
    assert grids == [] and skipped == []


def test_a_tokenizer_alone_wants_images_too(model: Model) -> None:
    with pytest.raises(EvaluationError) as caught:
        evaluate_reconstruction(model.image, [], EvalConfig())
    assert str(caught.value) == (
        "reconstruction: found no image in the documents; expected at least one. Give documents "
        "with images (--documents)."
    )
