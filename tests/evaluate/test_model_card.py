from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from calumma.checkpoints.conversion import open_model
from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.documents.document import Document, Text
from calumma.documents.writers import write_parquet
from calumma.errors import EvaluationError
from calumma.evaluate.metric import Metric
from calumma.evaluate.model_card import TrainingSource, limitations, training_sources, write_card
from calumma.evaluate.report import EvalReport


def _report(folder: Path, metrics: Sequence[Metric]) -> Path:
    command = "calumma evaluate m --tasks x"
    EvalReport(metrics=metrics, seconds=1, seed=0, command=command, skipped=["faces: none"]).save(folder)
    return folder


@pytest.fixture
def folder(model_parts: ModelComponents, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", model_parts)
    return tmp_path / "model"


def test_a_card_has_the_hubs_metadata_sizes_sources_and_metrics(
    folder: Path, model_parts: ModelComponents, tmp_path: Path
) -> None:
    report = _report(tmp_path / "report", [Metric("piqa_acc", 0.625, 0.5, 80, (0.5, 0.75), "share", task="piqa")])
    write_parquet(tmp_path / "d.parquet", [
        Document(id=str(n), source="mine", license="MIT", content=(Text("a"),)) for n in range(3)
    ])  # fmt: skip
    written = write_card(folder, [report], [tmp_path / "d.parquet"]).read_text()
    assert write_card(folder, [report], []) == folder / "README.md"
    _, head, body = written.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("calumma", "any-to-any")
    [result] = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "piqa"
    assert result["metrics"] == [{"type": "piqa_acc", "value": 0.625}]
    parameters = sum(each.numel() for each in model_parts.decoder.parameters())
    assert f"| decoder parameters | {parameters:,} |" in body
    assert "| images | 16 x 16 pixels, " in body
    assert "| mine | 3 | MIT |" in body
    assert "| piqa_acc | 0.625 | 0.5 | 0.5 to 0.75 | 80 | share |" in body
    assert "    calumma evaluate m --tasks x\n" in body
    assert "Not measured: faces: none" in body
    assert "Not significantly better than a baseline: piqa_acc." in body


def test_sources_of_shards_are_counted_and_licenses_found_in_the_catalog(shards: Path, tmp_path: Path) -> None:
    found = training_sources([shards])
    assert {each.name: each.license for each in found} == {
        "pairs": "not specified", "text": "not specified", "chat": "not specified",
    }  # fmt: skip
    assert sum(each.count for each in found) == 40
    write_parquet(tmp_path / "d.parquet", [
        Document(id="1", source="noto", content=(Text("a"),)),
        Document(id="2", content=(Text("b"),)),
    ])  # fmt: skip
    assert training_sources([tmp_path / "d.parquet"]) == [
        TrainingSource("d", "not specified", 1),
        TrainingSource("noto", "Apache-2.0", 1),
    ]
    assert training_sources([]) == []


def test_limitations_list_what_is_not_measured_and_missing_parts(folder: Path) -> None:
    model = open_model(folder)
    results = "\n".join(limitations(model, [], [TrainingSource("x", "not specified", 1)]))
    assert "resized to 16 pixels per side and encoded as 4 codes" in results
    assert "Behavior on unsafe prompts was not measured." in results
    assert "The licenses of some sources are not specified." in results
    assert "It cannot generate" not in results
    report = EvalReport(
        metrics=[
            Metric("refused", 0.9, None, 9, None, "share", task="safety"),
            Metric("reconstruction_psnr_db", 20, 9, 9, (19, 21), "dB", task="reconstruction"),
        ],
        seconds=1,
        seed=0,
    ).to_json()
    results = "\n".join(limitations(replace(model, vq_tensors={}), [report], []))
    assert "was not measured" not in results and "better" not in results
    assert "It cannot generate images: the folder has no image decoder." in results


def test_a_folder_without_a_report_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        write_card(folder, [tmp_path], [])
    assert str(caught.value) == (
        f"{tmp_path} has no report.json; expected a folder that `calumma evaluate` wrote. Run "
        "an evaluation first, then name its --out."
    )
