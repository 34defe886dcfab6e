"""`scripts/generate.py` with a small untrained pipeline: seeds, what a volume depends on, checks of the flags."""

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "generate.py"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_split(folder: Path, subjects: str) -> Path:
    """A paired folder whose test split has subjects of one letter each, with one random view."""
    split = folder / "test"
    split.mkdir(parents=True)
    lines = ["file_name,frontal,subject"]
    for number, name in enumerate(subjects):
        nibabel.Nifti1Image(np.zeros((4, 4, 4), dtype=np.int16), np.eye(4)).to_filename(split / f"{name}.nii.gz")
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(split / f"{name}.png")
        lines.append(f"{name}.nii.gz,{name}.png,{name}")
    (split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A saved pipeline of 2 x 2 x 2 codes for the view `frontal`."""
    torch.manual_seed(0)
    fields = {"base_channels": 8, "channel_multipliers": [1], "stem_stride": 4, "num_res_blocks": 1}
    quantizer = {"codebook_size": 11, "codebook_dim": 3}
    volume_tokenizer, view_tokenizer = (
        VQTokenizer(VQTokenizerConfig(spatial_dims=dims, quantizer=quantizer, num_norm_groups=4, **fields))
        for dims in (3, 2)
    )
    grids = {"code_grid": (2, 2, 2), "context_grid": (4, 4), "view_axes": {"frontal": ("inferior", "left")}}
    transformer = CodeTransformer(num_codes=11, context_dim=3, hidden_size=16, num_layers=1, num_heads=2, **grids)
    transformer.head.weight.data.normal_()
    whole = ViewsToVolumePipeline(
        volume_tokenizer=volume_tokenizer.eval(),
        view_tokenizer=view_tokenizer.eval(),
        transformer=transformer.eval(),
        scheduler=AbsorbingScheduler(11),
        volume_processor=CTVolumeProcessor(size=[8, 8, 8], spacing=[4.0, 4.0, 4.0]),
        view_processor=XrayImageProcessor(size={"height": 16, "width": 16}),
    )
    folder = tmp_path_factory.mktemp("generate") / "pipeline"
    whole.save_pretrained(folder)
    return folder


def generated(generate, pipeline: Path, data: Path, output_dir: Path, *flags: object) -> dict[str, np.ndarray]:
    """Voxels of each file that the script writes."""
    common = ["--pipeline", pipeline, "--data", data, "--output_dir", output_dir, "--num_inference_steps", 2]
    generate.main([str(flag) for flag in (*common, *flags)])
    names = [line.split(",")[0] for line in (output_dir / "metadata.csv").read_text().splitlines()[1:]]
    assert sorted(names) == sorted(path.name for path in output_dir.glob("*.nii.gz"))
    return {name: np.asarray(nibabel.load(output_dir / name).dataobj) for name in names}


def test_a_volume_depends_neither_on_the_batch_nor_on_the_number_of_samples(generate, pipeline, tmp_path):
    data = write_split(tmp_path / "data", "abc")
    flags = ["--num_volumes_per_prompt", 2, "--batch_size", 2]
    pairs = generated(generate, pipeline, data, tmp_path / "pairs", *flags)
    single = generated(generate, pipeline, data, tmp_path / "single", "--batch_size", 1)
    assert list(pairs) == [f"{name}_{sample}.nii.gz" for name in "abc" for sample in range(2)]
    assert list(single) == [f"{name}_0.nii.gz" for name in "abc"]
    for name, volume in single.items():
        np.testing.assert_allclose(pairs[name], volume, atol=1)
    assert len({volume.tobytes() for volume in pairs.values()}) == 6
    other = generated(generate, pipeline, data, tmp_path / "other", *flags, "--seed", 1)
    assert not {volume.tobytes() for volume in pairs.values()} & {volume.tobytes() for volume in other.values()}


def test_every_volume_of_every_seed_has_its_own_randomness(generate):
    draws = {
        tuple(torch.randint(2**31, (4,), generator=generate.generator_of(seed, subject, sample)).tolist())
        for seed in range(6)
        for subject in range(8)
        for sample in range(5)
    }
    assert len(draws) == 6 * 8 * 5


def test_the_same_volume_has_the_same_randomness(generate):
    draws = [torch.rand(3, generator=generate.generator_of(7, 2, 1)) for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("flag", "value"), [("num_inference_steps", 0), ("batch_size", 0), ("num_volumes_per_prompt", -1), ("seed", -1)]
)
def test_a_number_that_is_too_small_is_named_before_anything_is_loaded(generate, tmp_path, flag, value):
    with pytest.raises(ValueError, match=f"--{flag}: found {value}, expected at least"):
        generate.main(
            ["--pipeline", "none", "--data", "none", "--output_dir", str(tmp_path / "out"), f"--{flag}", str(value)]
        )
    assert not list(tmp_path.iterdir())


def test_views_of_one_subject_cannot_be_shuffled(generate, tmp_path):
    one_subject = write_split(tmp_path / "data", "a")
    flags = ["--pipeline", "none", "--data", str(one_subject), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"--shuffle_views: found 1 subject in .*, expected at least 2; choose"):
        generate.main([*flags, "--shuffle_views"])
    assert not (tmp_path / "out").exists()


def test_the_command_line_in_the_help_is_whole(generate):
    command = generate.__doc__.split("\n\n")[1]
    assert [line.strip()[:2] for line in command.replace("\\\n", "").splitlines()] == ["py"]
