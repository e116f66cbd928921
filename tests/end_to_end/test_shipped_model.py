"""The model in the package: complete, made by the recipe, and able to draw."""

import hashlib
import json
from pathlib import Path

import pytest

import calumma
from calumma.corpora.still_life import StillLife, Thing
from calumma.demo.evening import RECIPE_FILE, EveningPipeline, load_evening_config
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_lifes import first_image
from calumma.generate.model import Model
from calumma.hub import SHIPPED_MODEL, find_model_folder, shipped_model_folder

MAX_BYTES = 20 << 20


@pytest.fixture(scope="module")
def shipped() -> Model:
    return calumma.load(SHIPPED_MODEL, device="cpu")


def test_the_name_is_the_folder_in_the_package_unless_one_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model_folder("still-life") == find_model_folder(Path("still-life")) == shipped_model_folder()
    assert find_model_folder("out/tiny/model") == Path("out/tiny/model")
    (tmp_path / "still-life").mkdir()
    assert find_model_folder("still-life") == Path("still-life")


def test_files_have_their_checksums_and_are_small() -> None:
    folder = shipped_model_folder()
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    expected = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    files = {path.name: path for path in folder.iterdir() if path.name != "SHA256SUMS"}
    assert set(expected) == set(files)
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == expected
    assert sum(path.stat().st_size for path in files.values()) < MAX_BYTES


def test_the_recipe_is_that_of_the_evenings_demo() -> None:
    recipe = json.loads((shipped_model_folder() / RECIPE_FILE).read_text())
    assert recipe == json.loads(json.dumps(EveningPipeline(Path("out"), load_evening_config()).recipe))


def test_shapes_and_sampling_rules_are_those_of_the_recipe(shipped: Model) -> None:
    config = load_evening_config()
    pretraining = config.pretrain_config(Path("out"))
    assert shipped.decoder.config.model_dim == pretraining.model.model_dim
    assert shipped.decoder.config.num_layers == pretraining.model.num_layers
    assert shipped.image.config == config.image_tokenizer.network
    assert shipped.default_image_sampling == config.image_sampling
    assert shipped.default_text_sampling == config.text_sampling


def test_it_draws_what_is_requested_with_its_own_sampling_rules(shipped: Model) -> None:
    samples = shipped.generate_batch(
        [["a red circle left of a banana"]] * 6, add_generation_prompt=True, seeds=range(6), max_new_tokens=70
    )
    images = [image for sample in samples if (image := first_image(sample))]
    assert len(images) == 6
    expected = {Thing("circle", "red"), Thing("banana")}
    assert sum(expected <= set(read_still_life(image).scene.things) for image in images) >= 3


def test_it_answers_questions_about_images_without_drawing(shipped: Model) -> None:
    image = StillLife("blue", "row", (Thing("square", "red"), Thing("banana"))).render()
    questions = {"What color is the background?": "blue", "How many things are there?": "two"}
    answers = [
        shipped.generate([image, question], add_generation_prompt=True, max_new_tokens=16).parts
        for question in questions
    ]
    assert answers == [[answer] for answer in questions.values()]
