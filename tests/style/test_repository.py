"""Documentation, versions, examples and scripts agree with the code."""

import doctest
import importlib
import os
import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

import calumma
from tests.style.tree import PACKAGE, ROOT, TESTS, modules, sources, texts

SCRIPTS = ["scripts/install", "scripts/check", "scripts/test", "scripts/demo", ".ci/run"]


ARCHITECTURE = ROOT / "docs" / "architecture.md"


def _packages_in_the_table() -> list[str]:
    return re.findall(r"^\| `calumma/(\w+)`", ARCHITECTURE.read_text(), re.MULTILINE)


def test_the_package_table_lists_every_package_and_top_level_module() -> None:
    packages = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(_packages_in_the_table()) == sorted(packages)
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py", "api.py"}
    named = set(re.findall(r"`(?:calumma/)?(\w+\.py)`", ARCHITECTURE.read_text()))
    assert sorted(files - named) == []


def test_the_package_table_is_in_the_order_of_the_import_contract() -> None:
    contracts = (ROOT / ".importlinter").read_text().split("layers =\n")[1].split("\n\n")[0]
    layers = [set(re.findall(r"\w+", line)) for line in reversed(contracts.splitlines())]
    order = [next(n for n, layer in enumerate(layers) if package in layer) for package in _packages_in_the_table()]
    assert order == sorted(order)


def test_the_lengths_of_the_files_to_read_are_within_a_tenth() -> None:
    rows = re.findall(r"^\| `(calumma/[\w/]+\.py)` \| (\d+) \|", ARCHITECTURE.read_text(), re.MULTILINE)
    lengths = {name: (int(lines), len((ROOT / name).read_text().splitlines())) for name, lines in rows}
    assert len(lengths) == 8
    assert {name: pair for name, pair in lengths.items() if abs(pair[0] - pair[1]) > 0.1 * pair[1]} == {}


def test_links_between_pages_have_targets() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text())
        if not target.startswith("../../actions/")  # of the repository's own host, in badges
        and not _has_anchor(page.parent / target if target else page, anchor)
    ]
    assert broken == []


def _has_anchor(path: Path, anchor: str) -> bool:
    """Return whether a file exists, and has a heading with an anchor if one is named."""
    if not path.exists() or not anchor:
        return path.exists()
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _comparison(page: str) -> dict[str, list[str]]:
    """Return the cells of the table of projects, row by row, without emphasis."""
    table = (ROOT / page).read_text().split("| Calumma | transformers |")[1].split("\n\n")[0]
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: cells for name, *cells in rows}


MERGED = {
    "train image and text tokenizers": ("train the image tokenizer", "train a text tokenizer around the image codes"),
    "fine-tune image output, LoRA, DPO, GRPO": (
        "fine-tune image output",
        "preference tuning and rewards (GRPO) on mixed answers",
    ),
    "interleaved output in batches, guided per image": (
        "interleaved text and images, batch above 1",
        "guidance per image in a continuous batch",
    ),
    "server with ordered parts and partial images": (
        "server that answers with ordered parts",
        "partial images while streaming",
    ),
}
"""Rows of the README that merge two rows of the page of the comparison."""


def test_the_comparison_of_the_readme_is_that_of_its_page() -> None:
    page = _comparison("docs/comparison.md")
    for name, cells in _comparison("README.md").items():
        merged = zip(*(page[row] for row in MERGED.get(name, (name,))), strict=True)
        assert cells == [both[0] if len(set(both)) == 1 else "part" for both in merged], name


def test_every_cell_of_a_peer_that_is_not_no_has_evidence() -> None:
    header = ["Calumma", "transformers", "Lumina-mGPT", "Emu3.5", "VeOmni", "sglang-omni"]
    text = (ROOT / "docs/comparison.md").read_text()
    evidence = set(re.findall(r"^\| ([\w.-]+) \| [^|]+ \| (yes|part) \|", text, re.MULTILINE))
    cells = {pair for row in _comparison("docs/comparison.md").values() for pair in zip(header, row, strict=True)}
    assert {pair for pair in cells if pair[0] != "Calumma" and pair[1] != "no"} <= evidence


def _num_cells(row: str) -> int:
    return len(re.sub(r"`[^`]*`", "code", row).strip().strip("|").split("|"))


def test_all_rows_of_a_table_have_as_many_cells() -> None:
    for path in (ROOT / "docs").rglob("*.md"):
        lines = path.read_text().splitlines()
        for head, line in pairwise(lines):
            if head.startswith("|") and re.fullmatch(r"\|([ :-]*-{3}[ :-]*\|)+", line):
                assert _num_cells(head) == _num_cells(line), f"{path.name}: {head}"


def test_a_page_is_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "docs").rglob("*.md")}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_files_named_in_pages_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"`((?:calumma|scripts|docs|tests|dev)/[\w./-]+)`", page.read_text())
    }
    assert sorted((page, name) for page, name in named if not (ROOT / name).exists()) == []


def test_version_changelog_and_project_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert calumma.__version__ == newest.group(1)
    assert project.get("version", calumma.__version__) == calumma.__version__


NEED_VLLM = {f"calumma.serve.vllm.{name}" for name in ("decoder_model", "guidance_scheduler")}
"""Modules that vLLM alone imports."""


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name: str) -> None:
    if name in NEED_VLLM:
        pytest.importorskip("vllm", reason="vllm is not installed; scripts/test-vllm installs it")
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize(
    "page", ["README.md", "docs/documents.md", "docs/shards.md", "docs/generation.md", "docs/vocabulary.md"]
)
def test_examples_in_pages_run(page: str) -> None:
    failed, _ = doctest.testfile(str(ROOT / page), module_relative=False)
    assert failed == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0


def test_every_dependency_is_pinned() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # vLLM has an environment of its own, which scripts/test-vllm installs.
    extras = [needs for extra, needs in project["optional-dependencies"].items() if extra != "vllm"]
    needed = [need for needs in [project["dependencies"], *extras] for need in needs]
    names = {re.split(r"[\[<>=]", need)[0].replace("_", "-") for need in needed} - {"calumma"}
    assert sorted(names - set(pinned)) == []


def _paths_of_other_machines() -> re.Pattern[str]:
    # Assembled here, so that this file does not match itself.
    folders = "work|root|home|opt|Users"
    hosts = "|".join(["py" + "pi", "python" + "hosted", "npm" + r"js\.", "download.py" + "torch"])
    return re.compile(rf"(?<![\w.}}>)~-])/(?:{folders})/|{hosts}", re.IGNORECASE)


def test_no_file_names_a_machine_or_a_registry() -> None:
    forbidden = _paths_of_other_machines()
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert found == []


def test_only_runtime_reads_the_environment() -> None:
    reading = re.compile(r"\bos\.(environ|getenv|putenv)\b")
    found = [p.relative_to(PACKAGE) for p in sources() if reading.search(p.read_text())]
    assert found == [Path("runtime.py")]


@pytest.mark.parametrize("package", ["model", "batches"])
def test_model_and_batches_do_not_use_torch_distributed(package: str) -> None:
    files = sources(PACKAGE / package)
    assert [p.name for p in files if "torch.distributed" in p.read_text()] == []


def test_only_the_command_line_prints() -> None:
    printing = re.compile(r"^\s*print\(", re.MULTILINE)
    found = [p.relative_to(PACKAGE) for p in sources() if printing.search(p.read_text())]
    # build_embedded.py is a program that builds the embedded corpus.
    assert [str(p) for p in found if p.parts[0] != "cli" and p != Path("embedded_corpus/build.py")] == []


def test_no_comment_marks_unfinished_work() -> None:
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [p for p in [*sources(), *sources(TESTS)] if unfinished.search(p.read_text())]
    assert [str(path) for path in found if path != Path(__file__)] == []


def test_pickles_are_loaded_with_weights_only() -> None:
    loading = re.compile(r"torch\.load\((?![^)]*weights_only=True)")
    assert [str(p) for p in sources() if loading.search(p.read_text())] == []
