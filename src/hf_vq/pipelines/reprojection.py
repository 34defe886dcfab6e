"""Judging generated volumes by their views: rendered again, they should look like the views they were made from."""

from collections.abc import Sequence

import torch

from ..processors import BeamGeometry, render_views
from ..processors.geometry import is_view
from .given_views import GivenViews


def check_can_be_rendered(views: GivenViews) -> None:
    """Raises ValueError if the name of a view does not say how to render it, or a subject has no view."""
    unknown = [name for name in views.names if not is_view(name)]
    if unknown:
        raise ValueError(
            f"select_by_reprojection=True renders views named frontal, lateral or azimuth_<degrees>; {unknown} cannot "
            "be rendered: leave them or the selection out"
        )
    blind = (~views.present.any(dim=1)).nonzero().flatten().tolist()
    if blind:
        raise ValueError(
            f"select_by_reprojection=True compares with the views, and subjects {blind} have none; give them one or "
            "leave the selection out"
        )


def reprojection_errors(
    volumes_hu: torch.Tensor,
    spacing: Sequence[float],
    views: GivenViews,
    view_range: Sequence[float],
    beam: BeamGeometry | None = None,
) -> torch.Tensor:
    """Mean squared error between a subject's views and those rendered from its volumes, over the views that it has.

    Args:
        volumes_hu: `(subjects * n, D, H, W)` HU, n volumes of a subject one after another.
        spacing: voxel size along D, H, W, mm.
        views: the views to compare with, at least one for each subject.
        view_range: values that black and white have in the views; rendered ones are brought to it too.
        beam: rays of the views; parallel by default.

    Returns:
        `(subjects, n)` float32 on the volumes' device, in the squared unit of `view_range`.
    """
    low, high = view_range
    volumes = volumes_hu[:, None].unflatten(0, (views.num_subjects, -1))
    total = volumes.new_zeros(volumes.shape[:2])
    every_present = views.present.to(volumes.device)
    for name, pixel_values, present in zip(views.names, views.pixel_values, every_present.T, strict=True):
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        rendered = render_views(volumes[present].flatten(0, 1), spacing, [name], image_size=size, beam=beam)[:, 0]
        rendered = (low + rendered * (high - low)).unflatten(0, (len(pixel_values), -1))
        difference = rendered - pixel_values[:, None].to(rendered.device)
        total[present] += difference.square().flatten(2).mean(dim=2)
    return total / every_present.sum(dim=1, keepdim=True)
