"""The tab that shows a scan before and after the volume tokenizer, with its codes."""

from typing import Any

import gradio as gr

from ..data.paired import PairedDataset
from ..evaluation.sheets import PLANES
from ..evaluation.volumes import GridVolume, read_volume
from ..pipelines.pipeline_views_to_volume import ViewsToVolumePipeline
from .parts import KEPT_SECONDS, MODEL_EVENT, QUICK_EVENT, as_message, message, picture
from .reconstruction import Reconstruction, reconstruct
from .uploads import read_scan
from .viewer import WINDOWS, Picture, code_picture, error_picture, slice_counts, slice_direction, slice_picture

PICTURES = {"scan": "Scan", "reconstruction": "Reconstruction", "error": "Error", "codes": "Codes"}
FIRST_PLANE = "axial"


class ReconstructionTab:
    """Builds the components of the tab and connects them.

    Args:
        pipeline: holds the volume tokenizer.
        examples: subjects whose scans there are to choose from; None for none.
    """

    def __init__(self, pipeline: ViewsToVolumePipeline, examples: PairedDataset | None = None) -> None:
        self.pipeline = pipeline
        self.examples = examples
        self.result = gr.State(None, time_to_live=KEPT_SECONDS)
        self._build()
        self._connect()

    def _build(self) -> None:
        with gr.Row():
            self.example = gr.Dropdown(
                self.examples.subjects if self.examples else [],
                value=None,
                label="Example scan",
                visible=self.examples is not None,
                elem_id="example-scan",
            )
            self.upload = gr.UploadButton("Upload a CT scan (.nii, .nii.gz)", elem_id="upload-scan")
        self.message = message("scan-message")
        self.status = gr.Markdown(elem_id="reconstruction-status")
        with gr.Row():
            self.plane = gr.Radio(list(PLANES), value=FIRST_PLANE, label="Plane")
            self.slider = gr.Slider(1, 2, value=1, step=1, label=slice_direction(FIRST_PLANE), elem_id="scan-slider")
            self.window = gr.Radio(list(WINDOWS), value="full", label="HU window")
        with gr.Row():
            self.pictures = [picture(label, elem_id=f"picture-{name}") for name, label in PICTURES.items()]

    def _connect(self) -> None:
        controls = [self.result, self.plane, self.slider, self.window]
        outputs = [self.result, self.message, self.status, self.slider]
        draw = {"fn": self._draw, "inputs": controls, "outputs": self.pictures, **QUICK_EVENT}
        self.upload.upload(self._upload, [self.upload, self.plane], outputs, **MODEL_EVENT).success(**draw)
        self.example.input(self._choose, [self.example, self.plane], outputs, **MODEL_EVENT).success(**draw)
        self.plane.input(self._turn_to, [self.result, self.plane], self.slider, **QUICK_EVENT).success(**draw)
        self.slider.input(**draw)
        self.window.input(**draw)

    def _upload(self, path: str, plane: str) -> list[Any]:
        try:
            return self._reconstruct(read_scan(path), plane)
        except ValueError as error:
            return [None, as_message(error), "", gr.Slider()]

    def _choose(self, subject: str, plane: str) -> list[Any]:
        assert self.examples is not None  # the control is hidden without any
        try:
            return self._reconstruct(read_volume(self.examples.volume(self.examples.subjects.index(subject))), plane)
        except ValueError as error:
            return [None, as_message(error), "", gr.Slider()]

    def _reconstruct(self, scan: GridVolume, plane: str) -> list[Any]:
        result = reconstruct(self.pipeline, scan)
        return [result, as_message(""), result.summary(), self._turn_to(result, plane)]

    def _turn_to(self, result: Reconstruction | None, plane: str) -> Any:
        """The slider for the slices of a plane, in the middle."""
        if result is None:
            return gr.Slider(label=slice_direction(plane))
        count = slice_counts(result.scan)[plane]
        return gr.Slider(maximum=count, value=(count + 1) // 2, label=slice_direction(plane))

    def _draw(self, result: Reconstruction | None, plane: str, number: int, window: str) -> list[Picture | None]:
        if result is None:
            return [None] * len(PICTURES)
        return [
            slice_picture(result.scan, plane, number, WINDOWS[window]),
            slice_picture(result.reconstructed, plane, number, WINDOWS[window]),
            error_picture(result.scan, result.reconstructed.hu, plane, number),
            code_picture(result.codes, result.scan, plane, number),
        ]
