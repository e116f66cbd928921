"""`calumma compare` from prompts to a report."""

import json
import sys
from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.compare.judgment_store import Judgment, JudgmentStore
from calumma.compare.study import open_study


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    records = [
        {"id": number, "prompt": f"write {number}", "task_type": "Advice", "image_urls": []} for number in range(2)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _answers(path: Path, text: str) -> Path:
    records = [{"id": str(number), "content": f"{text} {number}"} for number in range(2)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def study(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "study"
    systems = [f"{name}={_answers(tmp_path / f'{name}.jsonl', name)}" for name in ("a+", "b")]
    words = ["compare", "new", str(folder), "--prompts", str(prompts), "--question-sets", "pairwise"]
    assert main([*words, "--system", systems[0], "--system", systems[1]]) == 0
    assert capsys.readouterr().out == (f"{folder}: 2 prompts, 2 systems, 2 items to judge\n")
    return folder


def _judge(folder: Path, votes: str) -> None:
    store = JudgmentStore(folder)
    for item in open_study(folder).items():
        for name in "xyz":
            store.record(Judgment(item.key, name, {"preference": votes}))
    store.close()


def test_a_study_is_made_judged_and_reported(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "report", str(study)]) == 0
    output = capsys.readouterr().out
    assert "not counted: preference[a+ against b]: 2 items lack annotators" in output
    _judge(study, "first")
    assert main(["compare", "report", str(study)]) == 0
    assert "6 judgments of 3 annotators" in capsys.readouterr().out
    report = json.loads((study / "report.json").read_text())
    metrics = {metric["name"]: metric for metric in report["figures"]}
    assert metrics["win_rate[a+ against b]"]["value"] == 1.0
    assert (study / "report.html").read_text().startswith("<!doctype html>")
    tables = json.loads((study / "tables.json").read_text())
    assert tables["preference[a+ against b]"]["counts"]["Advice"] == {"first": 2}
    header, line, *_ = (study / "judgments.csv").read_text().splitlines()
    assert header == "question_set,prompt,systems,annotator,question,answer,swapped,seconds"
    assert line.endswith(",preference,first,0,0.0")
    pairs = tmp_path / "pairs.jsonl"
    assert main(["compare", "pairs", str(study), "--out", str(pairs)]) == 0
    assert [json.loads(line)["chosen"] for line in pairs.read_text().splitlines()] == [
        [{"type": "text", "text": "a+ 0"}],
        [{"type": "text", "text": "a+ 1"}],
    ]


def test_prompts_are_written_for_a_text_only_system(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ask.jsonl"
    words = ["compare", "prompts", str(prompts), "--captions", "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{out}: 2 prompts\n"
    assert "<caption>" in json.loads(out.read_text().splitlines()[0])["content"][1]["text"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--system", "a b=x"], "--system a b=x; expected NAME=PATH, the name of letters, digits and + - _ . only."),
        (["--system", "a=x", "--annotators", "0"], "--annotators 0; expected at least 1."),
    ],
)
def test_invalid_options_are_refused(
    words: list[str], message: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "new", str(tmp_path / "s"), "--prompts", str(prompts), *words]
    assert main(command) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_other_machines_need_an_access_token(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "serve", str(study), "--host", "0.0.0.0"]) == 2
    assert capsys.readouterr().err == (
        "error: --host 0.0.0.0 without --access-token; expected a token where other machines can "
        "reach the page. Add --access-token WORD, and send people the link with ?token=WORD.\n"
    )


def test_without_a_server_package_the_extra_is_named(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["compare", "serve", str(study)]) == 2
    assert capsys.readouterr().err == (
        "error: the package uvicorn is not installed; expected it for the annotation page. Install "
        'it with `pip install "calumma[compare]"`.\n'
    )
