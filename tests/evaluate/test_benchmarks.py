from pathlib import Path

import pytest

from calumma.evaluate.benchmarks import TEXT_BENCHMARKS
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.text_tasks import load_records
from tests.evaluate.published import write_benchmarks

PAPER = {
    "piqa", "siqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "boolq",
    "mmlu", "gsm8k", "math",
}  # fmt: skip


def test_the_papers_text_benchmarks_are_there_with_its_shots() -> None:
    assert set(TEXT_BENCHMARKS) >= PAPER
    shots = {name: each.num_fewshot for name, each in TEXT_BENCHMARKS.items() if each.num_fewshot}
    assert shots == {"mmlu": 5, "gsm8k": 8, "math": 4}


@pytest.mark.parametrize("name", TEXT_BENCHMARKS)
def test_every_benchmark_is_read_from_its_published_files(name: str, tmp_path: Path) -> None:
    questions, examples = load_records(name, EvalConfig(benchmarks_folder=write_benchmarks(tmp_path)))
    assert questions
    expected = TEXT_BENCHMARKS[name].num_fewshot > 0 and TEXT_BENCHMARKS[name].train is not None
    assert bool(examples) == expected


def test_a_benchmark_names_the_files_it_reads() -> None:
    assert TEXT_BENCHMARKS["piqa"].files == "valid.jsonl, valid-labels.lst"
    assert TEXT_BENCHMARKS["gsm8k"].files == "test.jsonl, train.jsonl"
    assert TEXT_BENCHMARKS["math"].files == "test/*/*.json"
