"""Fetching through clients, with programs of our own in the place of pip, npm and apt-get."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from calumma.corpora.catalog_entry import Package
from calumma.corpora.package_download import fetch_package
from calumma.errors import CorpusError

APT = Package("apt", "words", "1:2.0-1")
NPM = Package("npm", "@set/icons", "1.2.3")
PIP = Package("pip", "easy-vqa", "1.0")


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty folder as the whole PATH, and a cache for the test."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path / "cache"))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def failure(package: Package) -> str:
    with pytest.raises(CorpusError) as caught:
        fetch_package(package)
    return str(caught.value)


def tarball(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_a_package_of_npm_is_unpacked_without_its_outer_folder(tmp_path: Path, programs: Path) -> None:
    archive = tarball(tmp_path / "icons.tgz", {"package/icons.json": "{}"})
    program(programs, "npm", f'test "$3" = "@set/icons@1.2.3" && cp {archive} .')
    assert (fetch_package(NPM) / "icons.json").read_text() == "{}"


def test_what_is_unpacked_is_not_fetched_again(tmp_path: Path, programs: Path) -> None:
    archive = tarball(tmp_path / "icons.tgz", {"package/icons.json": "{}"})
    program(programs, "npm", f"cp {archive} .")
    said: list[str] = []
    first = fetch_package(NPM, said.append)
    (programs / "npm").unlink()
    assert fetch_package(NPM, said.append) == first
    assert said == ["fetching @set/icons 1.2.3 (npm)"]


def test_a_wheel_is_unpacked(tmp_path: Path, programs: Path) -> None:
    with zipfile.ZipFile(tmp_path / "easy_vqa-1.0.whl", "w") as wheel:
        wheel.writestr("easy_vqa/data.json", "[]")
    program(programs, "pip", f"cp {tmp_path}/easy_vqa-1.0.whl .")
    assert (fetch_package(PIP) / "easy_vqa" / "data.json").read_text() == "[]"


def test_a_debian_package_is_unpacked_and_not_installed(programs: Path) -> None:
    program(programs, "apt-get", 'test "$2" = "words=1:2.0-1" && touch words.deb')
    program(programs, "dpkg", 'test "$1" = "-x" && mkdir "$3/usr"')
    assert (fetch_package(APT) / "usr").is_dir()


@pytest.mark.parametrize(
    ("package", "name", "fix"),
    [
        (APT, "apt-get", "It is part of Debian; this corpus needs Debian."),
        (NPM, "npm", "Install Node.js (https://nodejs.org), which includes npm."),
    ],
)
def test_a_missing_client_is_named(package: Package, name: str, fix: str) -> None:
    assert failure(package) == (f"{name} is not installed; expected it to fetch packages. {fix}")


def test_missing_pip_is_named(programs: Path) -> None:
    program(programs, "pip", 'echo "python: No module named pip" >&2; exit 1')
    assert failure(PIP) == "pip is not installed; expected it to fetch packages. Install pip."


def test_being_offline_is_said(programs: Path) -> None:
    program(programs, "npm", 'echo "npm error code ENOTFOUND" >&2; exit 1')
    assert failure(NPM) == (
        "npm cannot reach its registry; expected @set/icons 1.2.3 (npm). Connect to the network "
        "and run the same command again: completed downloads are kept."
    )


@pytest.mark.parametrize(
    ("package", "name", "line", "fix"),
    [
        (
            APT,
            "apt-get",
            "E: Version '1:2.0-1' for 'words' was not found",
            "This corpus needs Debian 12 and fresh lists (sudo apt-get update).",
        ),
        (
            NPM,
            "npm",
            "npm error 404 No match found for version 1.2.3",
            "List the versions: npm view @set/icons versions.",
        ),
        (
            PIP,
            "pip",
            "ERROR: No matching distribution found for easy-vqa==1.0",
            "List the versions: pip index versions easy-vqa.",
        ),
    ],
)
def test_a_version_that_is_gone_is_named(programs: Path, package: Package, name: str, line: str, fix: str) -> None:
    program(programs, name, f'echo "something else" >&2; echo "{line}" >&2; exit 1')
    assert failure(package) == (f"{name} could not fetch {package}: {line}; expected exactly this version. {fix}")


def test_a_client_that_does_not_start_is_named(programs: Path) -> None:
    path = programs / "npm"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    assert failure(NPM) == (
        f"{path} does not start (No such file or directory); expected it to fetch "
        "@set/icons 1.2.3 (npm). Fix the installation."
    )


def test_a_broken_archive_leaves_nothing_that_looks_whole(tmp_path: Path, programs: Path) -> None:
    program(programs, "npm", "echo broken > icons.tgz")
    folder = tmp_path / "cache" / "packages" / "npm" / "@set_icons-1.2.3"
    message = failure(NPM)
    assert message.startswith("icons.tgz is a corrupt archive (")
    assert message.endswith(
        f"); expected @set/icons 1.2.3 (npm). Remove {folder}.download and run the same command again."
    )
    assert not folder.exists()


def test_a_client_that_brings_nothing_is_named(tmp_path: Path, programs: Path) -> None:
    program(programs, "npm", "true")
    folder = tmp_path / "cache" / "packages" / "npm" / "@set_icons-1.2.3.download"
    assert failure(NPM) == (
        f"0 files were downloaded for @set/icons 1.2.3 (npm); expected one. Remove {folder} and try again."
    )
