"""Ways to spread a model over processes that are refused, and what DeepSpeed is told."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from torch import nn

from hf_vq import VectorQuantizer
from hf_vq.training.arguments import TrainingArguments
from hf_vq.training.sharding import check_distribution


def check(kind, model=None, companion=False, **state):
    """Checks a model under an accelerator with this type and state."""
    accelerator = SimpleNamespace(distributed_type=kind, is_fsdp2=True, state=SimpleNamespace(**state))
    args = TrainingArguments(data="", output_dir="", train_batch_size=3, max_grad_norm=0.5)
    check_distribution(accelerator, model or nn.Linear(2, 2), companion, args)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_codebooks_and_second_networks_are_sent_to_data_parallelism(kind):
    quantizer = VectorQuantizer(codebook_size=4, codebook_dim=2)
    with pytest.raises(ValueError, match=r"VectorQuantizer is trained with codebooks, .*multi-gpu\.yaml"):
        check(kind, quantizer)
    with pytest.raises(ValueError, match=r"a second network with its own optimizer; .*multi-gpu\.yaml"):
        check(kind, companion=True)


def test_data_parallelism_takes_everything():
    check(DistributedType.MULTI_GPU, VectorQuantizer(codebook_size=4, codebook_dim=2), companion=True)


def test_deepspeed_gets_batch_size_and_clipping_and_no_third_stage():
    plugin = SimpleNamespace(zero_stage=2, deepspeed_config={})
    check(DistributedType.DEEPSPEED, deepspeed_plugin=plugin)
    assert plugin.deepspeed_config == {"train_micro_batch_size_per_gpu": 3, "gradient_clipping": 0.5}
    with pytest.raises(ValueError, match=r"zero_stage 3 .* set zero_stage: 2"):
        check(DistributedType.DEEPSPEED, deepspeed_plugin=SimpleNamespace(zero_stage=3))
