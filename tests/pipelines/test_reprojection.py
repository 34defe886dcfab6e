"""Re-projection errors of volumes against views, by rendering at hand."""

import pytest
import torch

from hf_vq.pipelines.given_views import GivenViews
from hf_vq.pipelines.reprojection import reprojection_errors
from hf_vq.processors import render_views

SPACING = (4.0, 3.0, 2.0)


def given_views(volumes, present, image_size=(12, 10), low=-1.0, high=1.0):
    """Views as they look in volumes `(subjects, D, H, W)`, of the subjects that have them."""
    present, names = torch.tensor(present), ["frontal", "lateral"]
    images = low + (high - low) * render_views(volumes[:, None], SPACING, names, image_size)
    return GivenViews(names, [images[has, index] for index, has in enumerate(present.T)], present)


@pytest.fixture
def volumes(generator):
    """`(subjects, n, D, H, W)` HU."""
    return torch.empty(3, 2, 8, 10, 12).uniform_(-1000, 500, generator=generator)


def test_the_volume_that_was_rendered_has_no_error_and_others_have_the_mean_square_of_the_difference(volumes):
    views = given_views(volumes[:, 1], [[True, True]] * 3)
    errors = reprojection_errors(volumes.flatten(0, 1), SPACING, views, (-1.0, 1.0))
    torch.testing.assert_close(errors[:, 1], torch.zeros(3), atol=1e-10, rtol=0)
    other, right = (given_views(volumes[:, index], [[True, True]] * 3).pixel_values for index in (0, 1))
    expected = (torch.stack(other) - torch.stack(right)).square().mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(errors[:, 0], expected)
    assert bool((expected > 1e-6).all())


def test_the_unit_is_that_of_the_view_processor(volumes):
    errors = [
        reprojection_errors(
            volumes.flatten(0, 1),
            SPACING,
            given_views(volumes[:, 1], [[True, True]] * 3, low=low, high=high),
            (low, high),
        )
        for low, high in ((0.0, 1.0), (-1.0, 1.0), (5.0, 15.0))
    ]
    torch.testing.assert_close(errors[1], 4 * errors[0])
    torch.testing.assert_close(errors[2], 100 * errors[0], atol=1e-7, rtol=1e-4)


def test_only_the_views_of_a_subject_count(volumes):
    flat, truth = volumes.flatten(0, 1), volumes[:, 0].roll(1, dims=0)
    present = [[True, False], [True, True], [False, True]]
    errors = reprojection_errors(flat, SPACING, given_views(truth, present), (-1.0, 1.0))
    whole = given_views(truth, [[True, True]] * 3)
    frontal, lateral = (
        reprojection_errors(flat, SPACING, GivenViews([name], [pixels], torch.ones(3, 1, dtype=torch.bool)), (-1, 1))
        for name, pixels in zip(whole.names, whole.pixel_values, strict=True)
    )
    expected = torch.stack([frontal[0], (frontal[1] + lateral[1]) / 2, lateral[2]])
    torch.testing.assert_close(errors, expected)
