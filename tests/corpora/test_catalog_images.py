"""The table of images and questions."""

from calumma.corpora.catalog_images import IMAGE_CORPORA, VQA_CORPORA


def test_images_are_pairs_of_one_image_each() -> None:
    for corpus in IMAGE_CORPORA:
        assert corpus.kind == "pairs"
        assert corpus.num_documents == corpus.num_images


def test_questions_are_for_training_or_for_evaluation_alone() -> None:
    assert {corpus.kind for corpus in VQA_CORPORA} == {"questions", "evaluation"}


def test_emoji_have_the_packages_that_name_them() -> None:
    for corpus in IMAGE_CORPORA:
        if corpus.name in ("fluent-flat", "fluent-3d", "noto", "twemoji"):
            names = {package.name for package in corpus.packages}
            assert {"unicode-data", "cldr-annotations-full"} < names
