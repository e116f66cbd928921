"""Image decoder worker: its functions, and its limits in a process of its own."""

import io
import json
import subprocess
import sys

import PIL.Image
import pytest

from calumma.errors import ImageError
from calumma.serve.images.decoder_worker import decode_fitted, serve_requests
from calumma.tokens.image_preprocessing import to_square
from tests.images import noise, png


def request(data: bytes, **more: object) -> bytes:
    head = {"bytes": len(data), "resolution": 8, "fit": "pad", "max_pixels": 1000, "name": "p"}
    return json.dumps(head | more).encode() + b"\n" + data


def responses(result: bytes) -> list[tuple[dict[str, object], bytes]]:
    file, found = io.BytesIO(result), []
    while line := file.readline():
        head = json.loads(line)
        found.append((head, file.read(head["bytes"])))
    return found


def test_requests_are_served_one_after_the_other() -> None:
    expected = to_square(noise(1, 30, 20), 8, "pad").tobytes()
    cropped = to_square(noise(1, 30, 20), 8, "crop").tobytes()
    data = png(1, 30, 20)
    out = io.BytesIO()
    serve_requests(io.BytesIO(request(data) + request(b"junk") + request(data, fit="crop")), out)
    first, second, third = responses(out.getvalue())
    assert first == ({"bytes": 192, "size": [30, 20], "fitted": [8, 8]}, expected)
    assert second[0]["bytes"] == 0
    assert str(second[0]["error"]).startswith("p: not an image")
    assert third == ({"bytes": 192, "size": [30, 20], "fitted": [8, 8]}, cropped)


def test_an_image_of_too_many_pixels_is_not_decoded() -> None:
    with pytest.raises(ImageError) as caught:
        decode_fitted(png(1, 40, 30), resolution=8, fit="pad", max_pixels=1199, name="p")
    assert str(caught.value) == ("p: 40 x 30 pixels; expected at most 1,199. Scale the image down.")


def test_an_image_that_cannot_be_fitted_is_named() -> None:
    with pytest.raises(ImageError) as caught:
        decode_fitted(png(1, 1, 300), resolution=8, fit="pad", max_pixels=1000, name="image 2")
    assert str(caught.value) == (
        "image 2: an image of 1 x 300 pixels; expected sides that differ at most 100-fold. Crop it, or drop its "
        "document."
    )


def test_a_lack_of_memory_is_reported() -> None:
    def exhaust_memory(*_: object) -> PIL.Image.Image:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calumma.serve.images.decoder_worker.to_rgb", exhaust_memory)
        with pytest.raises(ImageError) as caught:
            decode_fitted(png(1), resolution=8, fit="pad", max_pixels=1000, name="p")
    assert str(caught.value) == (
        "p: needs more memory than an image may have here; expected a smaller one. Save it with fewer pixels."
    )


LIMITED = """
import sys
sys.argv = ["p", "100000000"]
from calumma.serve.images import decoder_worker as p
p.warm_up_codecs()
p.set_rlimits(100_000_000)
assert "torch" not in sys.modules
found = []
for act in (lambda: open("/etc/hostname"), lambda: bytearray(300_000_000)):
    try:
        act()
        found.append("done")
    except (OSError, MemoryError) as error:
        found.append(type(error).__name__)
for kind in ("GIF", "JPEG", "WEBP", "TIFF", "PNG", "BMP", "ICO", "PPM", "JPEG2000"):
    import io, PIL.Image
    file = io.BytesIO()
    PIL.Image.new("P" if kind == "GIF" else "RGB", (16, 16)).save(file, kind)
    p.decode_fitted(file.getvalue(), resolution=8, fit="pad", max_pixels=1000, name=kind)
print(found)
"""


def test_a_limited_process_opens_no_file_takes_no_memory_and_decodes_every_format() -> None:
    finished = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert finished.stderr == ""
    assert finished.stdout == "['OSError', 'MemoryError']\n"
