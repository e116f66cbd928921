"""The tiny model of all tests as a `Model`, and composed scenes."""

import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.documents.document import Document
from calumma.generate.model import Model
from tests.evaluate.oracle import scene_documents


@pytest.fixture(scope="session")
def model(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


@pytest.fixture(scope="session")
def scenes() -> list[Document]:
    return scene_documents()
