"""transformers' common tests of models and configs, run against `VQTokenizer` in two and three dimensions."""

import unittest
from typing import Any

import torch
from adaptation import adapted
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor
from torch import nn

from hf_vq import VQTokenizer, VQTokenizerConfig


class VQTokenizerTester:
    """A small tokenizer with attention in the middle of encoder and decoder, and its inputs.

    The common tests read the attributes. What they call a layer is one that has an attention map, and sequence length
    and hidden size are the last two axes of the first hidden state, the stem's output: half the input's last two sides.
    The length of a sequence is that of the attention maps too, so the code grid must have as many places.
    """

    batch_size = 3
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 1
    # The stem's output; in the encoder a residual block in each of three levels and three blocks in the middle, and as
    # many in the decoder.
    expected_num_hidden_layers = 1 + 2 * (3 + 3)
    seq_length, hidden_size = 8, 16

    def __init__(self, spatial: tuple[int, ...]) -> None:
        self.spatial = spatial

    def get_config(self) -> VQTokenizerConfig:
        return VQTokenizerConfig(
            spatial_dims=len(self.spatial),
            base_channels=8,
            channel_multipliers=[1, 2, 2],
            num_res_blocks=1,
            num_norm_groups=4,
            mid_attention=True,
            quantizer={"codebook_size": 16, "codebook_dim": 4},
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[VQTokenizerConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 1, *self.spatial])}


class VQTokenizerTests(ModelTesterMixin):
    """The common tests, with what a tokenizer needs said."""

    spatial: tuple[int, ...]
    all_model_classes = (VQTokenizer,)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = VQTokenizerTester(self.spatial)
        self.config_tester = ConfigTester(
            self,
            config_class=VQTokenizerConfig,
            has_text_modality=False,
            common_properties=["spatial_dims", "in_channels", "num_codebooks"],
            spatial_dims=len(self.spatial),
            base_channels=8,
            channel_multipliers=[1, 2],
            num_norm_groups=4,
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    @adapted("the input embedding of a convolutional network is a convolution, as in transformers' own image models")
    def test_model_get_set_embeddings(self) -> None:
        check_input_and_output_embeddings(self, VQTokenizer(self.model_tester.get_config()), nn.Identity())


class VQTokenizer2DTest(VQTokenizerTests, unittest.TestCase):
    under_test = "VQTokenizer, 2D"
    spatial = (16, 32)


class VQTokenizer3DTest(VQTokenizerTests, unittest.TestCase):
    under_test = "VQTokenizer, 3D"
    spatial = (8, 16, 32)


def check_input_and_output_embeddings(test: Any, model: Any, replacement: nn.Module) -> None:
    """A convolution comes first, another module can take its place, and no table of words comes last."""
    test.assertIsInstance(model.get_input_embeddings(), nn.Conv2d | nn.Conv3d)
    model.set_input_embeddings(replacement)
    test.assertIs(model.get_input_embeddings(), replacement)
    test.assertIsNone(model.get_output_embeddings())
