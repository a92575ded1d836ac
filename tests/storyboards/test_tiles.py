"""The tiles of a sheet that are encoded row by row equal those that are encoded one by one."""

import numpy as np
import pytest

from pipelines.images.normalise import ImageConfig, normalise_pixels, normalise_tiles


@pytest.mark.parametrize(
    ("width", "height", "columns", "rows", "num_tiles"),
    [(10, 8, 4, 3, 12), (10, 8, 4, 3, 9), (10, 8, 3, 1, 2), (40, 24, 2, 2, 3), (17, 33, 1, 3, 3)],
)
def test_tiles_of_a_sheet_equal_each_alone(
    width: int, height: int, columns: int, rows: int, num_tiles: int
) -> None:
    chance, config = np.random.default_rng(num_tiles), ImageConfig(side=16, min_side=1)
    sheet = chance.integers(0, 256, (rows * height, columns * width, 3), np.uint8)
    places = [divmod(n, columns) for n in range(num_tiles)]
    tiles = [
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row, column in places
    ]
    found = normalise_tiles(sheet, width, height, num_tiles, config)
    alone = [normalise_pixels(tile, config) for tile in tiles]
    assert found.images == [tile.data for tile in alone]
    about = (found.format, found.width, found.height)
    assert {(tile.format, tile.width, tile.height) for tile in alone} == {about}
    assert len(set(found.images)) == num_tiles
