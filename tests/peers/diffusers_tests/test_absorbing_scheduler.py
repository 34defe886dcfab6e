"""diffusers' tests of schedulers, for the absorbing one."""

import unittest

import torch
from tests.schedulers import test_schedulers

from hf_vq import AbsorbingScheduler

NUM_CODES = 20


class Codes(torch.Tensor):
    """Codes whose product with a number, which the tests take for a network's output, is logits of these codes."""

    # Whatever else is computed from them is a plain tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __rmul__(self, number):
        return torch.randn(*self.shape, NUM_CODES, generator=torch.Generator().manual_seed(0))


class AbsorbingSchedulerTest(test_schedulers.SchedulerCommonTest):
    under_test = "AbsorbingScheduler"
    scheduler_classes = (AbsorbingScheduler,)
    forward_default_kwargs = (("num_inference_steps", 50),)

    @property
    def dummy_sample(self):
        codes = torch.randint(NUM_CODES + 1, (4, 3 * 8 * 8), generator=torch.Generator().manual_seed(0))
        return codes.as_subclass(Codes)

    def get_scheduler_config(self, **fields):
        return {"mask_token_id": NUM_CODES, "schedule": "cosine", **fields}

    def test_schedules_and_samplings(self):
        for schedule in ("linear", "cosine"):
            # halton is not here: it needs to be told the code grid, which these tests do not know
            for sampling in ("ancestral", "exact_count", "confidence", "sequential"):
                self.check_over_configs(time_step=None, schedule=schedule, sampling=sampling)

    def test_masking_rules(self):
        for masking in (None, "random", "exact_count"):
            self.check_over_configs(time_step=None, masking=masking)

    def test_temperatures(self):
        for temperature in (0.0, 0.5, 1.0):
            self.check_over_forward(time_step=None, temperature=temperature)

    @unittest.skip("the forward process masks codes: it takes no Gaussian noise to add")
    def test_add_noise_device(self):
        pass

    @unittest.skip("there is no noise variance, so there are no betas to be given")
    def test_trained_betas(self):
        pass
