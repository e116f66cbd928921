"""`calumma build-shards`."""

import json
from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.documents.document import Document
from calumma.documents.writers import write_parquet
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers


@pytest.fixture
def tok(tokenizers: Tokenizers, tmp_path: Path) -> Path:
    tokenizers.text.save(tmp_path / "tok")
    tokenizers.image.save(tmp_path / "tok")
    return tmp_path / "tok"


def test_documents_become_shards_and_the_fingerprint_is_printed(
    tok: Path, documents: list[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "d.parquet", tmp_path / "shards"
    write_parquet(path, documents)
    words = ["build-shards", str(path), "--tokenizers", str(tok), "--out", str(out)]
    assert main(words) == 0
    shown = capsys.readouterr()
    manifest = ShardReader(out).manifest
    assert shown.out == (
        f"{out}: 40 sequences, {manifest.total.num_tokens} tokens in 1 shard; fingerprint {manifest.fingerprint}\n"
        "read as images: content 16, messages 8\n"
        "read as text: content 32, messages 16\n"
        "read as id, source and license: id 40, source 40\n"
    )
    assert shown.err.startswith("shards: 40 (")
    before = {file: file.stat().st_mtime_ns for file in out.glob("shard-*")}
    assert main(words) == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("shard-*")} == before


def test_invalid_documents_are_dropped_counted_and_listed(
    tok: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f'{{"id": "{n}", "content": [{{"type": "image", "base64": "bm8="}}]}}\n' for n in range(12)]
    (tmp_path / "bad.jsonl").write_text("".join(lines) + '{"id": "good", "content": []}\n')
    words = ["build-shards", str(tmp_path / "bad.jsonl"), "--tokenizers", str(tok)]
    assert main([*words, "--out", str(tmp_path / "out"), "--skip-invalid"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "read as images: content 12",
        "read as id, source and license: id 13",
        f"dropped 12 (unreadable), listed in {tmp_path / 'out'}/quarantine.jsonl",
    ]
    listed = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in listed] == [str(n) for n in range(12)]


@pytest.mark.parametrize("skip", [(), ("--skip-invalid",)])
def test_a_left_over_column_is_refused_unless_it_is_ignored(
    tok: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], skip: tuple[str, ...]
) -> None:
    path, out = tmp_path / "d.jsonl", tmp_path / "out"
    record = {"text": "a dog", "blip_caption": "a brown dog", "notes": "seen in the park"}
    path.write_text("".join(json.dumps(record | {"text": f"dog {n}"}) + "\n" for n in range(3)))
    words = ["build-shards", str(path), "--tokenizers", str(tok), "--out", str(out), *skip]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {path}, document d.jsonl:1: left over: 'blip_caption' (text), 'notes' (text); expected every image "
        "and text in the document. Rename the columns as docs/documents.md says, or pass --ignore-columns "
        "blip_caption,notes."
    )
    assert main([*words, "--ignore-columns", "blip_caption,notes"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "read as text: text 3",
        "not read: blip_caption (ignored) 3, notes (ignored) 3",
    ]
    assert ShardReader(out).manifest.account.to_json() == {
        "text": {"text": 3},
        "not read": {"blip_caption (ignored)": 3, "notes (ignored)": 3},
    }


def test_workers_and_pieces_are_at_least_one(tok: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build-shards", "docs", "--tokenizers", str(tok), "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "0"]) == 2
    assert capsys.readouterr().err == (
        "error: --shard-documents 512 --workers 0; expected at least 1 of each. Omit them for the defaults.\n"
    )


def test_slurm_needs_a_partition(tok: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build-shards", "docs", "--tokenizers", str(tok), "--out", str(tmp_path / "out")]
    assert main([*words, "--executor", "slurm"]) == 2
    assert capsys.readouterr().err == (
        "error: --executor slurm without --slurm FILE; expected a TOML file that names at least "
        "the "
        'partition. Write one line into it: partition = "NAME".\n'
    )


def test_slurm_jobs_are_printed(
    tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import calumma.shards.cluster
    from calumma.shards.cluster import SlurmConfig

    submitted: list[object] = []

    def submit(job: object, paths: list[str], workers: int, config: SlurmConfig) -> list[str]:
        submitted.extend([paths, workers, config])
        return ["41", "42"]

    monkeypatch.setattr(calumma.shards.cluster, "submit_to_slurm", submit)
    (tmp_path / "slurm.toml").write_text('partition = "short"\ngpus = 1\n')
    words = ["build-shards", "docs", "--tokenizers", str(tok), "--out", str(tmp_path / "out")]
    words += ["--executor", "slurm", "--slurm", str(tmp_path / "slurm.toml"), "--device", "cuda"]
    assert main(words) == 0
    assert submitted == [["docs"], -1, SlurmConfig(partition="short", gpus=1)]
    assert capsys.readouterr().out == (
        f"jobs 41; then job 42 writes {tmp_path / 'out' / 'manifest.json'}\n"
        f"logs: {tmp_path / 'out' / '.build' / 'slurm'}/*/slurm_logs; if a job fails, repeat "
        "the same command\n"
    )


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_shards_are_not_written_to_an_address(executor: str, tok: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build-shards", "docs", "--tokenizers", str(tok), "--out", "s3://bucket/shards"]
    assert main([*words, "--executor", executor]) == 2
    assert capsys.readouterr().err == (
        "error: s3:/bucket/shards: a URL; expected a local folder. Choose a local --out and copy it afterwards.\n"
    )
    assert not Path("s3:").exists()
