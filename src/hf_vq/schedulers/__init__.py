"""Schedulers of discrete diffusion."""

from .scheduling_absorbing import AbsorbingScheduler, AbsorbingSchedulerOutput

__all__ = ["AbsorbingScheduler", "AbsorbingSchedulerOutput"]
