"""The last step of the demo: evaluate the model and write its report."""

import math
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

import calumma
from calumma.batches.batch import PADDING, Batch
from calumma.batches.packing import BestFitBins, collate_rows
from calumma.charts import Chart, Curve, EventMark
from calumma.checkpoints.training_checkpoint import newest_checkpoint
from calumma.corpora.still_life import OBJECT_SOURCE
from calumma.demo.page_data import (
    CaptionedImage,
    GeneratedImages,
    InterleavedSample,
    MetricRow,
    PageData,
    TokenCell,
    TokenizationExample,
    next_commands,
)
from calumma.demo.pipeline import DemoPipeline
from calumma.demo.report_page import write_report_page
from calumma.demo.scene_metrics import scene_metrics
from calumma.demo.scenes import DESCRIBE_PROMPT, draw_prompt, page_opening
from calumma.demo.steps import OnCount
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.evaluate.captioning import GREEDY_TEXT, nearest_captions
from calumma.evaluate.context import EvalConfig, EvalContext, TextImagePair
from calumma.evaluate.evaluator import EvalProgress, evaluate
from calumma.evaluate.likelihood import BITS_PER_NAT
from calumma.evaluate.metric import Metric
from calumma.evaluate.report import REPORT_HTML, REPORT_JSON, EvalReport
from calumma.files import write_json
from calumma.generate.model import Model, load
from calumma.generate.params import TextSampling
from calumma.runtime import STOP
from calumma.shards.encode import DocumentEncoder
from calumma.shards.reader import ShardReader
from calumma.text_format import pluralize
from calumma.train.run_samples import sample_strip
from calumma.train.stability import LoggedMetrics, metric_points
from calumma.vocabulary import Vocabulary

_SHIPPED_TOKENIZER = (
    "The image tokenizer is that of the model in the package, which the command calumma demo --size evening trains. "
)
DEMO_TASKS = ("likelihood", "retrieval", "reconstruction", "color_accuracy")
IMAGES_PER_PROMPT = 4
NUM_PROMPTS, NUM_CAPTIONS, NUM_RECONSTRUCTIONS, NUM_INTERLEAVED = 12, 12, 16, 4


def measure_and_report(demo: DemoPipeline, on_count: OnCount) -> None:
    """Evaluate the model on held-out documents; write `report.json` and `report.html`."""
    model = load(demo.model)
    documents = _read_evenly(demo.held_out, demo.config.max_eval_documents)
    config = _eval_config(demo)
    progress = _progress(demo, on_count)
    report = evaluate(model, documents, DEMO_TASKS, config, progress=progress)
    new_objects = _new_object_metrics(model, demo, config, progress)
    context = EvalContext(model, documents)
    report = replace(
        report,
        metrics=[*report.metrics, *scene_metrics(context, config), *new_objects],
        model=str(demo.model),
        command=f"calumma demo --out {demo.out}",
        seconds=sum(demo.seconds().values()) + report.seconds,
    )
    write_json(demo.out / REPORT_JSON, report.to_json())
    data = _page_data(demo, context, config, report)
    write_report_page(demo.out / REPORT_HTML, data)


def _progress(demo: DemoPipeline, on_count: OnCount) -> EvalProgress:
    """Return a callback that counts batches and checks for a requested stop."""

    def on_batch(task: str, done: int, total: int) -> None:
        STOP.check(f"{demo.model} is complete, its report is not")
        on_count(1)

    return on_batch


def _read_evenly(path: Path, max_documents: int) -> list[Document]:
    """Return at most `max_documents`, evenly spaced."""
    documents = list(read_documents([path]))
    return documents[:: max(1, len(documents) // max_documents)][:max_documents]


def _eval_config(demo: DemoPipeline) -> EvalConfig:
    return EvalConfig(
        seed=demo.config.seed,
        training_documents=list(read_documents([demo.pairs])),
        training_counts=_token_counts(ShardReader(demo.out / "shards")),
        chat_template=True,
        caption_question=DESCRIBE_PROMPT,
        max_prompts=demo.config.max_eval_documents,
    )


def _token_counts(reader: ShardReader) -> NDArray[np.int64]:
    """Count each token id in the training pairs."""
    size = reader.manifest.vocabulary.size
    counts = np.zeros(size, dtype=np.int64)
    for source in {"objects", "shapes"} & set(reader.manifest.sources):
        for index in reader.sequence_indices(source):
            counts += np.bincount(reader.read(int(index))[0], minlength=size)
    return counts


def _new_object_metrics(model: Model, demo: DemoPipeline, config: EvalConfig, progress: EvalProgress) -> list[Metric]:
    """Evaluate on objects that do not occur in training."""
    documents = _read_evenly(demo.new_objects, demo.config.max_eval_documents)
    if not documents:
        return []
    tasks = ("likelihood", "reconstruction", "color_accuracy")
    report = evaluate(model, documents, tasks, config, progress=progress)
    names = ("code_bits_per_token", "reconstruction_psnr_db", "colour_asked_colour_drawn_ground")
    note = "images of objects that do not occur in training"
    return [
        replace(metric, name=f"{metric.name}_new_objects", note=note)
        for metric in report.metrics
        if metric.name in names
    ]


def _page_data(demo: DemoPipeline, context: EvalContext, config: EvalConfig, report: EvalReport) -> PageData:
    model, pairs = context.model, context.pairs
    prompts = _select_pairs(pairs, NUM_PROMPTS)
    prompt = draw_prompt(prompts[0].text) if prompts else "draw"
    training = config.training_documents
    return PageData(
        title="A mixed-modal model trained on this machine",
        lead=_lead(demo, model),
        command=report.command,
        machine=_machine(demo),
        seconds=demo.seconds() | {"report": report.seconds - sum(demo.seconds().values())},
        generated_images=_generated_images(demo, model, prompts),
        captions=_captions(model, _select_pairs(pairs, NUM_CAPTIONS, 1), training),
        interleaved=_interleaved(demo, model, _select_pairs(pairs, NUM_INTERLEAVED, 2)),
        tokenization=_tokenization(demo, model, training),
        charts=_charts(demo, model.vocabulary, config),
        sample_strip=sample_strip(demo.run_folder("pretrain"), demo.config.pretrain["steps"]),
        reconstructions=_reconstructions(model, _select_pairs(pairs, NUM_RECONSTRUCTIONS, 3)),
        metrics=[MetricRow(metric, *_target(metric)) for metric in report.metrics],
        sizes=_sizes(demo, model),
        next_commands=next_commands(str(demo.out), prompt, DESCRIBE_PROMPT),
        attribution=_attribution(),
    )


def _lead(demo: DemoPipeline, model: Model) -> str:
    is_trained = demo.config.image_tokenizer is not None
    return (
        f"{'An image tokenizer, a' if is_trained else 'A'} text tokenizer and a decoder of "
        f"{model.decoder.num_parameters / 1e6:.1f} million parameters, trained on "
        f"{len(ShardReader(demo.out / 'shards')):,} documents. "
        f"{'' if is_trained else _SHIPPED_TOKENIZER}"
        "The captions of all examples below are held out: none occurs in any training document."
    )


def _machine(demo: DemoPipeline) -> str:
    """Return processor, threads of pre-training, and versions."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    saved, threads = newest_checkpoint(demo.run_folder("pretrain")), torch.get_num_threads()
    if saved is not None:
        threads = saved.load_meta().get("num_threads", threads)
    return f"{platform.machine()}, {pluralize(threads, 'thread')}, {versions}"


def _select_pairs(pairs: Sequence[TextImagePair], count: int, offset: int = 0) -> Sequence[TextImagePair]:
    """Return `count` evenly spaced pairs; different offsets give different pairs."""
    step = max(1, len(pairs) // count)
    return pairs[offset % step :: step][:count]


def _generated_images(demo: DemoPipeline, model: Model, pairs: Sequence[TextImagePair]) -> list[GeneratedImages]:
    prompts = [draw_prompt(pair.text) for pair in pairs]
    samples = model.generate_batch(
        [[prompt] for prompt in prompts for _ in range(IMAGES_PER_PROMPT)],
        seeds=[demo.config.seed * 1000 + n for n in range(IMAGES_PER_PROMPT * len(prompts))],
        max_new_tokens=model.image.config.codes_per_image + 2,
        max_images=1,
        image_first=True,
    )
    images = [next(part for part in s.decoded_parts if not isinstance(part, str)) for s in samples]
    return [
        GeneratedImages(
            prompt=prompt,
            images=images[n * IMAGES_PER_PROMPT : (n + 1) * IMAGES_PER_PROMPT],
            note="this combination does not occur in training",
        )
        for n, prompt in enumerate(prompts)
    ]


def _captions(model: Model, pairs: Sequence[TextImagePair], training: Sequence[Document]) -> list[CaptionedImage]:
    samples = model.generate_batch(
        [[pair.pil_image, DESCRIBE_PROMPT] for pair in pairs], max_new_tokens=32, max_images=0, text=GREEDY_TEXT
    )
    captions = ["".join(part for part in s.decoded_parts if isinstance(part, str)) for s in samples]
    nearest = nearest_captions(pairs, training) if pairs else []
    return [
        CaptionedImage(pair.pil_image.convert("RGB"), pair.text, caption, baseline)
        for pair, caption, baseline in zip(pairs, captions, nearest, strict=True)
    ]


def _interleaved(demo: DemoPipeline, model: Model, pairs: Sequence[TextImagePair]) -> list[InterleavedSample]:
    """Continue pages that begin with a caption."""
    prompts = [page_opening(pair.text) for pair in pairs]
    samples = model.generate_batch(
        [[prompt] for prompt in prompts],
        add_generation_prompt=False,
        seeds=[demo.config.seed * 1000 + number for number in range(len(prompts))],
        max_new_tokens=2 * model.image.config.codes_per_image + 64,
        max_images=2,
        text=TextSampling(temperature=0.7, repetition_penalty=1.0),
    )
    return [InterleavedSample([prompt], sample.decoded_parts) for prompt, sample in zip(prompts, samples, strict=True)]


def _reconstructions(model: Model, pairs: Sequence[TextImagePair]) -> list[tuple[PIL.Image.Image, PIL.Image.Image]]:
    return [(pair.pil_image.convert("RGB"), model.decode_image(pair.codes)) for pair in pairs]


def _tokenization(demo: DemoPipeline, model: Model, documents: Sequence[Document]) -> TokenizationExample:
    """Tokenize a training pair and pack it with others."""
    index = len(documents) // 3
    example = documents[index]
    packed_documents = [example, *documents[:: max(1, len(documents) // 5)]]
    sequences = DocumentEncoder(model.components.tokenizers).encode(packed_documents)
    seq_len = demo.config.pretrain_config(demo.out).data.seq_len
    bins = BestFitBins(num_rows=1, seq_len=seq_len)
    packed = [
        (np.array(sequence.token_ids), np.array(sequence.loss_mask))
        for sequence in sequences
        if bins.insert([len(sequence.token_ids) - 1]) is not None
    ]
    vocabulary, side = model.vocabulary, model.image.config.codes_per_side
    batch = collate_rows([packed], seq_len, vocabulary.pad)
    codes = [vocabulary.id_to_code(id_) for id_ in sequences[0].token_ids if id_ in vocabulary.codes]
    return TokenizationExample(
        text=example.text,
        image=example.images[0].open().convert("RGB"),
        codes=[codes[row * side : (row + 1) * side] for row in range(side)],
        num_codes=vocabulary.num_codes,
        reconstruction=model.decode_image(codes),
        packed_sequence=list(_token_cells(batch, model)),
    )


def _token_cells(batch: Batch, model: Model) -> Iterator[TokenCell]:
    vocabulary = model.vocabulary
    names = vocabulary.control_names()
    rows = zip(batch.input_ids[0].tolist(), batch.document_ids[0].tolist(), strict=True)
    for id_, document in rows:
        if document == PADDING:
            yield TokenCell(id_, "padding", "padding", document)
        elif id_ in vocabulary.codes:
            yield TokenCell(id_, "code", str(vocabulary.id_to_code(id_)), document)
        elif id_ in vocabulary.text:
            yield TokenCell(id_, "text", model.text.decode([id_]), document)
        else:
            yield TokenCell(id_, "control", names[id_], document)


def _charts(demo: DemoPipeline, vocabulary: Vocabulary, config: EvalConfig) -> list[Chart]:
    counts = config.training_counts
    assert counts is not None, "the demo's config has training counts"
    stage_two = demo.config.pretrain_config(demo.out).stage_two_start
    return [
        Chart(
            "Image tokenizer: L1 reconstruction loss",
            {"L1": Curve.from_points(metric_points(demo.metrics("image-tokenizer"), "loss_l1"))},
            unit="mean over pixels, from 0 to 2",
            smooth=True,
        ),
        Chart(
            "Pre-training: loss",
            _modality_curves(demo.metrics("pretrain")),
            marks=[EventMark(stage_two, "stage two", "stage two")],
            unit="bits per token",
            levels={
                "text, unigram": _entropy(counts, vocabulary.text),
                "image, unigram": _entropy(counts, vocabulary.codes),
            },
            smooth=True,
        ),
        Chart("Fine-tuning: loss", _modality_curves(demo.metrics("finetune")), unit="bits per token", smooth=True),
    ]


def _modality_curves(metrics: Sequence[LoggedMetrics]) -> dict[str, Curve]:
    return {
        name: Curve.from_points((step, nats * BITS_PER_NAT) for step, nats in metric_points(metrics, f"loss_{name}"))
        for name in ("text", "image")
    }


def _entropy(counts: NDArray[np.int64], ids: range) -> float:
    """Return the entropy of one modality's unigram distribution, in bits."""
    modality_counts = counts[ids.start : ids.stop]
    probs = modality_counts[modality_counts > 0] / max(1, modality_counts.sum())
    return float(-(probs * np.log2(probs)).sum())


def _target(metric: Metric) -> tuple[str, bool | None]:
    """Return the demo's target for a metric, and whether it is met."""
    value = metric.value
    baseline = metric.baseline if metric.baseline is not None else math.nan
    targets = {
        "text_bits_per_token": ("30 % below the baseline", value <= 0.7 * baseline),
        "code_bits_per_token": ("30 % below the baseline", value <= 0.7 * baseline),
        "code_bits_right_minus_shuffled": ("interval below 0", metric.interval is not None and metric.interval[1] < 0),
        "retrieval_text_given_image": ("2.5 times chance", value >= 2.5 * baseline),
        "retrieval_image_given_text": ("2.5 times chance", value >= 2.5 * baseline),
        "colour_asked_colour_drawn": ("50 %", value >= 0.5),
        "things_named_right": ("60 %", value >= 0.6),
        "shapes_drawn_right": ("70 %", value >= 0.7),
        "reconstruction_psnr_db": ("6 dB above the baseline", value >= baseline + 6),
        "codebook_used": ("60 %", value > 0.6),
    }
    return targets.get(metric.name, ("", None))


def _sizes(demo: DemoPipeline, model: Model) -> list[tuple[str, str]]:
    manifest = ShardReader(demo.out / "shards").manifest
    config = demo.config.pretrain_config(demo.out)
    points = metric_points(demo.metrics("pretrain"), "num_tokens")
    trained = sum(int(count) for _, count in points)
    network = sum(p.numel() for p in model.image.network.parameters())
    vocabulary = model.vocabulary
    return [
        ("decoder parameters", f"{model.decoder.num_parameters:,}"),
        ("image tokenizer parameters", f"{network:,}"),
        ("text tokens of the vocabulary", f"{vocabulary.num_text:,}"),
        ("image codes of the vocabulary", f"{vocabulary.num_codes:,}"),
        ("codes per image", f"{model.image.config.codes_per_image:,}"),
        ("training documents", f"{manifest.total.num_sequences:,}"),
        ("training tokens", f"{manifest.total.num_tokens:,}"),
        ("tokens of pre-training", f"{trained:,}"),
        ("steps of pre-training", f"{config.steps:,}"),
        ("calumma", calumma.__version__),
    ]


def _attribution() -> list[str]:
    """Return the sources of the demo's documents, from the embedded corpus's attribution."""
    text = files("calumma.corpora").joinpath("embedded/ATTRIBUTION.md").read_text(encoding="utf-8")
    lines = ["Shapes, backgrounds and captions are generated by calumma from templates."]
    for section in text.split("\n## ")[1:]:
        name, _, body = section.partition("\n")
        if name.strip() in (OBJECT_SOURCE, "wordnet"):
            items = [line.removeprefix("- ") for line in body.splitlines() if line.startswith("- ")]
            kept = ". ".join(item for item in items if not item.startswith(("Packages", "Notices")))
            without_links = re.sub(r" ?[(]?\[.*?\]\(.*?\)+", "", kept)
            lines.append(f"{name.strip()}: {without_links}")
    return lines
