"""transformers' common tests of image processors, run against the processors of X-ray images and of CT volumes."""

import pickle
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from adaptation import adapted
from PIL import Image
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin, prepare_image_inputs

from hf_vq import CTVolumeProcessor, XrayImageProcessor

ONE_IMPLEMENTATION = (
    "one implementation on NumPy and PyTorch: torchvision's backend takes neither 16-bit images nor Hounsfield units"
)
SCRIPT = """
import pickle, sys
sys.modules["torchvision"] = None
from transformers import AutoImageProcessor
import hf_vq
processor = AutoImageProcessor.from_pretrained(sys.argv[1], backend="pil")
with open(sys.argv[2], "rb") as file:
    outputs = processor(**pickle.load(file), return_tensors="np")
with open(sys.argv[3], "wb") as file:
    pickle.dump((type(processor).__name__, outputs["pixel_values"]), file)
"""


class ProcessorTests(ImageProcessingTestMixin):
    """The common tests; those that are adapted ask for fields or inputs that grey images and volumes do not have."""

    test_cast_dtype = True

    @adapted("overrides output_range, since there is no do_convert_rgb: X-rays and volumes have one channel")
    def test_image_processor_from_dict_with_kwargs_has_attributes(self) -> None:
        for processor_class in self.image_processing_classes.values():
            for output_range in ([-2.0, 2.0], [0.0, 255.0]):
                processor = processor_class.from_dict(self.image_processor_dict, output_range=output_range)
                self._assert_has_attributes(processor, {**self.image_processor_dict, "output_range": output_range})

    @adapted("an unknown argument is an error that names it, and not a warning")
    def test_image_processor_preprocess_arguments(self) -> None:
        for processor_class in self.image_processing_classes.values():
            processor = processor_class(**self.image_processor_dict)
            inputs = self.image_processor_tester.prepare_processor_inputs()
            with self.assertRaisesRegex(ValueError, "extra_argument"):
                processor(**inputs, extra_argument=True)

    @adapted("changes output_range, since there is no image_mean, and no size by default")
    def test_override_instance_attributes_does_not_affect_other_instances(self) -> None:
        for processor_class in self.image_processing_classes.values():
            first, second = processor_class(), processor_class()
            default = list(second.output_range)
            first.output_range[0] = -7.0
            self.assertEqual(second.output_range, default)
            self.assertEqual(processor_class().output_range, default)

    @adapted("the other process imports hf_vq, which registers the processors")
    def test_pil_can_run_without_torchvision(self) -> None:
        (processor_class,) = self.image_processing_classes.values()
        processor = processor_class(**self.image_processor_dict)
        inputs = self.image_processor_tester.prepare_processor_inputs()
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            inputs_path, outputs_path = Path(folder) / "inputs.pkl", Path(folder) / "outputs.pkl"
            inputs_path.write_bytes(pickle.dumps(inputs))
            command = [sys.executable, "-c", SCRIPT, folder, str(inputs_path), str(outputs_path)]
            result = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(result.returncode, 0, result.stderr)
            name, pixel_values = pickle.loads(outputs_path.read_bytes())
        self.assertEqual(name, processor_class.__name__)
        np.testing.assert_array_equal(pixel_values, processor(**inputs, return_tensors="np")["pixel_values"])

    @unittest.skip("X-rays and volumes have one channel; four are refused by name")
    def test_call_numpy_4_channels(self) -> None: ...

    @unittest.skip(ONE_IMPLEMENTATION)
    def test_new_models_require_torchvision_backend(self) -> None: ...

    def check_shapes(self, inputs: list[Any], **each: Any) -> None:
        """One input and a batch of them come out in the size that the processor has."""
        expected = self.image_processor_tester.expected_output_image_shape(inputs)
        for processor_class in self.image_processing_classes.values():
            processor = processor_class(**self.image_processor_dict)
            one = processor(inputs[0], return_tensors="pt", **{name: value[0] for name, value in each.items()})
            self.assertEqual(tuple(one.pixel_values.shape), (1, *expected))
            batch = processor(inputs, return_tensors="pt", **each)
            self.assertEqual(tuple(batch.pixel_values.shape), (len(inputs), *expected))


class XrayImageProcessingTester(ImageProcessingTester):
    """Grey images of different sizes."""

    def __init__(self, parent: Any) -> None:
        fields = {"size": {"height": 18, "width": 20}, "output_range": [0.0, 1.0], "views_rendered": True}
        super().__init__(parent, num_channels=1, max_resolution=60, **fields)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": XrayImageProcessor}

    def prepare_image_inputs(self, numpify: bool = False, torchify: bool = False, **options: Any) -> list[Any]:
        options = {
            "batch_size": self.batch_size,
            "num_channels": self.num_channels,
            "min_resolution": self.min_resolution,
            "max_resolution": self.max_resolution,
            **options,
        }
        if torchify:
            return prepare_image_inputs(torchify=True, **options)
        arrays = prepare_image_inputs(numpify=True, **options)
        return arrays if numpify else [Image.fromarray(array[..., 0]) for array in arrays]


class XrayImageProcessorTest(ProcessorTests, unittest.TestCase):
    under_test = "XrayImageProcessor"
    image_processor_tester_class = XrayImageProcessingTester


class CTVolumeProcessingTester(ImageProcessingTester):
    """NIfTI images of different sizes; an array or a tensor would need its affine beside it."""

    def __init__(self, parent: Any) -> None:
        fields = {
            "size": [4, 5, 6],
            "spacing": [3.0, 2.0, 1.0],
            "hu_window": [-1000.0, 500.0],
            "output_range": [0.0, 1.0],
        }
        super().__init__(parent, num_channels=1, min_resolution=6, max_resolution=12, **fields)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": CTVolumeProcessor}

    def prepare_image_inputs(self, **options: Any) -> list[Any]:
        draws = np.random.default_rng(0)
        sides = draws.integers(self.min_resolution, self.max_resolution, (self.batch_size, 3))
        voxels = [draws.integers(-1024, 1500, side, dtype=np.int16) for side in sides]
        return [nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])) for array in voxels]

    def expected_output_image_shape(self, images: list[Any]) -> tuple[int, ...]:
        return (1, *self.size)


class CTVolumeProcessorTest(ProcessorTests, unittest.TestCase):
    under_test = "CTVolumeProcessor"
    image_processor_tester_class = CTVolumeProcessingTester

    @adapted("NIfTI images are for volumes what PIL's are for pictures")
    def test_call_pil(self) -> None:
        self.check_shapes(self.image_processor_tester.prepare_image_inputs())

    @adapted("a volume without its affine is refused, so the affines come along")
    def test_call_numpy(self) -> None:
        images = self.image_processor_tester.prepare_image_inputs()
        self.check_shapes([np.asarray(image.dataobj) for image in images], affines=[image.affine for image in images])

    @adapted("a volume without its affine is refused, so the affines come along")
    def test_call_pytorch(self) -> None:
        images = self.image_processor_tester.prepare_image_inputs()
        tensors = [torch.from_numpy(np.array(image.dataobj)) for image in images]
        self.check_shapes(tensors, affines=[image.affine for image in images])
