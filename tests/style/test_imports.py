"""Imports are quick, have no side effects, and need torch only where they should."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.style.tree import ROOT, modules

WITHOUT_TORCH = [
    "calumma",
    "calumma.errors",
    "calumma.files",
    "calumma.runtime",
    "calumma.vocabulary",
    "calumma.shards.format",
    "calumma.shards.reader",
    *(name for name in modules() if name.startswith("calumma.documents.")),
]
"""Modules that can be imported without torch."""

NEED_VLLM = {"calumma.serve.vllm.decoder_model", "calumma.serve.vllm.guidance_scheduler"}
"""Modules that vLLM's own processes import."""


def run(code: str, *arguments: str, folder: Path, home: Path | None = None) -> str:
    """Return the output of a fresh process that runs in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home or folder)}
    environment.pop("CALUMMA_CACHE", None)
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


FIRST_WITH_TORCH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "torch" in sys.modules:
        print(name)
        break
"""


def test_these_modules_import_no_torch(tmp_path: Path) -> None:
    assert run(FIRST_WITH_TORCH, *WITHOUT_TORCH, folder=tmp_path) == ""


def test_reading_no_table_and_no_url_imports_neither_pyarrow_nor_fsspec(tmp_path: Path) -> None:
    code = "import sys, calumma.documents.document; print({'pyarrow', 'fsspec'} & sys.modules.keys())"
    assert run(code, folder=tmp_path) == "set()\n"


def test_importing_the_package_imports_few_modules(tmp_path: Path) -> None:
    code = "import sys; before = len(sys.modules); import calumma; print(len(sys.modules) - before)"
    assert int(run(code, folder=tmp_path)) < 60


SIDE_EFFECTS = """
import importlib, json, logging, os, signal, sys, threading, torch
before, num_threads = dict(os.environ), threading.active_count()
signals = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
seed, numbers = torch.initial_seed(), torch.get_rng_state()
imported = [importlib.import_module(name) for name in sys.argv[1:]]
found = []
if logging.getLogger().handlers:
    found.append("logging is configured")
if signals != [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]:
    found.append("a signal handler is installed")
# torch and its libraries set some of these themselves.
prefixes = ("TORCH", "KMP", "OMP", "MKL", "TOKENIZERS", "LC_")
if added := sorted(k for k in os.environ if k not in before and not k.startswith(prefixes)):
    found.append(f"the environment got {added}")
if threading.active_count() != num_threads:
    found.append("a thread is running")
if torch.cuda.is_initialized():
    found.append("CUDA is initialized")
if torch.get_default_dtype() is not torch.float32:
    found.append("the default dtype is changed")
if torch.initial_seed() != seed or not torch.equal(torch.get_rng_state(), numbers):
    found.append("the random state of torch has changed")
print(json.dumps(found))
"""


def test_imports_have_no_side_effects(tmp_path: Path) -> None:
    folder, home = tmp_path / "folder", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    found = run(SIDE_EFFECTS, *(set(modules()) - NEED_VLLM), folder=folder, home=home)
    assert json.loads(found) == []
    assert [*folder.iterdir(), *home.iterdir()] == []


def test_init_files_are_empty() -> None:
    # A re-export in shards/__init__.py would make the reader import torch.
    inner = [path for path in (ROOT / "calumma").rglob("__init__.py") if path.parent.name != "calumma"]
    assert [str(path) for path in inner if path.read_text().strip()] == []
