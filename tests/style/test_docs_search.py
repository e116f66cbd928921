"""The search of the documentation site finds the page that a reader looks for."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lunr import lunr

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FIRST_RESULTS = 10
"""Number of results on the first screen of the site's search."""


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Return a function from a query to the first pages found in the site's own search index."""
    site = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    found = json.loads((site / "search" / "search_index.json").read_text())
    shutil.rmtree(site)
    sections = [section for section in found["docs"] if not section["location"].startswith("reference/")]
    index = lunr("location", [{"field_name": "title", "boost": 10}, "text"], sections)
    return lambda query: [match["ref"].split("/")[0] for match in index.search(query)[:FIRST_RESULTS]]


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("LoRA", "finetuning"),
        ("Slurm", "training"),
        ("resume", "training"),
        ("aspect", "image-sizes"),
        ("mask", "editing"),
        ("samples", "training"),
        ("vLLM", "vllm"),
        ("guidance", "generation"),
        ("your own images", "quickstart"),
        ("GPU memory", "plan"),
        ("openai", "serving"),
        ("docker", "deploy"),
        ("parquet", "documents"),
    ],
)
def test_a_search_finds_its_page(search: Callable[[str], list[str]], query: str, page: str) -> None:
    assert page in search(query)
