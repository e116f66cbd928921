"""The last step of the road: the model is measured, and its page is written."""

from __future__ import annotations

import math
import platform
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
from calumma.demo.page_data import (
    CaptionedImage,
    Curve,
    GeneratedImages,
    InterleavedSample,
    MetricRow,
    PageData,
    Series,
    TokenCell,
    TokenizationExample,
    next_commands,
)
from calumma.demo.pipeline import DemoPipeline, OnCount
from calumma.demo.report_page import write_report_page
from calumma.demo.scenes import DESCRIBE_PROMPT, EMOJI_SOURCE, draw_prompt, page_opening
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.evaluate.captioning import GREEDY_TEXT, nearest_captions
from calumma.evaluate.context import EvalConfig, EvalContext, TextImagePair
from calumma.evaluate.evaluator import EvalProgress, evaluate
from calumma.evaluate.metric import Metric
from calumma.evaluate.report import REPORT_JSON, EvalReport
from calumma.files import write_json
from calumma.generate.model import Model, load
from calumma.generate.params import TextSampling
from calumma.runtime import STOP
from calumma.shards.encode import DocumentEncoder
from calumma.shards.reader import ShardReader
from calumma.train.pretrain import stage_two_start
from calumma.train.stability import Metrics, metric_points
from calumma.vocabulary import Vocabulary

DEMO_TASKS = ("likelihood", "retrieval", "reconstruction", "drawing", "captioning")
IMAGES_PER_PROMPT = 4
NUM_PROMPTS, NUM_CAPTIONS, NUM_RECONSTRUCTIONS, NUM_INTERLEAVED = 12, 12, 16, 4


def measure_and_report(road: DemoPipeline, tell: OnCount) -> None:
    """Measure the model on held-out documents; write `report.json` and `report.html`."""
    model = load(road.model)
    held_out = _take(road.held_out, road.config.max_eval_documents)
    options = _options(road)
    report = evaluate(model, held_out, DEMO_TASKS, options, progress=_listening(road, tell))
    new = _new_object_figures(model, road, options, _listening(road, tell))
    report = replace(
        report,
        figures=[*report.metrics, *new],
        model=str(road.model),
        command=f"calumma demo --out {road.out}",
        seconds=sum(road.seconds().values()) + report.seconds,
    )
    write_json(road.out / REPORT_JSON, report.to_json())
    write_report_page(
        road.out / "report.html", _story(road, EvalContext(model, held_out), options, report)
    )


def _listening(road: DemoPipeline, tell: OnCount) -> EvalProgress:
    """Hears of every piece measured, and whether a signal asks to stop."""

    def hear(task: str, done: int, total: int) -> None:
        STOP.check(f"{road.model} is whole, its report not written")
        tell(1)

    return hear


def _take(path: Path, most: int) -> list[Document]:
    """At most so many documents, evenly taken."""
    documents = list(read_documents([path]))
    return documents[:: max(1, len(documents) // most)][:most]


def _options(road: DemoPipeline) -> EvalConfig:
    return EvalConfig(
        seed=road.config.seed,
        training_documents=list(read_documents([road.pairs])),
        training_counts=_counts(ShardReader(road.out / "shards")),
        chat_template=True,
        caption_question=DESCRIBE_PROMPT,
        image=road.config.image_sampling,
        max_prompts=road.config.max_eval_documents,
    )


def _counts(reader: ShardReader) -> NDArray[np.int64]:
    """How often each id stands in the training pairs."""
    size = reader.manifest.vocabulary.size
    counts = np.zeros(size, dtype=np.int64)
    for source in ("objects", "shapes"):
        for number in reader.sequence_indices(source) if source in reader.manifest.sources else ():
            counts += np.bincount(reader.read(int(number))[0], minlength=size)
    return counts


def _new_object_figures(
    model: Model, road: DemoPipeline, options: EvalConfig, progress: EvalProgress
) -> list[Metric]:
    """The figures that can be had for objects never seen, named so."""
    documents = _take(road.new_objects, road.config.max_eval_documents)
    if not documents:
        return []
    tasks = ("likelihood", "reconstruction", "drawing")
    report = evaluate(model, documents, tasks, options, progress=progress)
    wanted = ("code_bits_per_token", "reconstruction_psnr_db", "colour_asked_colour_drawn_ground")
    note = "pictures of objects that occur in no training document"
    return [
        replace(figure, name=f"{figure.name}_new_objects", note=note)
        for figure in report.metrics
        if figure.name in wanted
    ]


def _story(
    road: DemoPipeline, held_out: EvalContext, options: EvalConfig, report: EvalReport
) -> PageData:
    model, pairs = held_out.model, held_out.pairs
    shown = _spread(pairs, NUM_PROMPTS)
    prompt = draw_prompt(shown[0].text) if shown else "draw"
    return PageData(
        title="A model that reads and draws",
        lead=_lead(road, model),
        command=report.command,
        machine=_machine(),
        seconds=road.seconds() | {"report": report.seconds - sum(road.seconds().values())},
        generated_images=_drawings(road, model, shown),
        captions=_captions(model, _spread(pairs, NUM_CAPTIONS, 1), options.training_documents),
        interleaved=_interleaved(road, model, _spread(pairs, NUM_INTERLEAVED, 2)),
        tokenization=_strip(road, model, options.training_documents),
        curves=_curves(road, model.vocabulary, options),
        reconstructions=_reconstructions(model, _spread(pairs, NUM_RECONSTRUCTIONS, 3)),
        metrics=_rows(report),
        sizes=_sizes(road, model),
        next_commands=next_commands(str(road.out), prompt, DESCRIBE_PROMPT),
        attribution=_attribution(),
    )


def _lead(road: DemoPipeline, model: Model) -> str:
    return (
        f"This page was made on this machine: the image tokenizer, the text tokenizer and a "
        f"decoder of {model.decoder.num_parameters / 1e6:.1f} million parameters were trained on "
        f"{_num_documents(road):,} documents of the corpus inside the package, and then drew and "
        "wrote what you see. No caption below occurs in any training document."
    )


def _num_documents(road: DemoPipeline) -> int:
    return len(ShardReader(road.out / "shards"))


def _machine() -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {versions}"


def _spread(pairs: Sequence[TextImagePair], count: int, offset: int = 0) -> list[TextImagePair]:
    """So many pairs, evenly spread, shapes and objects in turn; other offsets, other pairs."""
    kinds = [[p for p in pairs if bool(p.document.attributes.get("colour")) == k] for k in (0, 1)]
    picked: list[TextImagePair] = []
    for kind, share in zip(kinds, (count - count // 3, count // 3), strict=True):
        step = max(1, len(kind) // max(1, share))
        picked += kind[offset % step :: step][:share]
    return picked


def _drawings(
    road: DemoPipeline, model: Model, pairs: Sequence[TextImagePair]
) -> list[GeneratedImages]:
    prompts = [draw_prompt(pair.text) for pair in pairs]
    samples = model.generate_batch(
        [[prompt] for prompt in prompts for _ in range(IMAGES_PER_PROMPT)],
        seeds=[road.config.seed * 1000 + n for n in range(IMAGES_PER_PROMPT * len(prompts))],
        max_new_tokens=model.image.config.codes_per_image + 2,
        max_images=1,
        image_first=True,
        image=road.config.image_sampling,
    )
    pictures = [next(p for p in s.parts if not isinstance(p, str)) for s in samples]
    return [
        GeneratedImages(
            prompt=prompt,
            images=pictures[n * IMAGES_PER_PROMPT : (n + 1) * IMAGES_PER_PROMPT],
            note="training never showed this combination",
        )
        for n, prompt in enumerate(prompts)
    ]


def _captions(
    model: Model, pairs: Sequence[TextImagePair], training: Sequence[Document]
) -> list[CaptionedImage]:
    samples = model.generate_batch(
        [[pair.pil_image, DESCRIBE_PROMPT] for pair in pairs],
        max_new_tokens=32,
        max_images=0,
        text=GREEDY_TEXT,
    )
    written = ["".join(p for p in s.parts if isinstance(p, str)) for s in samples]
    nearest = nearest_captions(pairs, training) if pairs else []
    return [
        CaptionedImage(pair.pil_image.convert("RGB"), pair.text, text, near)
        for pair, text, near in zip(pairs, written, nearest, strict=True)
    ]


def _interleaved(
    road: DemoPipeline, model: Model, pairs: Sequence[TextImagePair]
) -> list[InterleavedSample]:
    """Pages begun with a caption: the model draws it, and goes on in words and pictures."""
    prompts = [page_opening(pair.text) for pair in pairs]
    samples = model.generate_batch(
        [[prompt] for prompt in prompts],
        add_generation_prompt=False,
        seeds=[road.config.seed * 1000 + number for number in range(len(prompts))],
        max_new_tokens=2 * model.image.config.codes_per_image + 64,
        max_images=2,
        text=TextSampling(temperature=0.7, repetition_penalty=1.0),
        image=road.config.image_sampling,
    )
    return [
        InterleavedSample([prompt], s.parts) for prompt, s in zip(prompts, samples, strict=True)
    ]


def _reconstructions(
    model: Model, pairs: Sequence[TextImagePair]
) -> list[tuple[PIL.Image.Image, PIL.Image.Image]]:
    return [(pair.pil_image.convert("RGB"), model.decode_image(pair.codes)) for pair in pairs]


def _strip(
    road: DemoPipeline, model: Model, documents: Sequence[Document]
) -> TokenizationExample | None:
    """A training pair on its way into a row."""
    first = len(documents) // 3
    row = [*documents[first : first + 1], *documents[:: max(1, len(documents) // 5)]]
    encoder = DocumentEncoder(model.components.tokenizers)
    config = road.config.pretrain_config(road.out).data
    sequences = encoder.encode(row)
    bins = BestFitBins(num_rows=1, seq_len=config.seq_len)
    packed = [
        (np.array(sequence.token_ids), np.array(sequence.loss_mask))
        for sequence in sequences
        if bins.insert([len(sequence.token_ids) - 1]) is not None
    ]
    batch = collate_rows([packed], config.seq_len, model.vocabulary.pad)
    vocabulary, chosen = model.vocabulary, row[0]
    codes = [vocabulary.id_to_code(i) for i in sequences[0].token_ids if i in vocabulary.codes]
    side = model.image.config.codes_per_side
    return TokenizationExample(
        text=chosen.text,
        image=chosen.images[0].open().convert("RGB"),
        codes=[codes[r * side : (r + 1) * side] for r in range(side)],
        num_codes=vocabulary.num_codes,
        reconstruction=model.decode_image(codes),
        packed_sequence=list(_cells(batch, model)),
    )


def _cells(batch: Batch, model: Model) -> Iterator[TokenCell]:
    vocabulary = model.vocabulary
    names = vocabulary.control_names()
    for id_, owner in zip(batch.input_ids[0].tolist(), batch.document_ids[0].tolist(), strict=True):
        if owner == PADDING:
            yield TokenCell(id_, "padding", "padding", owner)
        elif id_ in vocabulary.codes:
            yield TokenCell(id_, "code", str(vocabulary.id_to_code(id_)), owner)
        elif id_ in vocabulary.text:
            yield TokenCell(id_, "text", model.text.decode([id_]), owner)
        else:
            yield TokenCell(id_, "control", names[id_], owner)


def _curves(road: DemoPipeline, vocabulary: Vocabulary, options: EvalConfig) -> list[Curve]:
    counts = options.training_counts
    assert counts is not None, "the road's options count the training ids"
    unigram = {
        "text": _entropy(counts, vocabulary.text),
        "image": _entropy(counts, vocabulary.codes),
    }
    pretraining = road.config.pretrain_config(road.out)
    tokenizer = road.metrics("image-tokenizer")
    return [
        Curve(
            "Image tokenizer: how far a reconstruction is from its picture",
            "mean difference of a pixel, from 0 to 2",
            [Series("difference", metric_points(tokenizer, "loss_l1"))],
        ),
        Curve(
            "Pre-training",
            "bits a token",
            _modalities(road.metrics("pretrain")),
            boundary=stage_two_start(pretraining),
            baseline=unigram,
        ),
        Curve("Fine-tuning", "bits a token", _modalities(road.metrics("finetune"))),
    ]


def _modalities(metrics: Sequence[Metrics]) -> list[Series]:
    return [
        Series(
            name,
            [(step, nats / math.log(2)) for step, nats in metric_points(metrics, f"loss_{name}")],
        )
        for name in ("text", "image")
    ]


def _entropy(counts: NDArray[np.int64], ids: range) -> float:
    """Bits that an id of one kind costs a model that knows how frequent each is."""
    some = counts[ids.start : ids.stop]
    shares = some[some > 0] / max(1, some.sum())
    return float(-(shares * np.log2(shares)).sum())


def _rows(report: EvalReport) -> list[MetricRow]:
    rows = []
    for figure in report.metrics:
        wanted, met = _bar(figure)
        rows.append(
            MetricRow(
                figure.name,
                figure.value,
                figure.baseline,
                figure.n,
                figure.interval,
                figure.unit,
                figure.note,
                wanted,
                met,
            )
        )
    return rows


def _bar(figure: Metric) -> tuple[str, bool | None]:
    """What a healthy demo reaches, and whether this one did."""
    base = figure.baseline if figure.baseline is not None else math.nan
    bars = {
        "text_bits_per_token": ("30 % under the baseline", figure.value <= 0.7 * base),
        "code_bits_per_token": ("30 % under the baseline", figure.value <= 0.7 * base),
        "code_bits_right_minus_shuffled": (
            "below 0, interval and all",
            figure.interval is not None and figure.interval[1] < 0,
        ),
        "retrieval_text_given_image": ("2.5 times chance", figure.value >= 2.5 * base),
        "retrieval_image_given_text": ("2.5 times chance", figure.value >= 2.5 * base),
        "colour_asked_colour_drawn": ("5 in 10", figure.value >= 0.5),
        "reconstruction_psnr_db": ("6 dB over the baseline", figure.value >= base + 6),
        "codebook_used": ("60 %", figure.value > 0.6),
    }
    return bars.get(figure.name, ("", None))


def _sizes(road: DemoPipeline, model: Model) -> list[tuple[str, str]]:
    manifest = ShardReader(road.out / "shards").manifest
    config = road.config.pretrain_config(road.out)
    seen = sum(int(told) for _, told in metric_points(road.metrics("pretrain"), "num_tokens"))
    network = sum(p.numel() for p in model.image.network.parameters())
    return [
        ("parameters of the decoder", f"{model.decoder.num_parameters:,}"),
        ("parameters of the image tokenizer", f"{network:,}"),
        ("vocabulary", f"{model.vocabulary.num_text} text ids, {model.vocabulary.num_codes} codes"),
        ("codes in a picture", str(model.image.config.codes_per_image)),
        ("training documents", f"{manifest.num_sequences:,}"),
        ("ids in them", f"{manifest.num_tokens:,}"),
        ("ids read in pre-training", f"{seen:,} in {config.steps} steps"),
        ("calumma", calumma.__version__),
    ]


def _attribution() -> list[str]:
    """The sources of the demo's documents, as the embedded corpus's attribution tells them."""
    text = files("calumma.corpora").joinpath("embedded/ATTRIBUTION.md").read_text(encoding="utf-8")
    lines = ["Shapes, grounds and captions are composed by calumma itself; templates, not people."]
    for section in text.split("\n## ")[1:]:
        name, _, body = section.partition("\n")
        if name.strip() in (EMOJI_SOURCE, "wordnet"):
            told = [line.removeprefix("- ") for line in body.splitlines() if line.startswith("- ")]
            lines.append(f"{name.strip()}: {' '.join(line.split('](')[0] for line in told[:1])}")
            lines += told[2:3]
    return lines
