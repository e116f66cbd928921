"""Report pages load nothing, and embedded images keep their pixels."""

import base64
import hashlib
import io
import re

import numpy as np
import PIL.Image
import pytest

from calumma.html_report import MAX_IMAGE_SIDE, html_page, image_tag, scroll_region


def decode(tag: str) -> PIL.Image.Image:
    match = re.search(r'src="data:image/png;base64,([^"]+)"', tag)
    assert match
    return PIL.Image.open(io.BytesIO(base64.b64decode(match[1])))


def test_an_image_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    tag = image_tag(PIL.Image.fromarray(pixels), "noise")
    assert np.array_equal(np.asarray(decode(tag)), pixels)


def test_images_are_displayed_at_an_integer_multiple() -> None:
    tag = image_tag(PIL.Image.new("RGB", (64, 32)), "wide", display_side=120)
    assert 'width="128" height="64"' in tag
    assert 'width="300"' not in image_tag(PIL.Image.new("RGB", (300, 300)), "large")


def test_a_large_image_is_downscaled_and_the_given_one_unchanged() -> None:
    image = PIL.Image.new("RGB", (1000, 500), "red")
    assert decode(image_tag(image, "large")).size == (MAX_IMAGE_SIDE, MAX_IMAGE_SIDE // 2)
    assert image.size == (1000, 500)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"])
def test_every_image_mode_is_accepted(mode: str) -> None:
    assert decode(image_tag(PIL.Image.new(mode, (4, 4)), mode)).size == (4, 4)


def test_alternative_texts_and_titles_are_escaped() -> None:
    tag = image_tag(PIL.Image.new("L", (1, 1)), '"><script>')
    assert 'alt="&quot;&gt;&lt;script&gt;"' in tag
    assert "<title>&lt;b&gt;</title>" in html_page("<b>", "")


def test_a_wide_table_scrolls_by_keyboard_and_has_a_name() -> None:
    region = scroll_region("<table></table>", 'a "b"')
    assert region == (
        '<div class="scroll" role="region" aria-label="a &quot;b&quot;" tabindex="0"><table></table></div>'
    )


def test_a_page_has_a_content_security_policy() -> None:
    page = html_page("Title", "<p>body</p>", style="p { margin: 0 }")
    assert page.startswith("<!doctype html>\n") and "default-src 'none'" in page and "script" not in page
    assert "p { margin: 0 }</style>\n<p>body</p>\n</html>" in page


def test_the_policy_allows_the_script_of_a_page_alone() -> None:
    page = html_page("Title", "<p>body</p>", script="let x = 1;")
    digest = base64.b64encode(hashlib.sha256(b"let x = 1;").digest()).decode()
    assert f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">" in page
    assert "<p>body</p>\n<script>let x = 1;</script>\n</html>" in page
