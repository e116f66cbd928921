"""Signed images, read back with the C2PA library."""

import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

import calumma
from calumma.errors import ConfigError
from calumma.serve.api_errors import APIError
from calumma.serve.config import C2PASigningConfig
from calumma.serve.provenance.image_metadata import TRAINED_ALGORITHMIC_MEDIA, ImageMetadata, png_with_metadata
from calumma.serve.provenance.signing import ImageSigner, build_manifest, load_image_signer, load_signing_keys
from tests.images import noise
from tests.serve.chain import NOW, Authority, read

METADATA = ImageMetadata(model="tiny", time=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC))

PKCS8, OPENSSL = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def config(authority: Authority, tmp_path: Path) -> C2PASigningConfig:
    return authority.write(tmp_path)


def test_a_manifest_contains_the_model_and_the_time() -> None:
    action = {
        "action": "c2pa.created",
        "when": "2026-03-04T05:06:07Z",
        "softwareAgent": {"name": "tiny"},
        "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
    }
    result = build_manifest(METADATA)
    assert result == {
        "claim_generator_info": [{"name": "calumma", "version": calumma.__version__}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action], "allActionsIncluded": True}}],
    }
    result = build_manifest(replace(METADATA, prompt="a red circle"))
    assert result["assertions"][0]["data"]["actions"] == [{**action, "description": "a red circle"}]


def test_a_signed_image_is_unchanged_and_its_manifest_is_valid(
    authority: Authority, config: C2PASigningConfig
) -> None:
    png = png_with_metadata(noise(1), METADATA)
    signed = load_image_signer(config).sign(png, METADATA)
    seen = read(signed, authority)
    result = seen.manifest
    assert (seen.state, seen.wrong) == ("Trusted", [])
    assert result["assertions"] == build_manifest(METADATA)["assertions"]
    (generator,) = result["claim_generator_info"]
    assert (generator["name"], generator["version"]) == ("calumma", calumma.__version__)
    assert result["signature_info"]["common_name"] == "a server"
    assert "time" not in result["signature_info"]
    before, after = (PIL.Image.open(io.BytesIO(file)) for file in (png, signed))
    assert before.tobytes() == after.tobytes()
    assert before.text == after.text  # type: ignore[attr-defined]
    assert len(after.text) == 5  # type: ignore[attr-defined]


def test_without_the_authority_the_signature_is_valid_but_not_trusted(config: C2PASigningConfig) -> None:
    signed = load_image_signer(config).sign(png_with_metadata(noise(1), METADATA), METADATA)
    seen = read(signed, Authority())
    assert (seen.state, seen.wrong) == ("Valid", ["signingCredential.untrusted"])


@pytest.mark.parametrize(("marker", "offset"), [(b"IDAT", 30), (b"Creation Time", 0), (b"trainedAlgorithmicMedia", 0)])
def test_a_changed_byte_invalidates_the_manifest(
    authority: Authority, config: C2PASigningConfig, marker: bytes, offset: int
) -> None:
    signed = bytearray(load_image_signer(config).sign(png_with_metadata(noise(1), METADATA), METADATA))
    signed[signed.rindex(marker) + offset] ^= 1
    seen = read(bytes(signed), authority)
    assert (seen.state, seen.wrong) == ("Invalid", ["assertion.dataHash.mismatch"])


def test_a_manifest_of_another_image_is_invalid(authority: Authority, config: C2PASigningConfig) -> None:
    signer = load_image_signer(config)
    one, other = (signer.sign(png_with_metadata(noise(seed), METADATA), METADATA) for seed in (1, 2))

    def cut(file: bytes) -> tuple[bytes, bytes, bytes]:
        start = file.index(b"caBX") - 4
        end = start + 12 + int.from_bytes(file[start : start + 4], "big")
        return file[:start], file[start:end], file[end:]

    before, _, after = cut(one)
    seen = read(before + cut(other)[1] + after, authority)
    assert seen.state == "Invalid"
    assert "assertion.dataHash.mismatch" in seen.wrong


def test_several_threads_sign_at_the_same_time(authority: Authority, config: C2PASigningConfig) -> None:
    signer = load_image_signer(config)

    def signed(seed: int) -> str:
        metadata = replace(METADATA, model=f"model {seed}")
        seen = read(signer.sign(png_with_metadata(noise(seed), metadata), metadata), authority)
        assert seen.action["softwareAgent"] == {"name": f"model {seed}"}
        return seen.state

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(signed, range(16))) == {"Trusted"}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"use": None}, "digitalSignature"),
        ({"signs": False}, "emailProtection"),
        ({"use": ExtendedKeyUsageOID.SERVER_AUTH}, "digitalSignature, serverAuth"),
        ({"use": None, "signs": False}, "none"),
    ],
)
def test_a_certificate_for_other_usages_is_rejected(
    authority: Authority, tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    config = authority.write(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        load_image_signer(config)
    assert str(caught.value) == (
        f"{config.certificates} contains a certificate that C2PA does not allow (the certificate "
        f"is invalid; its usages: {found}); expected one that an authority issued for "
        "digitalSignature and for emailProtection or documentSigning. Request such a certificate; "
        "docs/serving.md shows how to create one for tests."
    )


def test_the_certificate_of_an_authority_is_rejected(authority: Authority, tmp_path: Path) -> None:
    config = authority.write(tmp_path, authority.key, is_authority=True)
    with pytest.raises(ConfigError, match="contains a certificate that C2PA does not allow"):
        load_image_signer(config)


def test_images_are_not_sent_after_the_certificate_expired(
    authority: Authority, config: C2PASigningConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = load_signing_keys(config)
    (tmp_path / "old").mkdir()
    old = authority.write(tmp_path / "old", days=(-3, -1))
    # As in three days: loaded while valid, used later.
    late = replace(keys, certificates=old.certificates.read_bytes(), private_key=old.private_key.read_bytes())
    caplog.set_level("INFO", "calumma.serve")
    with pytest.raises(APIError) as caught:
        ImageSigner(late).sign(png_with_metadata(noise(1), METADATA), METADATA)
    assert (caught.value.status, caught.value.code) == (503, "cannot_sign")
    assert str(caught.value) == (
        "an image was generated, but this server cannot sign it now and sends no unsigned images; "
        "the server's log has the reason. Retry later, or request text only."
    )
    (line,) = caplog.records
    assert line.fields == {  # type: ignore[attr-defined]
        "reason": "the certificate was not valid at time of signing"
    }


@contextmanager
def timestamp_server(status: int, answer: Callable[[bytes], bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve time stamps; yields the URL and the content types of the requests."""
    content_types: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content_types.append(self.headers["Content-Type"])
            result = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(result)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", content_types
        finally:
            server.shutdown()
            thread.join()


def test_a_url_without_time_stamps_is_rejected(config: C2PASigningConfig) -> None:
    with timestamp_server(200, lambda query: b"nonsense") as (url, content_types):
        with pytest.raises(ConfigError) as caught:
            load_image_signer(replace(config, timestamp_url=url))
        assert str(caught.value) == (
            f"{url} returns no time stamp (internal error (decode error (missing further values "
            "(at position 0)))); expected a time-stamp authority (RFC 3161). "
            "Fix --c2pa-timestamps, or leave it out."
        )
        assert content_types == ["application/timestamp-query"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is the authority")
def test_an_authority_time_stamps_each_image(authority: Authority, config: C2PASigningConfig, tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    folder.mkdir()
    own = authority.write(folder, use=ExtendedKeyUsageOID.TIME_STAMPING)
    (folder / "openssl.cnf").write_text(
        f"[tsa]\ndefault_tsa = it\n[it]\nserial = {folder}/serial\nsigner_digest = sha256\n"
        f"signer_cert = {own.certificates}\nsigner_key = {own.private_key}\n"
        "default_policy = 1.2.3.4\ndigests = sha256, sha384, sha512\ness_cert_id_alg = sha256\n"
    )

    def stamped(query: bytes) -> bytes:
        (folder / "query").write_bytes(query)
        words = ["-config", "openssl.cnf", "-queryfile", "query", "-out", "reply"]
        subprocess.run(["openssl", "ts", "-reply", *words], cwd=folder, check=True, capture_output=True)
        return (folder / "reply").read_bytes()

    with timestamp_server(200, stamped) as (url, content_types):
        signer = load_image_signer(replace(config, timestamp_url=url))
        assert len(content_types) == 1
        signed = signer.sign(png_with_metadata(noise(1), METADATA), METADATA)
        assert len(content_types) == 2
        load_image_signer(config).sign(png_with_metadata(noise(1), METADATA), METADATA)
        assert len(content_types) == 2
    seen = read(signed, authority)
    assert (seen.state, seen.wrong) == ("Trusted", [])
    stamp = datetime.fromisoformat(seen.manifest["signature_info"]["time"])
    assert abs((datetime.now(UTC) - stamp).total_seconds()) < 60


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the page uses openssl")
def test_the_example_of_the_documentation_signs_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    section = page.read_text().partition("## Sign images (C2PA)")[2]
    make, look = (section.split(f"```{kind}\n")[1].split("```")[0] for kind in ("sh", "python"))
    subprocess.run(["bash", "-ec", make], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    signer = load_image_signer(C2PASigningConfig(certificates=Path("certificates.pem"), private_key=Path("key.pem")))
    Path("image.png").write_bytes(signer.sign(png_with_metadata(noise(1), METADATA), METADATA))
    seen: dict[str, Any] = {}
    exec(look, seen)
    assert seen["state"] == "Trusted"
    assert seen["manifest"]["signature_info"]["common_name"] == "my server"


def error_of(config: C2PASigningConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_signing_keys(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "algorithm", "form"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), "es256", PKCS8),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "es384", OPENSSL),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "es512", OPENSSL),
        (lambda: rsa.generate_private_key(65537, 2048), "ps256", OPENSSL),
        (ed25519.Ed25519PrivateKey.generate, "ed25519", PKCS8),
    ],
)
def test_a_key_of_any_format_is_converted_for_the_library(
    authority: Authority, tmp_path: Path, make: Callable[[], Any], algorithm: str, form: PrivateFormat
) -> None:
    config = authority.write(tmp_path, make(), form)
    with config.certificates.open("a") as file:
        file.write(authority.pem)
    keys = load_signing_keys(config)
    assert keys.algorithm == algorithm
    assert keys.private_key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert keys.certificates == config.certificates.read_bytes()
    assert keys.usages == ("digitalSignature", "emailProtection")


@pytest.mark.parametrize("package", ["c2pa", "cryptography"])
def test_a_missing_package_is_reported_with_its_installation(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    config = authority.write(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert error_of(config) == (
        f"signing images needs {package}, which is not installed. `pip install 'calumma[c2pa]'` installs it."
    )


def test_missing_files_and_folders_are_rejected(authority: Authority, tmp_path: Path) -> None:
    good = authority.write(tmp_path)
    nowhere = tmp_path / "nowhere.pem"
    assert error_of(C2PASigningConfig(certificates=nowhere, private_key=good.private_key)) == (
        f"{nowhere} cannot be read (No such file or directory); expected certificates in PEM. "
        "Fix its path or its permissions."
    )
    assert error_of(C2PASigningConfig(certificates=good.certificates, private_key=tmp_path)) == (
        f"{tmp_path} cannot be read (Is a directory); expected a private key in PEM. Fix its path or its permissions."
    )


@pytest.mark.parametrize("text", ["", "no PEM\n", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_files_with_other_content_are_rejected(authority: Authority, tmp_path: Path, text: str) -> None:
    good = authority.write(tmp_path)
    other = tmp_path / "other.pem"
    other.write_text(text)
    other.chmod(0o600)
    assert error_of(C2PASigningConfig(certificates=other, private_key=good.private_key)) == (
        f"{other} contains no readable certificates; expected PEM, the signing certificate first, "
        "then the intermediate ones. Fix it."
    )
    assert error_of(C2PASigningConfig(certificates=good.certificates, private_key=other)) == (
        f"{other} contains no readable private key; expected PEM without a password. "
        "`openssl pkcs8 -topk8 -nodes -in KEY -out FILE` removes a password."
    )


def test_a_key_with_a_password_is_rejected(authority: Authority, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    config = authority.write(tmp_path, key)
    locked = key.private_bytes(Encoding.PEM, PKCS8, BestAvailableEncryption(b"secret"))
    config.private_key.write_bytes(locked)
    assert error_of(config).startswith(f"{config.private_key} contains no readable private key")


def test_a_key_that_other_users_can_read_is_rejected(authority: Authority, tmp_path: Path) -> None:
    config = authority.write(tmp_path)
    config.private_key.chmod(0o640)
    assert load_signing_keys(config).algorithm == "es256"
    config.private_key.chmod(0o644)
    assert error_of(config) == (
        f"{config.private_key} is readable by every user of this machine; expected a private file. "
        f"`chmod 600 {config.private_key}` restricts it."
    )


def test_a_key_of_another_certificate_is_rejected(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = authority.write(tmp_path / "a"), authority.write(tmp_path / "b")
    assert error_of(C2PASigningConfig(certificates=one.certificates, private_key=other.private_key)) == (
        f"{other.private_key} is not the key of the first certificate in {one.certificates}; "
        "expected that key. Pass it, or put its certificate first."
    )


@pytest.mark.parametrize("days", [(-3, -1), (1, 3)])
def test_a_certificate_that_is_not_valid_now_is_rejected(
    authority: Authority, tmp_path: Path, days: tuple[int, int]
) -> None:
    config = authority.write(tmp_path, days=days)
    begin, end = (f"{NOW + timedelta(days=day):%Y-%m-%d %H:%M}" for day in days)
    assert error_of(config) == (
        f"{config.certificates} contains a certificate for {begin} to {end} UTC; expected one that "
        "is valid now. Renew it."
    )


@pytest.mark.parametrize(
    "make", [lambda: ec.generate_private_key(ec.SECP256K1()), lambda: rsa.generate_private_key(65537, 1024)]
)
def test_a_key_that_c2pa_does_not_support_is_rejected(
    authority: Authority, tmp_path: Path, make: Callable[[], Any]
) -> None:
    config = authority.write(tmp_path, make())
    assert error_of(config) == (
        f"{config.private_key} is a key that C2PA does not support; expected P-256, P-384, P-521, "
        "Ed25519, or RSA of at least 2048 bits. Create such a key, and a certificate for it."
    )
