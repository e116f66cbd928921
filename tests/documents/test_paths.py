"""Documents at addresses: in memory, in a zip file, on a web server."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

import calumma.documents.writers
from calumma.documents.document import Document, Image, Text
from calumma.documents.file_splits import FileSplit, read_split, split_files
from calumma.documents.paths import RemotePath, absolute_name, file_version, parse_path, resolve_inside
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_jsonl, write_parquet
from calumma.errors import DocumentError, ImageError, StorageError
from tests.documents.image_files import BLUE, RED, png
from tests.documents.test_parquet import pairs, save
from tests.documents.test_webdataset import tar
from tests.documents.web import served


def _of_s3(code: str, status: int) -> Exception:
    """Return an error like those of botocore."""

    class ClientError(Exception):
        response: ClassVar = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    return ClientError(code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents in a file of each kind, with embedded images and with image files."""
    folder = tmp_path_factory.mktemp("web") / "docs"
    captioned = [Document(id=f"{n}", content=(Text(f"n {n}"), Image(data=(RED, BLUE)[n % 2]))) for n in range(7)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calumma.documents.writers, "ROWS_PER_GROUP", 3)
        write_parquet(folder / "a.parquet", captioned)
    write_jsonl(folder / "b c" / "b.jsonl", captioned, images="files")
    write_jsonl(folder / "c.jsonl.gz", captioned)
    write_jsonl(folder / "d.jsonl.zst", captioned)
    tar(folder / "e.tar", {"0.png": RED, "0.txt": b"red", "1.txt": b"none"})
    save(folder / "f", pairs())
    (folder / "g.html").write_text("<p>A page.</p><img src='b%20c/large.png'><img src='../x.png'>")
    (folder / "b c" / "large.png").write_bytes(png("green", (60, 60)))
    (folder / "pictures").mkdir()
    (folder / "README.md").write_text("nothing to read")
    (folder / "pictures" / "1.png").write_bytes(RED)
    return folder


@pytest.fixture(params=["memory", "http", "zip", "s3"])
def url(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a copy of the folder on another file system."""
    if request.param == "http":
        with served(folder.parent) as host:
            yield f"{host}/docs"
        return
    if request.param == "s3":
        yield from _in_a_bucket(folder, request.getfixturevalue("monkeypatch"))
        return
    if request.param == "memory":
        fsspec.filesystem("memory").put(str(folder), "/docs", recursive=True)
        yield "memory://docs"
        fsspec.filesystem("memory").rm("/docs", recursive=True)
        return
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder.parent))
    yield f"zip://docs::file://{tmp_path / 'a.zip'}"


def _in_a_bucket(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URL of a folder in an S3 server, if its packages are installed."""
    s3fs = pytest.importorskip("s3fs", reason="pip install s3fs 'moto[server]'")
    server = pytest.importorskip("moto.server", reason="pip install s3fs 'moto[server]'")
    store = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    for name, value in (("ENDPOINT_URL", f"http://{host}:{port}"), ("DEFAULT_REGION", "us-east-1")):
        patch.setenv(f"AWS_{name}", value)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        patch.setenv(f"AWS_{name}", "any")
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = s3fs.S3FileSystem()
    if not bucket.exists("bucket"):
        bucket.mkdir("bucket")
    bucket.put(f"{folder}/", "bucket/docs/", recursive=True)
    yield "s3://bucket/docs"
    s3fs.S3FileSystem.clear_instance_cache()
    store.stop()


def below(url: str, path: str) -> str:
    """Return the URL of a file below a folder."""
    head, chain, rest = url.partition("::")
    return f"{head}/{path}{chain}{rest}"


def contents(documents: Iterator[Document]) -> list[list[str | bytes]]:
    """Return the texts and image bytes of each document."""
    return [[p.text if isinstance(p, Text) else p.read_bytes() for p in document.parts()] for document in documents]


def test_a_folder_at_an_address_holds_what_it_holds_here(folder: Path, url: str) -> None:
    expected = contents(read_documents([folder]))
    assert len(expected) == 7 * 4 + 2 + 2 + 1
    assert contents(read_documents([url])) == expected
    assert expected[-1] == ["A page.", png("green", (60, 60))]


def test_globs_files_and_folders_of_images(folder: Path, url: str) -> None:
    for glob in ("*.parquet", "*c/*.jsonl"):
        expected = contents(read_documents([f"{folder}/{glob}"]))
        assert contents(read_documents([below(url, glob)])) == expected
    [image] = read_documents([below(url, "pictures")])
    assert (image.id, image.source, image.images[0].read_bytes()) == ("1.png", "pictures", RED)


def test_the_spans_of_an_address_are_its_documents(url: str) -> None:
    splits = list(split_files([url], 2))
    found = [d for split in splits for d in read_split(split)]
    assert contents(iter(found)) == contents(read_documents([url]))
    rows = [split for split in splits if split.path.suffix == ".parquet"]
    assert [(split.first, split.count) for split in rows] == [(0, 2), (2, 2), (4, 2), (6, 1)]
    [tar_split] = [split for split in splits if split.path.suffix == ".tar"]
    assert tar_split == FileSplit(path=tar_split.path)


def test_a_path_out_of_the_folder_is_refused(url: str, folder: Path) -> None:
    for path in ("../x.png", "a/../../x.png", "/x.png", "x::memory://y.png", "..", "https://a/b"):
        assert resolve_inside(RemotePath(url), path) is None
    found = resolve_inside(RemotePath(url), "b c/../b c/large.png")
    assert isinstance(found, RemotePath)
    assert found.read_bytes() == png("green", (60, 60))
    assert resolve_inside(folder, "../x.png") is None


def test_a_percent_sign_does_not_lead_out_of_a_web_folder() -> None:
    found = resolve_inside(RemotePath("http://host/docs"), "%2e%2e/x.png?a#b")
    assert str(found) == "http://host/docs/%252e%252e/x.png%3Fa%23b"


def test_an_image_path_that_climbs_out_of_an_address_is_refused() -> None:
    memory = fsspec.filesystem("memory")
    record = {"content": [{"type": "image", "path": "../secret.png"}]}
    memory.pipe("/in/a.jsonl", json.dumps(record).encode())
    with pytest.raises(DocumentError) as caught:
        list(read_documents(["memory://in/a.jsonl"]))
    assert str(caught.value) == (
        "memory://in/a.jsonl:1, part 0: image path '../secret.png' leads out of memory://in; "
        "expected a path inside the folder of the document's file. Copy the image there."
    )


def test_a_missing_image_raises() -> None:
    with pytest.raises(ImageError) as caught:
        Image(path=RemotePath("memory://none.png")).open()
    assert str(caught.value) == (
        "memory://none.png: the image cannot be read (No such file or directory); expected an "
        "image file at this path. Fix the path, or drop the document."
    )


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "get_filesystem_class", missing)
    with pytest.raises(DocumentError) as caught:
        list(read_documents(["s3://bucket/a.jsonl"]))
    assert str(caught.value) == (
        "s3://bucket/a.jsonl: a package that opens it is not installed (Install s3fs to access "
        "S3); expected it. Install it, or copy the files here."
    )


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(DocumentError) as caught:
        list(read_documents(["floppy://a.jsonl"]))
    assert str(caught.value) == (
        "floppy://a.jsonl: fsspec cannot open it (Protocol not known: floppy); expected a URL such "
        "as s3://, gs://, hf:// or https://. Fix it, or copy the files here."
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.tar", "a.parquet", "a.html"])
def test_a_file_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(DocumentError) as caught:
        list(read_documents([f"memory://nowhere/{name}"], "drop"))
    assert str(caught.value).startswith(f"memory://nowhere/{name}: cannot be read (No such file or directory)")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.tar", "a.html", ""])
def test_a_server_that_is_not_there_is_one_line_and_no_fault_of_a_document(name: str) -> None:
    url = f"http://127.0.0.1:9/{name}"
    with pytest.raises(StorageError) as caught:
        list(read_documents([url], "drop"))
    line = str(caught.value)
    assert line.startswith(f"{url}: cannot be reached (Client")
    assert line.endswith(
        "); expected the file or folder stored there. Fix the URL, the credentials or the "
        "connection, and start the same command again: no document was dropped for this."
    )


def test_a_server_that_stops_answering_leaves_no_document_out(folder: Path, tmp_path: Path) -> None:
    expected = len(list(read_documents([folder])))
    for answers in (0, 3, 8, 16, 20):
        with served(folder.parent, answers) as host, pytest.raises(StorageError):
            list(read_documents([f"{host}/docs"], "drop"))
    with served(folder.parent) as host:
        assert len(list(read_documents([f"{host}/docs"], "drop"))) == expected


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (_of_s3("NoSuchKey", 404), True),
        (_of_s3("404", 404), True),
        (_of_s3("NoSuchBucket", 404), False),
        (_of_s3("SlowDown", 503), False),
        (_of_s3("ExpiredToken", 403), False),
    ],
)
def test_only_what_a_store_calls_missing_is_missing(
    error: Exception, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*anything: object) -> None:
        raise FileNotFoundError("a.png") from error

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", fail)
    with pytest.raises(FileNotFoundError if missing else StorageError):
        RemotePath("memory://a.png").read_bytes()
    with pytest.raises(ImageError if missing else StorageError):
        Image(path=RemotePath("memory://a.png")).open()


def test_a_right_that_is_missing_is_no_fault_of_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*anything: object, **options: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "_open", refuse)
    with pytest.raises(StorageError) as caught:
        list(read_documents(["memory://a.jsonl"], "drop"))
    assert str(caught.value) == (
        "memory://a.jsonl: cannot be reached (PermissionError: Access Denied); expected the "
        "file or folder stored there. Fix the URL, the credentials or the connection, and start "
        "the same command again: no document was dropped for this."
    )


def test_an_address_where_nothing_is_is_refused() -> None:
    for name in ("memory://nothing", "memory://nothing/*.jsonl"):
        with pytest.raises(DocumentError, match="nothing found; expected"):
            list(read_documents([name]))


def test_what_changes_with_a_file_is_known(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/state/a", b"one")
    before = file_version(RemotePath("memory://state/a"))
    assert before[0] == "size=3"
    assert file_version(RemotePath("memory://state/a")) == before
    memory.pipe("/state/a", b"two")
    assert file_version(RemotePath("memory://state/a")) != before
    (tmp_path / "a").write_bytes(b"one")
    assert file_version(tmp_path / "a")[0] == 3
    assert file_version(tmp_path) == []
    with served(tmp_path) as host:
        assert file_version(RemotePath(f"{host}/a"))[0] == "size=3"


def test_names_of_places() -> None:
    where = RemotePath("simplecache::zip://in/a.b.jsonl::https://host/x/a.zip?key=1")
    assert (where.name, where.suffix) == ("a.b.jsonl", ".jsonl")
    assert str(where.parent) == "simplecache::zip://in::https://host/x/a.zip?key=1"
    page = RemotePath("https://host/x/a.html?key=1")
    assert (page.name, str(page.parent)) == ("a.html", "https://host/x")
    assert parse_path("a.jsonl") == Path("a.jsonl")
    assert absolute_name(page) == str(page)
    assert absolute_name(Path("a")) == str(Path.cwd() / "a")


def test_a_cache_before_an_address_is_read_like_it(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/cached/a.jsonl", b'{"content": "a"}')
    [document] = read_documents(["filecache::memory://cached/a.jsonl"])
    assert document.text == "a"
