"""What somebody gets who has only the name of a repository: in a new process with an empty cache, then offline."""

import hashlib

import numpy as np
import pytest
import torch
from tiny_models import KINDS, SIZE, make_tokenizer, make_views_to_volume

from hf_vq import AbsorbingScheduler
from hf_vq.hub.publishing import publish

SEED, STEPS = 3, 4
# Loads everything by name, and tells in `result` what it is and what it makes of two views.
PROGRAM = f"""
import hashlib
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from hf_vq import AbsorbingScheduler, CodeTransformer, CTVolumeProcessor, ViewsToVolumePipeline, VQTokenizer
from hf_vq.models import load_tokenizer
from hf_vq.pipelines import open_pipeline

def ct_of(pipe):
    rng = np.random.default_rng(0)
    views = {{name: rng.integers(0, 255, (16, 16), dtype=np.uint8) for name in ("frontal", "lateral")}}
    generator = torch.Generator().manual_seed({SEED})
    volume = pipe(views, num_inference_steps={STEPS}, generator=generator, output_type="hu").volumes[0]
    return {{"shape": volume.shape, "hash": hashlib.sha256(volume.tobytes()).hexdigest()}}

whole, alone, result = "me/views-to-volume", "me/volume-tokenizer", {{}}

result["by class"] = ct_of(ViewsToVolumePipeline.from_pretrained(whole))
pipe = DiffusionPipeline.from_pretrained(whole)
result["generic"] = {{"class": type(pipe).__name__, **ct_of(pipe)}}
pipe = DiffusionPipeline.from_pretrained(whole, revision="v2", torch_dtype=torch.bfloat16)
facts = [str(pipe.transformer.dtype), str(pipe.view_tokenizer.dtype), pipe.scheduler.config.sampling]
result["revision and dtype"] = {{"facts": facts, **ct_of(pipe)}}
asked = {{"revision": "v2", "variant": "bf16", "torch_dtype": torch.bfloat16, "device_map": "cpu"}}
pipe = DiffusionPipeline.from_pretrained(whole, **asked)
facts = [str(pipe.volume_tokenizer.dtype), str(pipe.transformer.device)]
result["variant and device_map"] = {{"facts": facts, **ct_of(pipe)}}
result["by our own function"] = ct_of(open_pipeline(whole, ViewsToVolumePipeline))
result["its revision"] = open_pipeline(whole, ViewsToVolumePipeline, revision="v2").scheduler.config.sampling
pipe = DiffusionPipeline.from_pretrained("me/code-generation")
result["image"] = pipe("bag", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0].size

parts = ViewsToVolumePipeline(
    volume_tokenizer=AutoModel.from_pretrained(whole, subfolder="volume_tokenizer"),
    view_tokenizer=VQTokenizer.from_pretrained(whole, subfolder="view_tokenizer"),
    transformer=CodeTransformer.from_pretrained(whole, subfolder="transformer"),
    scheduler=AbsorbingScheduler.from_pretrained(whole, subfolder="scheduler"),
    volume_processor=CTVolumeProcessor.from_pretrained(whole, subfolder="volume_processor"),
    view_processor=AutoImageProcessor.from_pretrained(whole, subfolder="view_processor"),
)
result["parts"] = ct_of(parts)

half = AutoModel.from_pretrained(alone, dtype=torch.bfloat16, device_map="cpu")
result["tokenizer"] = [type(half).__name__, str(half.dtype), str(half.device)]
result["processor"] = type(AutoImageProcessor.from_pretrained(alone)).__name__
names = {{"main": None, "branch": "wider", "commit": COMMIT}}
configs = {{key: AutoConfig.from_pretrained(alone, revision=name) for key, name in names.items()}}
result["codebooks"] = {{key: config.quantizer["codebook_size"] for key, config in configs.items()}}
ours = load_tokenizer(alone, 3, revision="wider")
result["codebooks"]["by our own function"] = ours.config.quantizer["codebook_size"]

classifier = AutoModelForImageClassification.from_pretrained("me/classifier")
scores = transformers.pipeline("image-classification", "me/classifier")(Image.new("L", (24, 24)))
result["classifier"] = [type(classifier).__name__, *sorted(score["label"] for score in scores)]
"""
# For a cache of its own, which only the process with a network fills.
ELSEWHERE = """
VQTokenizer.from_pretrained(alone, cache_dir=FOLDER)
local = VQTokenizer.from_pretrained(alone, cache_dir=FOLDER, local_files_only=True)
result["elsewhere"] = [path.name for path in Path(FOLDER).glob("models--*")]
"""


def ct_here(pipe):
    """What the program above says of a pipeline, of one in this process."""
    rng = np.random.default_rng(0)
    views = {name: rng.integers(0, 255, (16, 16), dtype=np.uint8) for name in ("frontal", "lateral")}
    generator = torch.Generator().manual_seed(SEED)
    volume = pipe(views, num_inference_steps=STEPS, generator=generator, output_type="hu").volumes[0]
    return {"shape": list(volume.shape), "hash": hashlib.sha256(volume.tobytes()).hexdigest()}


def make_branch():
    """What the branch `v2` holds: another order of the codes."""
    pipe = make_views_to_volume()
    pipe.scheduler = AbsorbingScheduler.from_config(pipe.scheduler.config, sampling="confidence")
    return pipe


@pytest.fixture(scope="module")
def published(hub, connect, saved, tmp_path_factory):
    """Every kind; also a branch `v2` of the pipeline, with a variant of the weights, and `wider` of the tokenizer."""
    folder = tmp_path_factory.mktemp("branch")
    make_branch().save_pretrained(folder)
    make_branch().to(torch.bfloat16).save_pretrained(folder, variant="bf16")
    with connect() as api:
        for kind in KINDS:
            publish(saved[kind], f"me/{kind}", private=True, api=api)
        publish(folder, "me/views-to-volume", revision="v2", api=api)
        publish(make_tokenizer(3, codebook_size=23), "me/volume-tokenizer", revision="wider", api=api)
    return hub


@pytest.fixture(scope="module")
def program(published):
    return f"COMMIT = {published.repository('me/volume-tokenizer').branches['wider']!r}\n{PROGRAM}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The cache of somebody who has loaded nothing yet."""
    return tmp_path_factory.mktemp("somebody") / "home"


@pytest.fixture(scope="module")
def online(program, fresh_python, home):
    folder = home.with_name("elsewhere")
    return fresh_python(f"from pathlib import Path\nFOLDER = {str(folder)!r}\n{program}{ELSEWHERE}", home)


@pytest.fixture(scope="module")
def offline(online, program, published, fresh_python, home):
    """The same program in another process without a network."""
    requests = len(published.requests)
    result = fresh_python(program, home, offline=True)
    assert len(published.requests) == requests
    return result


def test_two_views_become_a_ct_by_the_name_alone(online):
    here = ct_here(make_views_to_volume())
    assert here["shape"] == SIZE
    assert online["by class"] == online["by our own function"] == here
    assert online["generic"] == {"class": "ViewsToVolumePipeline", **here}
    assert online["image"] == [12, 8]


def test_parts_by_their_folders_make_the_same_ct(online):
    assert online["parts"] == ct_here(make_views_to_volume())


def test_revision_dtype_variant_and_device(online):
    half, bfloat16 = make_branch().to(torch.bfloat16), "torch.bfloat16"
    assert online["revision and dtype"] == {"facts": [bfloat16, bfloat16, "confidence"], **ct_here(half)}
    assert online["variant and device_map"] == {"facts": [bfloat16, "cpu"], **ct_here(half)}
    assert online["its revision"] == "confidence"


def test_auto_classes_find_tokenizer_processor_and_classifier(online):
    assert online["tokenizer"] == ["VQTokenizer", "torch.bfloat16", "cpu"]
    assert online["processor"] == "CTVolumeProcessor"
    assert online["codebooks"] == {"main": 11, "branch": 23, "commit": 23, "by our own function": 23}
    assert online["classifier"] == ["VQForImageClassification", "LABEL_0", "LABEL_1"]


def test_another_cache_is_filled_and_used_without_asking(online):
    assert online["elsewhere"] == ["models--me--volume-tokenizer"]


def test_offline_everything_is_as_it_was(online, offline):
    assert offline == {name: facts for name, facts in online.items() if name != "elsewhere"}


def test_only_the_weights_asked_for_were_loaded(published, home, online):
    branches = published.repository("me/views-to-volume").branches
    snapshots = home / "hub" / "models--me--views-to-volume" / "snapshots"
    assert list((snapshots / branches["v2"]).rglob("*.bf16.safetensors"))
    assert not list((snapshots / branches["main"]).rglob("*.bf16.*"))
    assert published.unknown == []
