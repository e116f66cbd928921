"""Model cards: what a model folder is, what it was trained on, and its evaluation results.

A card is the README.md that Hugging Face shows of a model folder, with the hub's metadata. It makes
no claims of its own: sizes come from the folder, sources from shards or documents, metrics from
reports.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.checkpoints.conversion import open_model
from calumma.checkpoints.lazy_tensor import LazyModel
from calumma.corpora.catalog import CORPORA
from calumma.documents.readers import read_documents
from calumma.errors import EvaluationError
from calumma.evaluate.metric import format_interval
from calumma.evaluate.report import REPORT_JSON
from calumma.files import read_json, write_text
from calumma.shards.format import MANIFEST_NAME
from calumma.shards.manifest import Manifest
from calumma.text_format import format_number

CARD_NAME = "README.md"

NOT_SPECIFIED = "not specified"


@dataclass(frozen=True)
class TrainingSource:
    """A source of training data."""

    name: str
    license: str
    count: int
    """Documents, or sequences of shards."""


def write_card(
    folder: Path, reports: Sequence[Path], trained_on: Sequence[str | Path], location: str = "PATH"
) -> Path:
    """Write a model folder's card.

    Args:
        folder: the model folder.
        reports: folders that `calumma evaluate` wrote.
        trained_on: training documents, or folders of shards.
        location: the argument of `calumma.load` in its example.

    Returns:
        The card's path.

    Raises:
        CheckpointError: the folder is no model folder.
        EvaluationError: a folder has no report.
        DocumentError: documents cannot be read.
        OutputError: the card cannot be written.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is no folder; expected a model folder, which gets the card. Name one.")
    model = open_model(folder)
    results = [_load_report(path) for path in reports]
    path = folder / CARD_NAME
    sources = training_sources(trained_on)
    write_text(path, render_card(folder.resolve().name, model, results, sources, location))
    return path


def _load_report(folder: Path) -> dict[str, Any]:
    path = folder / REPORT_JSON
    if not path.is_file():
        raise EvaluationError(
            f"{folder} has no {REPORT_JSON}; expected a folder that `calumma evaluate` wrote. "
            "Run an evaluation first, then name its --out."
        )
    report: dict[str, Any] = read_json(path)
    return report


def training_sources(trained_on: Sequence[str | Path]) -> list[TrainingSource]:
    """Return the sources of documents and shards with their licenses, where these are known."""
    counts: Counter[tuple[str, str]] = Counter()
    documents = []
    for path in trained_on:
        if (Path(path) / MANIFEST_NAME).is_file():
            manifest = Manifest.load(Path(path))
            for name in manifest.sources:
                counts[name, _catalog_license(name)] += manifest.counts(name).num_sequences
        else:
            documents.append(path)
    for document in read_documents(documents) if documents else ():
        license_name = document.license or _catalog_license(document.source)
        counts[document.source or NOT_SPECIFIED, license_name] += 1
    return [TrainingSource(name, license_name, count) for (name, license_name), count in sorted(counts.items())]


def _catalog_license(source: str) -> str:
    return next((each.license for each in CORPORA if each.name == source), NOT_SPECIFIED)


def render_card(
    name: str,
    model: LazyModel,
    reports: Sequence[Mapping[str, Any]],
    sources: Sequence[TrainingSource],
    location: str = "PATH",
) -> str:
    """Return the card's text: metadata, sizes, usage, training data, results, limitations."""
    metrics = [metric for report in reports for metric in report["figures"]]
    return "\n".join(
        [
            "---", *_metadata(name, metrics), "---", "",
            f"# {name}", "",
            "A decoder over text and images in any order, as one sequence of tokens (the "
            "architecture of Chameleon, arXiv:2405.09818), made with calumma.", "",
            "## Model", "", *_sizes(model), "",
            "## Usage", "", *_usage(model, location), "",
            "## Training data", "", *_data(sources), "",
            "## Evaluation", "", *_results(reports), "",
            "## Limitations", "", *(f"- {line}" for line in limitations(model, reports, sources)),
            "",
        ]
    )  # fmt: skip


def _metadata(name: str, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the hub's metadata as YAML; strings are written as JSON, which is valid YAML."""
    lines = ["library_name: calumma", "pipeline_tag: any-to-any"]
    lines += ["tags:", "- chameleon", "- mixed-modal", "- image-text-to-text", "- text-to-image"]
    if not metrics:
        return lines
    lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
    for metric in metrics:
        task = metric.get("task") or metric["name"]
        lines += [
            "  - task:", "      type: any-to-any",
            "    dataset:", f"      name: {json.dumps(task)}", f"      type: {json.dumps(task)}",
            "    metrics:", f"    - type: {json.dumps(metric['name'])}",
            f"      value: {metric['value']:.6g}",
        ]  # fmt: skip
    return lines


def _sizes(model: LazyModel) -> list[str]:
    decoder, image = model.decoder_config, model.vq_config
    vocabulary = model.text_tokenizer.vocabulary
    rows = {
        "decoder parameters": f"{model.num_parameters:,}",
        "layers, width, heads": f"{decoder.num_layers}, {decoder.model_dim}, {decoder.num_heads}",
        "maximum sequence length": f"{decoder.max_seq_len:,} tokens",
        "vocabulary": f"{vocabulary.num_text:,} text tokens, {vocabulary.num_codes:,} image codes",
        "images": f"{image.resolution} x {image.resolution} pixels, {image.codes_per_image:,} codes each"
        if (sizes := vocabulary.image_sizes) is None
        else f"{sizes.describe(image.downsampling)}; at most {sizes.max_cells:,} codes each",
        "weights": f"{model.dtype_names}, {model.num_bytes:,} bytes",
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _usage(model: LazyModel, location: str) -> list[str]:
    generation = ['    model.generate(["draw a red circle"], image_first=True).parts']
    return [
        "    import calumma",
        f'    model = calumma.load("{location}")',
        '    model.generate([image, "what is it?"]).parts',
        *(generation if model.has_image_decoder else []),
        "",
        "transformers' `ChameleonForConditionalGeneration` and `ChameleonProcessor` load the "
        "folder too where its `config.json` is of type chameleon.",
    ]


def _data(sources: Sequence[TrainingSource]) -> list[str]:
    if not sources:
        return ["Training data not specified."]
    rows = [f"| {each.name} | {each.count:,} | {each.license} |" for each in sources]
    return [
        "| source | documents | license |", "|---|---:|---|", *rows, "",
        "This card does not set a license for the model: check that these sources allow the one you choose.",
    ]  # fmt: skip


def _results(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    if not reports:
        return ["Not evaluated."]
    lines = []
    for report in reports:
        lines += ["| metric | value | baseline | 95 % interval | n | unit |"]
        lines += ["|---|---:|---:|---:|---:|---|"]
        for metric in report["figures"]:
            interval = metric["interval"]
            cells = (
                metric["name"], format_number(metric["value"]), format_number(metric["baseline"]),
                format_interval((interval[0], interval[1]) if interval else None), str(metric["n"]),
                metric["unit"],
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", f"    {report['command']}", ""]
        lines += [f"Not measured: {line}" for line in report.get("skipped", ())]
    return lines


def limitations(
    model: LazyModel, reports: Sequence[Mapping[str, Any]], sources: Sequence[TrainingSource]
) -> list[str]:
    """Return the known limitations, and what was not measured."""
    metrics = [metric for report in reports for metric in report["figures"]]
    image, sizes = model.vq_config, model.text_tokenizer.vocabulary.image_sizes
    lines = [
        f"Images are resized to {image.resolution} pixels per side and encoded as "
        f"{image.codes_per_image:,} codes: small text and faces are lost first."
        if sizes is None
        else f"Images are encoded as at most {sizes.max_cells:,} codes: small text and faces are lost first.",
        "Outputs may be wrong, and reproduce faults of the training data.",
        "The results hold for these evaluations; other documents and prompts give other results.",
    ]
    if not model.has_image_decoder:
        lines.append("It cannot generate images: the folder has no image decoder.")
    if not any(metric.get("task") == "safety" for metric in metrics):
        lines.append("Behavior on unsafe prompts was not measured.")
    if not any(metric["name"].startswith("reconstruction") for metric in metrics):
        lines.append("Image reconstruction was not measured.")
    weak = [
        metric["name"]
        for metric in metrics
        if metric["unit"] == "share"
        and metric["baseline"] is not None
        and metric["interval"]
        and metric["interval"][0] <= metric["baseline"]
    ]
    if weak:
        lines.append(f"Not significantly better than a baseline: {', '.join(weak)}.")
    if any(each.license == NOT_SPECIFIED for each in sources):
        lines.append("The licenses of some sources are not specified.")
    return lines
