"""What a volume is compared with is cropped by the model as the volume itself is."""

from __future__ import annotations

import numpy as np
import pytest

from medmllm_plugins.attribution.baseline_images import baseline_image
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.models.families.medm_vl_ct import HIGH, LOW, MedMVLCTFamily, crop, volume_pixels
from medmllm_plugins.prompts.attribution_options import BASELINES, Baseline


def chest(air: float = -1024.0, beyond: float = -1024.0) -> Volume:
    """An ellipse of tissue with two lungs and a rib of metal, in air, in what the scanner did not see."""
    slices, rows, columns = np.mgrid[:8, :40, :40]

    def ellipse(row: int, column: int, high: float, wide: float) -> np.ndarray:
        ellipse_mask: np.ndarray = ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 < 1
        return ellipse_mask

    voxels = np.full((8, 40, 40), beyond, np.float32)
    voxels[ellipse(20, 20, 20, 20)] = air
    body = ellipse(18, 21, 11, 15) & (slices > 1)
    voxels[body] = 40
    voxels[body & (ellipse(18, 15, 7, 5) | ellipse(18, 27, 7, 5))] = -850
    voxels[3, 18, 21] = 9000
    return Volume(voxels, (1.0, 1.0, 1.0), "RAS", "HU")


@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize("beyond", [-1024.0, -3024.0])
@pytest.mark.parametrize("air", [-1024.0, -1000.0])
def test_a_volume_and_its_baseline_are_cropped_alike(kind: Baseline, air: float, beyond: float) -> None:
    volume = chest(air, beyond)
    box = crop(volume)
    assert box[0] == slice(2, 8) and box[1].start > 5 and box[1].stop < 35
    baseline = baseline_image(MedMVLCTFamily(), volume, kind)
    assert isinstance(baseline, Volume) and crop(baseline) == box
    assert baseline.voxels.dtype == np.float32 and baseline.voxels.shape == volume.voxels.shape
    inside, before = baseline.voxels[box], volume.voxels[box]
    outside = np.ones(volume.voxels.shape, bool)
    outside[box] = False
    np.testing.assert_array_equal(baseline.voxels[outside], volume.voxels[outside])
    if kind == "blank":
        body = before > LOW
        assert np.unique(inside[body]).size == 1
        assert inside[body][0] == pytest.approx(before[body].clip(max=HIGH).mean(), rel=1e-5)
        assert (inside[~body] <= LOW).all()
    else:
        assert (inside > LOW).all() and inside.std() < before.clip(LOW, HIGH).std() * 0.6
    assert volume_pixels(baseline, 8).shape == volume_pixels(volume, 8).shape


@pytest.mark.parametrize("kind", BASELINES)
def test_a_volume_of_air_is_left_as_it_is_cropped(kind: Baseline) -> None:
    volume = Volume(np.full((4, 10, 10), -1024, np.float32), (1.0, 1.0, 1.0), "RAS", "HU")
    baseline = baseline_image(MedMVLCTFamily(), volume, kind)
    assert isinstance(baseline, Volume) and crop(baseline) == crop(volume)
    assert np.ptp(volume_pixels(baseline, 8).numpy()) == 0
