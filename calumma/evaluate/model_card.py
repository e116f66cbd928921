"""A model card: what a model folder is, what it was made of, and what was measured of it.

It is the README.md that Hugging Face shows of a model folder, with the metadata that its hub
reads. Nothing in it is claimed: shapes come from the folder, sources from shards or documents,
figures from reports.
"""

from __future__ import annotations

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
from calumma.evaluate.metric import format_interval, format_value
from calumma.evaluate.report import REPORT_JSON
from calumma.files import read_json, write_text
from calumma.shards.format import MANIFEST_NAME
from calumma.shards.manifest import Manifest

CARD_NAME = "README.md"

NOT_SPECIFIED = "not told"


@dataclass(frozen=True)
class TrainingSource:
    """Where training data came from."""

    name: str
    license: str
    count: int
    """Documents, or sequences of shards."""


def write_card(folder: Path, reports: Sequence[Path], trained_on: Sequence[str | Path]) -> Path:
    """Write a model folder's card.

    Args:
        folder: the model folder.
        reports: folders that `calumma evaluate` wrote.
        trained_on: documents, or folders of shards, that the model was trained on.

    Returns:
        The card's path.

    Raises:
        CheckpointError: the folder is no model folder.
        EvaluationError: a folder of reports holds none.
        DocumentError: documents cannot be read.
        OutputError: the card cannot be written.
    """
    model = open_model(folder)
    read = [_report(path) for path in reports]
    path = folder / CARD_NAME
    write_text(path, render_card(folder.resolve().name, model, read, training_sources(trained_on)))
    return path


def _report(folder: Path) -> dict[str, Any]:
    path = folder / REPORT_JSON
    if not path.is_file():
        raise EvaluationError(
            f"{folder} holds no {REPORT_JSON}; expected a folder that `calumma evaluate` wrote. "
            "Measure first, then name its --out."
        )
    report: dict[str, Any] = read_json(path)
    return report


def training_sources(trained_on: Sequence[str | Path]) -> list[TrainingSource]:
    """The sources of documents with their licences, or of shards with those that are known."""
    counts: Counter[tuple[str, str]] = Counter()
    documents = []
    for place in trained_on:
        if (Path(place) / MANIFEST_NAME).is_file():
            manifest = Manifest.load(Path(place))
            for name in manifest.sources:
                counts[name, _known_licence(name)] += manifest.counts(name).num_sequences
        else:
            documents.append(place)
    for document in read_documents(documents) if documents else ():
        licence = document.license or _known_licence(document.source)
        counts[document.source or NOT_SPECIFIED, licence] += 1
    return [
        TrainingSource(name, licence, count) for (name, licence), count in sorted(counts.items())
    ]


def _known_licence(source: str) -> str:
    return next((each.license for each in CORPORA if each.name == source), NOT_SPECIFIED)


def render_card(
    name: str,
    model: LazyModel,
    reports: Sequence[Mapping[str, Any]],
    made_of: Sequence[TrainingSource],
) -> str:
    """The card's text: metadata, what it is, how it is used, data, figures, limits."""
    figures = [figure for report in reports for figure in report["figures"]]
    return "\n".join(
        [
            "---", *_metadata(name, figures), "---", "",
            f"# {name}", "",
            "One decoder that reads and writes text and pictures in any order, as one sequence of "
            "ids (the architecture of Chameleon, arXiv:2405.09818), made with calumma.", "",
            "## What it is", "", *_sizes(model), "",
            "## How to use it", "", *_usage(model), "",
            "## What it was trained on", "", *_data(made_of), "",
            "## What was measured", "", *_figures(reports), "",
            "## Limits", "", *(f"- {line}" for line in limitations(model, reports, made_of)), "",
        ]
    )  # fmt: skip


def _metadata(name: str, figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the hub reads, as YAML; strings are written as JSON, which YAML takes."""
    lines = ["library_name: calumma", "pipeline_tag: any-to-any"]
    lines += ["tags:", "- chameleon", "- mixed-modal", "- image-text-to-text", "- text-to-image"]
    if not figures:
        return lines
    lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
    for figure in figures:
        task = figure.get("task") or figure["name"]
        lines += [
            "  - task:", "      type: any-to-any",
            "    dataset:", f"      name: {json.dumps(task)}", f"      type: {json.dumps(task)}",
            "    metrics:", f"    - type: {json.dumps(figure['name'])}",
            f"      value: {figure['value']:.6g}",
        ]  # fmt: skip
    return lines


def _sizes(model: LazyModel) -> list[str]:
    shape, image = model.decoder_config, model.vq_config
    vocabulary = model.text_tokenizer.vocabulary
    dtype = str(model.dtype).removeprefix("torch.")
    rows = {
        "parameters of the decoder": f"{model.num_parameters:,}",
        "layers, width, heads": f"{shape.num_layers}, {shape.model_dim}, {shape.num_heads}",
        "longest row": f"{shape.max_seq_len:,} ids",
        "vocabulary": f"{vocabulary.num_text:,} text ids, {vocabulary.num_codes:,} image codes",
        "pictures": f"{image.resolution} x {image.resolution} pixels, "
        f"{image.codes_per_image:,} codes each",
        "weights": f"{dtype}, {model.num_bytes:,} bytes",
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _usage(model: LazyModel) -> list[str]:
    draws = ['    model.generate(["draw a red circle"], image_first=True).parts']
    return [
        "    import calumma",
        '    model = calumma.load("PATH")',
        '    model.generate([picture, "what is it?"]).parts',
        *(draws if model.has_image_decoder else []),
        "",
        "transformers' `ChameleonForConditionalGeneration` and `ChameleonProcessor` load the "
        "folder too where its `config.json` is of type chameleon.",
    ]


def _data(made_of: Sequence[TrainingSource]) -> list[str]:
    if not made_of:
        return ["Not told to the one who wrote this card."]
    rows = [f"| {each.name} | {each.count:,} | {each.license} |" for each in made_of]
    return [
        "| source | documents | licence |", "|---|---:|---|", *rows, "",
        "Whoever passes the model on chooses its licence, and sees that these sources allow it.",
    ]  # fmt: skip


def _figures(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    if not reports:
        return ["Nothing yet."]
    lines = []
    for report in reports:
        lines += ["| figure | value | baseline | 95 % interval | n | unit |"]
        lines += ["|---|---:|---:|---:|---:|---|"]
        for figure in report["figures"]:
            interval = figure["interval"]
            cells = (
                figure["name"], format_value(figure["value"]), format_value(figure["baseline"]),
                format_interval((interval[0], interval[1]) if interval else None), str(figure["n"]),
                figure["unit"],
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", f"    {report['command']}", ""]
        lines += [f"Not measured: {line}" for line in report.get("skipped", ())]
    return lines


def limitations(
    model: LazyModel, reports: Sequence[Mapping[str, Any]], made_of: Sequence[TrainingSource]
) -> list[str]:
    """What is known not to hold, and what nobody looked at."""
    tasks = {figure.get("task", "") for report in reports for figure in report["figures"]}
    names = [figure["name"] for report in reports for figure in report["figures"]]
    side = model.vq_config.resolution
    lines = [
        f"Pictures are read and drawn as squares of {side} pixels through "
        f"{model.vq_config.codes_per_image:,} codes: small text and faces are lost first.",
        "It says what is likely, not what is true, and its training data's faults are its own.",
        "Figures hold for what was asked of it here; other documents and prompts give others.",
    ]
    if not model.has_image_decoder:
        lines.append("It cannot draw: the folder holds no decoder of its image tokenizer.")
    if "safety" not in tasks:
        lines.append("Nobody measured here what it does with unsafe prompts.")
    if not any(name.startswith("reconstruction") for name in names):
        lines.append("Nobody measured here how well pictures come back from their codes.")
    weak = [
        figure["name"]
        for report in reports
        for figure in report["figures"]
        if figure["unit"] == "share"
        and figure["baseline"] is not None
        and figure["interval"]
        and figure["interval"][0] <= figure["baseline"]
    ]
    if weak:
        lines.append(f"No better than a baseline, as far as these samples tell: {', '.join(weak)}.")
    if any(each.license == NOT_SPECIFIED for each in made_of):
        lines.append("The licences of some of its sources are not told.")
    return lines
