"""A phantom scan for several tests; makes the modules beside the tests importable."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from hf_vq.processors.geometry import grid_affine

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def phantom_scan(tmp_path_factory):
    """A CT of 96 mm, stored PIL: an ellipsoid body with two unequal lungs and a bone in the back, above a table."""
    n, step = 48, 2.0
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * step] * 3, indexing="ij")
    hu = np.full((n, n, n), -1000, dtype=np.int16)
    hu[(x / 40) ** 2 + (y / 28) ** 2 + (z / 60) ** 2 < 1] = 40
    hu[((x - 17) / 12) ** 2 + (y / 16) ** 2 + (z / 30) ** 2 < 1] = -850
    hu[((x + 17) / 10) ** 2 + (y / 16) ** 2 + (z / 26) ** 2 < 1] = -850
    hu[(x / 6) ** 2 + ((y + 20) / 6) ** 2 < 1] = 600
    hu[:, 2:4] = 300
    affine = grid_affine((n, n, n), (step, step, step), np.array([5.0, -200.0, 900.0]))
    image = nibabel.Nifti1Image(hu, affine)
    canonical, stored = (nibabel.orientations.axcodes2ornt(axes) for axes in ("RAS", "PIL"))
    path = tmp_path_factory.mktemp("scan") / "phantom.nii.gz"
    image.as_reoriented(nibabel.orientations.ornt_transform(canonical, stored)).to_filename(path)
    return path
