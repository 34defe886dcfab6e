"""The host waits for the device only when codes are to be placed: known flags are not asked for again."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vq import VectorQuantizer
from hf_vq.quantizers.host_flags import ForetoldFlag, RememberedFlag

# Operators by which the host learns something of the numbers in a tensor.
READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")


class Readings(TorchDispatchMode):
    """Notes every operator that brings numbers, or shapes that depend on them, to the host."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name.startswith(READING) or by_mask:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


VARIANTS = [
    {"parameterization": "affine"},
    {"parameterization": "affine_running"},
    {"parameterization": "plain", "update": "ema", "sync_weight": 0.0},
    {"parameterization": "plain", "structure": "residual", "num_codebooks": 2},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_training_reads_one_flag_of_a_codebook_in_steady_state(fields, generator):
    """The one is that of the replacement, sent on its way by the batch before. Backward reads nothing."""
    quantizer = VectorQuantizer(codebook_size=8, codebook_dim=4, replace_after=50, **fields)
    batches = [torch.randn(2, 4, 9, generator=generator) for _ in range(4)]
    for batch in batches[:3]:  # initialisation, and flags are learned
        quantizer(batch)
    features = batches[3].requires_grad_()
    with Readings() as readings:
        output = quantizer(features)
        (output.quantized.sum() + output.loss).backward()
    assert readings.names == ["_local_scalar_dense"] * len(quantizer.all_codebooks)


def test_code_that_falls_out_of_use_is_replaced_at_the_same_batch_as_ever(generator):
    quantizer = VectorQuantizer(codebook_size=4, codebook_dim=2, init="random", replace_after=3)
    with torch.no_grad():
        quantizer.codebook.weight[3] = 100.0
    codes_used = []
    for _ in range(5):
        quantizer(torch.randn(1, 2, 400, generator=generator))
        codes_used.append(int(quantizer.codebook.unused_batches[3]))
    assert codes_used == [1, 2, 3, 0, 0]


def test_counters_that_are_loaded_are_looked_at_anew(generator):
    quantizer = VectorQuantizer(codebook_size=4, codebook_dim=2, init="random", replace_after=3)
    quantizer(torch.randn(1, 2, 50, generator=generator))
    state = copy.deepcopy(quantizer.state_dict())
    state["codebook.unused_batches"] = torch.tensor([0, 0, 0, 3])
    state["codebook.weight"][3] = 100.0
    quantizer.load_state_dict(state)
    quantizer(torch.randn(1, 2, 50, generator=generator))
    assert float(quantizer.codebook.weight.detach()[3].abs().max()) < 10


def test_flag_that_was_written_to_is_read_again():
    known, flag = RememberedFlag(), torch.tensor(False)
    assert not known.read(flag)
    flag.fill_(True)
    assert known.read(flag)
    assert not known.read(torch.tensor(False))


def test_flag_is_read_once():
    known, flag = RememberedFlag(), torch.tensor(True)
    known.read(flag)
    with Readings() as readings:
        assert known.read(flag)
    assert readings.names == []


def test_flag_of_a_state_that_has_changed_is_worth_nothing():
    foretold, state = ForetoldFlag(), torch.zeros(3)
    assert foretold.read(state) is None
    foretold.send((state > 0).any(), state)
    assert foretold.read(state) is False
    state[0] = 1
    assert foretold.read(state) is None
    foretold.send((state > 0).any(), state)
    assert foretold.read(state) is True
    assert copy.deepcopy(foretold).read(state) is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_flag_written_to_since_it_was_read_is_read_again_in_a_copy(copied, generator):
    """A copy's tensors count their writes from the start, and so may arrive at the number that was remembered."""
    quantizer = VectorQuantizer(codebook_size=4, codebook_dim=2)
    quantizer(torch.randn(1, 2, 50, generator=generator))
    twin = copied(quantizer)
    assert twin.codebook.is_initialized
    assert not twin.codebook.is_frozen
    quantizer.freeze_codebook()
    assert copied(quantizer).codebook.is_frozen


def test_flags_are_read_anew_where_writes_are_not_counted():
    with torch.inference_mode():
        known, flag = RememberedFlag(), torch.tensor(False)
        assert not known.read(flag)
        flag.fill_(True)
        assert known.read(flag)
        foretold = ForetoldFlag()
        foretold.send(flag, flag)
        assert foretold.read(flag) is None
