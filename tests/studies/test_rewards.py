"""The studies of rewards: prompts that stay apart from the evaluation, and a table of best of n."""

import runpy
import sys
from pathlib import Path

import pytest

from calumma.corpora.still_life_documents import refusal
from calumma.documents.document import Text
from calumma.documents.readers import read_documents
from calumma.generate.best_of import RewardInput
from calumma.generate.events import FinishReason
from calumma.rl.config_grpo import GRPOTrainConfig
from calumma.toml_config import load_config
from studies.rewards.still_life import PROMPT_KINDS, combination, curves, halves, interval, table, text_reward, tune

STUDIES = Path(__file__).parents[2] / "studies"


def run(monkeypatch: pytest.MonkeyPatch, script: str, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(str(STUDIES / script), run_name="__main__")


@pytest.mark.parametrize("kind", ["single", "count"])
def test_prompts_and_held_out_scenes_share_no_combination(kind: str) -> None:
    prompts, others = halves(kind)
    assert {combination(scene) for scene in prompts}.isdisjoint(map(combination, others))
    assert abs(len(prompts) - len(others)) < 10 and len(others) >= 10
    assert all(scene.split != "train" for scene in [*prompts, *others])


def test_prompts_are_requests_with_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("prompts", str(tmp_path / "p.parquet"), "--count", "80", "--kinds", *PROMPT_KINDS)
    run(monkeypatch, "rewards/still_life.py", *words)
    documents = list(read_documents([tmp_path / "p.parquet"]))
    by_kind = {kind: [d for d in documents if d.attributes["kind"] == kind] for kind in PROMPT_KINDS}
    assert sum(map(len, by_kind.values())) == 80 and all(len(each) >= 2 for each in by_kind.values())
    assert all(len(document.messages) == 2 for document in documents)
    held_out = {scene.to_png() for kind in ("single", "count") for scene in halves(kind)[1]}
    assert all(image.read_bytes() not in held_out for document in documents for image in document.images)
    assert all(len(document.images) == 2 for kind in ("edits", "kept-edits") for document in by_kind[kind])
    assert all(isinstance(document.messages[1].parts[0], Text) for document in by_kind["questions"])
    for document in by_kind["captions"] + by_kind["new-questions"]:
        assert len(document.images) == 1 and document.messages[0].parts[0] == document.images[0]
    assert all("I cannot draw" in document.text and not document.images for document in by_kind["refusals"])
    kept = "background", "make the", "turn the", "change the"
    assert all(any(words in document.text.lower() for words in kept) for document in by_kind["kept-edits"])
    assert all(" with " in document.text for document in by_kind["wordings"])
    with pytest.raises(SystemExit):
        run(monkeypatch, "rewards/still_life.py", "prompts", str(tmp_path / "p.parquet"), "--grpo.beta", "1")


def test_texts_are_rewarded_by_kind() -> None:
    def reward(text: str, finish_reason: FinishReason = "stop", **attributes: str) -> float:
        return text_reward(
            RewardInput(prompt="", parts=(text,), attributes=attributes, num_tokens=5, finish_reason=finish_reason)
        )

    caption = {
        "kind": "captions",
        "background": "red",
        "layout": "corners",
        "slots": "bell;;white ring;bus",
        "size": "",
    }
    right = "a bell at the top left, a white ring at the bottom left and a bus at the bottom right on a red background"
    assert reward(right, **caption) == 1.0
    assert 0 < reward(right.replace("a bell", "a bus"), **caption) < 1
    assert reward(right, "length", **caption) == 0.0
    single = caption | {"layout": "single", "slots": "bell", "size": "small"}
    assert reward("a small bell on a red background", **single) == 1.0
    question = {"kind": "new-questions", "answer": "on the left"}
    assert reward("a bell on the left; now it on the left: on the left.", **question) == 1.0
    assert reward("on the right", **question) == 0.0
    assert reward(refusal("dragon"), kind="refusals") == 1.0 and reward("a dragon", kind="refusals") == 0.0


def test_an_interval_is_one_of_combinations() -> None:
    names = ["a"] * 50 + ["b"] * 50
    mean, low, high = interval(names, [False] * 100, [True] * 50 + [False] * 50)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # two combinations say little, however many prompts they have


def test_a_table_compares_models_and_curves_show_rewards(tmp_path: Path) -> None:
    old, new, other = (
        {"scores": {"edits": (["0", "1"], [False, hit])}, "caption_bits": bits}
        for hit, bits in ((0, 2), (1, 1), (0, 2))
    )
    assert table({"old": old, "new": new, "other": other}).splitlines() == [
        "| score | old | new | other | mean difference |",
        "|---|---|---|---|---|",
        "| edits | 0.0% | 50.0% | 0.0% | +25.0 (0.0 to 50.0) |",
        "| captions, bits per token | 2.0000 | 1.0000 | 2.0000 | -25.0% |",
    ]
    assert table({"old": old}).splitlines()[2:] == ["| edits | 0.0% |", "| captions, bits per token | 2.0000 |"]
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "reward": 0.5}\n{"event": "x"}\n{"step": 2, "reward": 0.75}\n'
    )
    assert curves([tmp_path]).count("<polyline") >= 1


def test_best_of_n_is_measured_on_the_shipped_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "rewards/best_of.py", "still-life", "--count", "1", "--best-of", "2", "--skill", "position")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| skill | one sample | logprob | likelihood | still_life | any of 2 passes |"
    assert lines[2].startswith("| position | ") and lines[-1].startswith("Seconds per prompt: generation ")


def test_several_seeds_share_prompts_and_take_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("studies.rewards.still_life.NUM_PROMPTS", 4)
    monkeypatch.setattr("subprocess.run", lambda words, check: calls.append(words))
    runs = tune("still-life", tmp_path, [3, 5], ["--grpo.modality", "any"])
    assert runs == [tmp_path / "seed-3", tmp_path / "seed-5"]
    for words, run, seed in zip(calls, runs, ("3", "5"), strict=True):
        config_file, *options = words[4:]
        assert options.pop(options.index("--out") + 1) == str(run)
        options.remove("--out")
        config = load_config(GRPOTrainConfig, Path(config_file), options)
        assert (config.seed, config.model, config.grpo.modality) == (int(seed), Path("still-life"), "any")
        assert config.grpo.prompts == (tmp_path / "prompts.parquet",)
    assert len(list(read_documents([tmp_path / "anchors.parquet"]))) == 4
