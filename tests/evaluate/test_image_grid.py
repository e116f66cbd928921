import io

import numpy as np
import PIL.Image

from calumma.evaluate.image_grid import MAX_GRID_PAIRS, ImageGrid, ReconstructedImage, make_grid, select_grid_indices


def test_the_worst_come_first_and_others_are_drawn_from_all_the_rest() -> None:
    scores = np.random.default_rng(0).permutation(100).astype(float)
    shown = select_grid_indices(scores, seed=0)
    assert len(shown) == len(set(shown)) == MAX_GRID_PAIRS
    assert scores[shown[: MAX_GRID_PAIRS // 2]].tolist() == list(range(MAX_GRID_PAIRS // 2))
    assert shown == select_grid_indices(scores, seed=0) and shown != select_grid_indices(scores, seed=1)


def test_few_images_are_all_shown() -> None:
    assert select_grid_indices(np.array([3.0, 1.0, 2.0]), seed=0) == [1, 2, 0]


def test_a_sheet_has_originals_to_the_left() -> None:
    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    blue = np.full((64, 64, 3), (0, 0, 255), np.uint8)
    grid = make_grid("Sheet", "A note.", [ReconstructedImage(red, blue)] * 5)
    image = PIL.Image.open(io.BytesIO(grid.png))
    assert image.size == (4 * 140, 2 * 76)
    assert image.getpixel((10, 10)) == (255, 0, 0) and image.getpixel((80, 10)) == (0, 0, 255)
    assert image.getpixel((10, 90)) == (255, 0, 0) and image.getpixel((200, 90)) == (255,) * 3


def test_on_a_page_it_loads_nothing() -> None:
    shown = ImageGrid("Sheet", "A note.", b"png").to_html()
    assert "<h2>Sheet</h2><p>A note.</p>" in shown and 'src="data:image/png;base64,cG5n"' in shown
