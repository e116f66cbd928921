"""`calumma generate` with an untrained model."""

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

import calumma
from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.checkpoints.peft_folder import write_adapter
from calumma.cli.main import main
from calumma.generate import model as generate_model
from tests.generate.test_image_sizes import sized_model
from tests.images import noise
from tests.model.test_lora import random_adapter


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("generate") / "model"
    save_model(folder, model_parts)
    return str(folder)


Written = dict[str, Any]


def generate(out: Path, *words: str) -> Written:
    given = ["generate", *words, "--out", str(out), "--device", "cpu", "--max-new-tokens", "20"]
    assert main(given) == 0
    written: Written = json.loads((out / "document.json").read_text())
    return written


def test_the_same_seed_makes_the_same_document_and_another_another(model: str, tmp_path: Path) -> None:
    prompt = (model, "--prompt", "a red circle", "--max-images", "1")
    first, again, other = (
        generate(tmp_path / name, *prompt, "--seed", seed) for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert first["content"] == again["content"]
    assert first["content"] != other["content"]


def test_max_images_zero_generates_text_only(model: str, tmp_path: Path) -> None:
    written = generate(tmp_path, model, "--prompt", "a", "--max-images", "0", "--continue")
    assert {part["type"] for part in written["content"]} <= {"text"}
    assert list((tmp_path / "images").iterdir()) == []


def test_an_unreadable_image_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    path.write_text("hello")
    assert main(["generate", "--image", str(path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: not an image (its first bytes are b'hello'); expected PNG, JPEG, WebP or another format of "
        "Pillow. Replace the file, or drop its document.\n"
    )


def test_an_adapter_changes_the_output(model: str, model_parts: ModelComponents, tmp_path: Path) -> None:
    decoder = model_parts.decoder
    write_adapter(tmp_path / "adapter", random_adapter(decoder, 1), decoder.config, Path(model))
    words = (model, "--prompt", "a red circle", "--max-images", "0")
    plain = generate(tmp_path / "a", *words)
    assert generate(tmp_path / "b", *words, "--adapter", str(tmp_path / "adapter"))["content"] != plain["content"]


def test_images_have_the_requested_size(model_parts: ModelComponents, tmp_path: Path) -> None:
    save_model(tmp_path / "model", sized_model(model_parts).components)
    words = ("--prompt", "a", "--modality", "image", "--max-images", "1", "--size", "16x32")
    given = ["generate", str(tmp_path / "model"), *words, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(given) == 0
    (path,) = (tmp_path / "out" / "images").iterdir()
    with PIL.Image.open(path) as image:
        assert image.size == (16, 32)


def test_a_quantized_model_generates_images_and_text(model: str, tmp_path: Path) -> None:
    words = ("--prompt", "a", "--modality", "image-first", "--quantization", "int8")
    assert generate(tmp_path, model, *words)["content"][0]["type"] == "image"


def test_blocks_are_compiled_only_with_the_option(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(generate_model, "compile_blocks", compiled.append)
    generate(tmp_path / "a", model, "--prompt", "a")
    assert not compiled
    generate(tmp_path / "b", model, "--prompt", "a", "--compile")
    assert len(compiled) == 1


def test_parts_of_the_prompt_keep_their_order(model: str, tmp_path: Path) -> None:
    noise(3).save(tmp_path / "in.png")
    image = ("--image", str(tmp_path / "in.png"))
    written = generate(tmp_path / "o", model, "--prompt", "a", *image, "--prompt", "b", *image)
    assert written["prompt"] == ["a", "[image]", "b", "[image]"]


def test_several_samples_have_consecutive_seeds(model: str, tmp_path: Path) -> None:
    words = ["generate", model, "--prompt", "a", "--num-samples", "2", "--seed", "5"]
    assert main([*words, "--max-new-tokens", "9", "--out", str(tmp_path)]) == 0
    both = [json.loads((tmp_path / n / "document.json").read_text()) for n in ("1", "2")]
    alone = generate_with_seed(model, tmp_path / "alone", 6)
    assert [one["request"]["seed"] for one in both] == [5, 6]
    assert both[0]["content"] != both[1]["content"] == alone["content"]


def test_the_best_of_several_samples_is_written(model: str, tmp_path: Path) -> None:
    reward = ("--reward", "short_answer")
    words = ["generate", model, "--prompt", "a", "--modality", "text", "--max-new-tokens", "9", "--out", str(tmp_path)]
    assert main([*words, "--num-samples", "2", "--best-of", "4", *reward]) == 0
    both = [json.loads((tmp_path / n / "document.json").read_text())["request"] for n in ("1", "2")]
    assert both[0]["reward"] >= both[1]["reward"] and {one["seed"] for one in both} < {0, 1, 2, 3}
    assert main([*words, "--best-of", "2"]) == 0
    assert json.loads((tmp_path / "document.json").read_text())["request"]["reward"] < 0


def generate_with_seed(model: str, out: Path, seed: int) -> Written:
    words = ["generate", model, "--prompt", "a", "--seed", str(seed), "--max-new-tokens", "9"]
    assert main([*words, "--out", str(out)]) == 0
    written: Written = json.loads((out / "document.json").read_text())
    return written


def test_the_first_image_tokens_of_the_last_image_are_kept(model: str, tmp_path: Path) -> None:
    noise(3).save(tmp_path / "in.png")
    words = ("--image", str(tmp_path / "in.png"), "--keep-image-tokens", "3", "--max-images", "0")
    written = generate(tmp_path / "o", model, *words)
    assert written["content"][0]["type"] == "image"
    assert written["request"]["keep_image_tokens"] == 3
    original, completed = (calumma.load(model).encode_image(i) for i in images(tmp_path))
    assert len(original) == len(completed) == 4


def test_more_tokens_than_an_image_has_cannot_be_kept(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise(3).save(tmp_path / "in.png")
    words = ["generate", model, "--image", str(tmp_path / "in.png"), "--keep-image-tokens", "5"]
    assert main([*words, "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err == "error: keep_image_tokens=5 of an image of 4 codes; expected from 0 to 4.\n"


def images(folder: Path) -> list[PIL.Image.Image]:
    return [PIL.Image.open(folder / name) for name in ("in.png", "o/images/0.png")]


def test_the_default_token_limit_of_image_only_samples_fits_the_images(model: str, tmp_path: Path) -> None:
    words = ["generate", model, "--prompt", "a", "--modality", "image", "--max-images", "2"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    written: Written = json.loads((tmp_path / "document.json").read_text())
    assert {part["type"] for part in written["content"]} == {"image"}
    assert written["request"]["max_new_tokens"] == 2 * (4 + 2)
    assert main([*words[:3], "a", "--modality", "image-first", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "document.json").read_text())
    assert written["content"][0]["type"] == "image"


def test_any_sampling_field_is_set_by_its_name(model: str, tmp_path: Path) -> None:
    words = ("--temperature", "0.5", "--guidance-scale", "2", "--text.top-k", "7", "--image.min-p=0.1")
    request = generate(tmp_path, model, "--prompt", "a", *words, "--image.temperature", "1")["request"]
    assert (request["text"]["temperature"], request["text"]["top_k"]) == (0.5, 7)
    assert request["image"]["temperature"] == 1.0
    assert (request["image"]["guidance_scale"], request["image"]["min_p"]) == (2.0, 0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", "a", "--best-of", "1", "--num-samples", "2"), "--best-of 1; expected at least --num-samples 2."),
        ((), "no --prompt and no --image; expected at least one of them."),
        (("--prompt", "a", "--num-samples", "0"), "--num-samples 0; expected at least 1."),
        (
            ("--prompt", "a", "--device", "cpu", "--quantization", "int3"),
            "quantization='int3' is not known; expected None, int8, int4 or fp8.",
        ),
        (
            ("--prompt", "a", "--modality", "sound"),
            "unknown --modality sound; expected one of any, text, image, image-first.",
        ),
        (
            ("--prompt", "a", "--text.topp", "1"),
            "unknown option --text.topp; did you mean --text.top-p? Fix the name.",
        ),
        (
            ("--prompt", "a", "--image.top-p", "2"),
            "temperature=0.7 and top_p=2.0; expected a temperature of at least 0 and a top_p above 0 and at most 1.",
        ),
        (
            ("--prompt", "a", "--keep-image-tokens", "2"),
            "keep_image_tokens=2 of a prompt that ends in text; expected an image at the end. Add it.",
        ),
    ],
)
def test_an_invalid_request_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert main(["generate", model, *words, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path), "--prompt", "x", "--out", str(tmp_path / "o")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}")


def test_a_missing_image_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no.png"
    assert main(["generate", model, "--image", str(missing), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {missing}")


def test_without_a_model_the_one_in_the_package_draws_into_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--prompt", "a red circle left of a banana", "--device", "cpu"]) == 0
    written = json.loads((tmp_path / "out" / "generate" / "document.json").read_text())
    assert [part["type"] for part in written["content"]] == ["image"]
    rules = calumma.load("still-life", device="cpu").default_image_sampling
    assert written["request"]["image"]["guidance_scale"] == rules.guidance_scale


def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "long.png"
    PIL.Image.new("RGB", (3, 900)).save(path)
    assert main(["generate", "model", "--image", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: an image of 3 x 900 pixels; expected sides that differ at most 100-fold. "
        "Crop it, or drop its document.\n"
    )
    assert not (tmp_path / "out").exists()
