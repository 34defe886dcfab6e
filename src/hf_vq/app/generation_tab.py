"""The tab that generates: X-rays and settings at the left, a viewer at the right."""

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from ..data.paired import PairedDataset
from ..evaluation.sheets import PLANES
from ..pipelines.pipeline_views_to_volume import ViewsToVolumePipeline
from ..processors.dicom_radiographs import is_real_radiograph
from ..processors.image_processing_xray import RENDERED_VIEWS_ONLY
from .generation import (
    MAX_GUIDANCE,
    MAX_STEPS,
    MAX_VOLUMES,
    Abilities,
    Generated,
    Settings,
    generate,
    save_images,
    summary,
)
from .parts import KEPT_SECONDS, MODEL_EVENT, QUICK_EVENT, UPLOAD_EVENT, as_message, message, picture, refuse
from .uploads import read_view, read_views
from .viewer import WINDOWS, Picture, save_turntable, slice_counts, slice_direction, slice_picture, view_picture
from .workspace import Workspace

TURNTABLES = {"lungs": "lung", "bone": "bone", "soft tissue": "soft", "maximum": "mip"}


class GenerationTab:
    """Builds the components of the tab and connects them.

    Args:
        pipeline: draws the volumes.
        workspace: where downloads and turntables lie.
        examples: subjects to choose from; None for none.
    """

    def __init__(
        self, pipeline: ViewsToVolumePipeline, workspace: Workspace, examples: PairedDataset | None = None
    ) -> None:
        self.pipeline = pipeline
        self.workspace = workspace
        self.examples = examples
        self.abilities = Abilities.of(pipeline)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                self._build_inputs()
            with gr.Column(scale=9, min_width=480):
                self._build_viewer()
        results = [self.generated, self.status, self.files, self.shown, self.overlay, self.turntable]
        self.results = [*results, *self.sliders.values()]
        self._connect()

    def _build_inputs(self) -> None:
        axes = self.abilities.view_axes
        self.example = gr.Dropdown(
            self.examples.subjects if self.examples else [],
            value=None,
            label="Example patient",
            visible=self.examples is not None,
            elem_id="example",
        )
        self.views = gr.State({}, time_to_live=KEPT_SECONDS)
        self.previews: dict[str, Any] = {}
        self.uploads: dict[str, Any] = {}
        with gr.Row():
            for name in axes:
                with gr.Column(min_width=140):
                    self.previews[name] = picture(name, elem_id=f"view-{name}", show_label=False)
                    self.uploads[name] = gr.UploadButton(f"Upload {name}", size="sm", elem_id=f"upload-{name}")
        self.upload_message = message("upload-message")
        self.clear = gr.Button("Remove the X-rays", size="sm", visible=self.abilities.some_views)
        self._build_settings()
        self.button = gr.Button("Generate", variant="primary", elem_id="generate")
        self.status = gr.Markdown(elem_id="status")

    def _build_settings(self) -> None:
        with gr.Group():
            self.steps = gr.Slider(1, MAX_STEPS, value=32, step=1, label="Steps", elem_id="steps")
            self.samples = gr.Slider(
                1,
                MAX_VOLUMES,
                value=4,
                step=1,
                label="Samples",
                info="several show what is uncertain",
                elem_id="samples",
            )
            self.seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            self.guidance = gr.Slider(
                0, MAX_GUIDANCE, value=1, step=0.1, label="Guidance", visible=self.abilities.guidance
            )
            self.class_name = gr.Dropdown(
                list(self.abilities.classes), value=None, label="Class", visible=bool(self.abilities.classes)
            )

    def _build_viewer(self) -> None:
        self.generated = gr.State(None, time_to_live=KEPT_SECONDS)
        with gr.Row():
            self.shown = gr.Dropdown([], label="Volume", elem_id="shown", min_width=160)
            self.window = gr.Radio(list(WINDOWS), value="full", label="HU window", elem_id="window", scale=2)
            self.overlay = gr.Checkbox(
                False,
                label="Uncertainty",
                info="standard deviation over the samples",
                interactive=False,
                elem_id="overlay",
            )
        self.slices: dict[str, Any] = {}
        self.sliders: dict[str, Any] = {}
        with gr.Row():
            for plane in PLANES:
                with gr.Column(min_width=150):
                    self.slices[plane] = picture(plane, elem_id=f"slice-{plane}")
                    self.sliders[plane] = gr.Slider(
                        1, 2, value=1, step=1, label=slice_direction(plane), elem_id=f"slider-{plane}"
                    )
        with gr.Row():
            with gr.Column(min_width=220):
                self.mode = gr.Radio(list(TURNTABLES), value="lungs", label="Turntable")
                self.turn = gr.Button("Turn the volume", size="sm", elem_id="turn")
                self.files = gr.File(
                    label="Download (NIfTI, HU)",
                    file_count="multiple",
                    interactive=False,
                    height=260,
                    elem_id="files",
                )
            self.turntable = picture("turntable", elem_id="turntable")

    def _connect(self) -> None:
        every_view = [self.views, *self.previews.values(), self.upload_message]
        for name, upload in self.uploads.items():
            outputs = [self.views, self.previews[name], self.upload_message]
            upload.upload(self._uploader(name), [upload, self.views], outputs, **UPLOAD_EVENT)
        self.example.input(self._choose_example, self.example, every_view, **UPLOAD_EVENT)
        self.clear.click(self._clear, None, [*every_view, self.example], **UPLOAD_EVENT)
        settings = [self.steps, self.samples, self.seed, self.guidance, self.class_name]
        viewer = [self.generated, self.shown, self.window, self.overlay]
        draw_all = {
            "fn": self._draw_all,
            "inputs": [*viewer, *self.sliders.values()],
            "outputs": list(self.slices.values()),
            **QUICK_EVENT,
        }
        self.button.click(
            self._generate,
            [self.views, *settings],
            self.results,
            show_progress_on=list(self.slices.values()),
            **MODEL_EVENT,
        ).success(**draw_all)
        for control in (self.shown, self.window, self.overlay):
            control.input(**draw_all)
        for plane, slider in self.sliders.items():
            slider.input(self._drawer(plane), [*viewer, slider], self.slices[plane], **QUICK_EVENT)
        turn_inputs = [self.generated, self.shown, self.mode]
        self.turn.click(self._turn, turn_inputs, self.turntable, concurrency_limit=1, api_visibility="private")

    def _uploader(self, name: str) -> Callable[[str, dict[str, Any]], tuple[dict[str, Any], Any, Any]]:
        """What happens with an uploaded file of one view: it is checked and shown, or refused in words."""

        def upload(path: str, views: dict[str, Any]) -> tuple[dict[str, Any], Any, Any]:
            others = {other: image for other, image in views.items() if other != name}
            try:
                image = read_view(path)
            except ValueError as error:
                return others, None, as_message(error)
            rendered_only = self.abilities.views_rendered and is_real_radiograph(image)
            note = RENDERED_VIEWS_ONLY if rendered_only else ""
            shown = view_picture(image, self.abilities.view_axes[name], name)
            # The path, not the image: what sessions hold stays small, however large their X-rays are.
            return {**others, name: path}, shown, as_message(note)

        return upload

    def _clear(self) -> list[Any]:
        return [{}, *[None] * len(self.previews), as_message(""), None]

    def _choose_example(self, subject: str) -> list[Any]:
        assert self.examples is not None  # the control is hidden without any
        index = self.examples.subjects.index(subject)
        axes = self.abilities.view_axes
        try:
            images = {name: self.examples.view_image(index, name) for name in axes}
            pictures = [view_picture(images[name], axes[name], name) for name in axes]
        except ValueError as error:
            return [{}, *[None] * len(axes), as_message(error)]
        return [images, *pictures, as_message("")]

    def _generate(
        self,
        views: dict[str, Any],
        steps: int,
        samples: int,
        seed: int,
        guidance: float,
        class_name: str | None,
        progress: Any = gr.Progress(),  # noqa: B008  (gradio looks for this default)
    ) -> list[Any]:
        start = time.perf_counter()
        try:
            number = None if class_name is None else self.abilities.classes.get(class_name)
            settings = Settings(steps, samples, seed, float(guidance), number)
            generated = generate(
                self.pipeline, read_views(views), settings, lambda done, total: progress((done, total), unit="steps")
            )
        except ValueError as error:
            refuse(error)
            return [gr.skip()] * len(self.results)
        files = [str(path) for path in save_images(generated, self.workspace.new_folder())]
        names, counts = list(generated.volumes), slice_counts(generated.samples[0])
        return [
            generated,
            summary(generated, settings, time.perf_counter() - start),
            files,
            gr.Dropdown(names, value=names[0]),
            gr.Checkbox(value=False, interactive=generated.std is not None),
            None,
            *(gr.Slider(maximum=counts[plane], value=(counts[plane] + 1) // 2) for plane in self.sliders),
        ]

    def _drawer(self, plane: str) -> Callable[..., Picture | None]:
        """What draws the slice of one plane."""

        def draw(generated: Generated | None, shown: str, window: str, overlay: bool, number: int) -> Picture | None:
            if generated is None:
                return None
            deviation = generated.std.hu if overlay and generated.std is not None else None
            return slice_picture(generated.volume(shown), plane, number, WINDOWS[window], deviation)

        return draw

    def _draw_all(
        self, generated: Generated | None, shown: str, window: str, overlay: bool, *numbers: int
    ) -> list[Picture | None]:
        return [
            self._drawer(plane)(generated, shown, window, overlay, number)
            for plane, number in zip(self.slices, numbers, strict=True)
        ]

    def _turn(
        self,
        generated: Generated | None,
        shown: str,
        mode: str,
        progress: Any = gr.Progress(),  # noqa: B008  (gradio looks for this default)
    ) -> Any:
        try:
            if generated is None:
                raise ValueError("There is no volume yet. Generate one first.")
            path = self.workspace.new_folder() / f"turntable_{TURNTABLES[mode]}.gif"
            volume = generated.volume(shown)
            save_turntable(path, volume, TURNTABLES[mode], lambda done, total: progress((done, total), unit="frames"))
        except ValueError as error:
            refuse(error)
            return gr.skip()
        return str(path)
