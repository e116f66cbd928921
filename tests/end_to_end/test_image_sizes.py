"""Images of three sizes, command by command: tokenizers, shards, pre-training, fine-tuning, drawing."""

import json
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

import calumma
from calumma.cli.main import main
from calumma.documents.document import Document, Image, Text, Turn
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_jsonl
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.evaluator import TASKS, evaluate
from calumma.evaluate.likelihood import caption_first_ids
from calumma.evaluate.model_card import write_card
from calumma.evaluate.retrieval import _image_scores
from calumma.tokens.folder import Tokenizers
from calumma.tokens.sequence import CodeGrid
from tests.end_to_end.test_verbs import FINETUNE, NAMES, PRETRAIN
from tests.images import png

SIDES = ((16, 16), (32, 16), (16, 32))


@pytest.fixture(scope="module")
def folder(tokenizers: Tokenizers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    documents = []
    for number in range(12):
        image = Image(data=png(number, *SIDES[number % 3]))
        words = Text(f"image {number} of a {NAMES[number % 6]}, large and small, on blue ground")
        documents.append(Document(id=f"pair-{number}", source="pairs", content=(words, image)))
        turns = (Turn("user", (words,)), Turn("assistant", (image,)))
        documents.append(Document(id=f"chat-{number}", source="chat", messages=turns))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_jsonl(Path("docs.jsonl"), documents)
        tokenizers.image.save(Path("tok"))
        Path("pretrain.toml").write_text(PRETRAIN)
        Path("finetune.toml").write_text(FINETUNE + "[trainable]\nblocks = 'lora'\nembeddings = 'all'\n")
        for line in (
            "train-text-tokenizer docs.jsonl --out tok --num-text 300 --image-tokenizer tok "
            "--image-sizes 16x16,32x16,16x32",
            "build-shards docs.jsonl --tokenizers tok --out shards",
            "pretrain pretrain.toml --out run --data.cond-dropout-prob 0.5",
            "finetune finetune.toml --out tuned --data.cond-dropout-prob 0.5",
        ):
            assert main(line.split()) == 0, line
    return folder


@pytest.mark.parametrize("size", ["16x16", "32x16", "16x32", "auto"])
def test_the_tuned_model_draws_a_size(folder: Path, size: str, tmp_path: Path) -> None:
    words = ["--prompt", "draw", "--size", size, "--modality", "image", "--max-images", "1", "--out", str(tmp_path)]
    assert main(["generate", str(folder / "tuned" / "model"), *words]) == 0
    [name] = [part["path"] for part in json.loads((tmp_path / "document.json").read_text())["content"]]
    with PIL.Image.open(tmp_path / name) as image:
        found = "{}x{}".format(*image.size)
    assert found in ("16x16", "32x16", "16x32") if size == "auto" else found == size


def test_sizes_are_in_every_folder(folder: Path) -> None:
    files = [folder / name / "image_sizes.json" for name in ("tok", "run/model", "tuned/model")]
    assert len({file.read_text() for file in files}) == 1
    shards = json.loads((folder / "shards" / "manifest.json").read_text())
    assert shards["vocabulary"]["image_sizes"] == json.loads(files[0].read_text())


def test_evaluation_reads_images_in_their_sizes(folder: Path) -> None:
    model = calumma.load(folder / "run" / "model", device="cpu", dtype="float32")
    documents = [
        Document(id=str(n), content=(Text(f"words {n}"), Image(data=png(n, *SIDES[n % 3])))) for n in range(12)
    ]
    context = EvalContext(model, documents)
    grids = [pair.codes for pair in context.pairs if isinstance(pair.codes, CodeGrid)]
    assert {(grid.rows, grid.columns) for grid in grids} == {(2, 2), (2, 4), (4, 2)}
    ids = caption_first_ids(context, context.pairs[1], ())
    assert model.decode(ids)[0].size == (32, 16)  # type: ignore[union-attr]
    rows = [(own, other) for own in range(12) for other in range(10)]
    scores, unconditional = _image_scores(context, context.pairs, rows, EvalConfig())
    assert scores.shape == (12, 10)
    assert unconditional.shape == (12,)


def test_every_task_of_documents_measures_images_of_several_sizes(folder: Path) -> None:
    model = calumma.load(folder / "tuned" / "model", device="cpu")
    documents = [replace(each, attributes={"ground": "blue"}) for each in read_documents([folder / "docs.jsonl"])]
    tasks = [name for name, task in TASKS.items() if not task.files and name not in ("safety", "text_to_image")]
    report = evaluate(model, documents, tasks, EvalConfig(seed=3, max_prompts=2))
    assert {metric.task for metric in report.metrics} == set(tasks)
    assert report.metric("code_bits_per_token").n == 24


def test_the_sizes_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folder / "tuned" / "model", folder / "tok"):
        assert main(["inspect", str(path)]) == 0
        assert "images: 16x16 or 32x16 or 16x32" in capsys.readouterr().out.splitlines()
    row = "| images | 16x16 or 32x16 or 16x32; at most 8 codes each |"
    assert row in write_card(folder / "tuned" / "model", [], []).read_text()
