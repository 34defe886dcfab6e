"""Telling the body in a CT scan from the table it lies on."""

import numpy as np

BODY_THRESHOLD_HU = -300.0
"""Least density of the body's outside; below it is air, clothing or padding."""


def body_mask(volume_hu: np.ndarray) -> np.ndarray:
    """Finds the largest connected object denser than -300 HU, cavities included, so that the table falls away.

    Args:
        volume_hu: (D, H, W) HU.

    Returns:
        (D, H, W) bool.

    Raises:
        ValueError: nothing in the scan is denser than -300 HU and larger than a few voxels.
    """
    try:
        from scipy import ndimage
        from skimage import measure, morphology
    except ImportError as error:
        raise ImportError("finding the body needs scikit-image: pip install hf-vq[medical]") from error
    dense = morphology.opening(volume_hu > BODY_THRESHOLD_HU, morphology.ball(1))
    labels = measure.label(dense, connectivity=1)
    sizes = np.bincount(labels.ravel())[1:]
    if not len(sizes):
        raise ValueError(
            f"found no object above {BODY_THRESHOLD_HU:g} HU (largest value {volume_hu.max():g}), expected a body; "
            "check that the scan is in Hounsfield units"
        )
    body = labels == 1 + int(sizes.argmax())
    body = np.stack([ndimage.binary_fill_holes(axial) for axial in body])
    return np.asarray(morphology.dilation(body, morphology.ball(1)))
