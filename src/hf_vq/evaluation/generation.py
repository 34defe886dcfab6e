"""How well sets of generated images agree with real ones, in the features of a named image classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..processors.image_files import open_image
from ..tables import listed_file, read_table
from .metrics import DEFAULT_NEAREST_K, prdc
from .report_text import markdown_table

METADATA_COLUMNS = ("file_name", "label")
NO_LABEL = -1
SCORES = {
    "frechet": ("Fréchet ↓", 2),
    "density": ("density ↑", 3),
    "coverage": ("coverage ↑", 3),
    "precision": ("precision ↑", 3),
    "recall": ("recall ↑", 3),
    "label_agreement": ("label agreement ↑", 3),
}
"""Column title and decimals of each score, in the order of the table."""


def frechet_distance(real_features: npt.ArrayLike, generated_features: npt.ArrayLike) -> float:
    r"""Fréchet distance of two sets, each taken as a normal distribution (Heusel et al., 2017, eq. 6).

    \(|\mu_r - \mu_g|^2 + \mathrm{tr}(C_r + C_g - 2 (C_r C_g)^{1/2})\) in float64, with unbiased covariances. The trace
    of the root is the sum of the singular values of \(C_r^{1/2} C_g^{1/2}\). The distance of small sets is biased
    upwards: compare sets of one size only.

    Args:
        real_features: shape (N, F), N at least 2.
        generated_features: shape (M, F), M at least 2.

    Returns:
        The distance, in squared units of the features.

    Raises:
        ValueError: other shapes or features that are not finite.
    """
    sets = [np.asarray(features, dtype=np.float64) for features in (real_features, generated_features)]
    shapes = [features.shape for features in sets]
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"features have shapes {shapes[0]} and {shapes[1]}; expected (N, F) and (M, F), N and M above 1"
        )
    if not all(np.isfinite(features).all() for features in sets):
        raise ValueError("features contain NaN or infinite values; expected finite numbers")
    real, generated = (np.atleast_2d(np.cov(features, rowvar=False)) for features in sets)
    root = np.linalg.svd(_symmetric_root(real) @ _symmetric_root(generated), compute_uv=False).sum()
    means = sets[0].mean(axis=0) - sets[1].mean(axis=0)
    return max(0.0, float(means @ means + np.trace(real) + np.trace(generated) - 2 * root))


def independent_codes(codes: torch.Tensor, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Codes drawn at every position on their own, from what stands there in real images: all that a model of codes adds
    is missing.

    Args:
        codes: `(N, *grid)` int64 codes of real images.
        count: how many to draw.
        generator: source of randomness.

    Returns:
        `(count, *grid)` int64.
    """
    flat = codes.flatten(1)
    rows = torch.randint(len(flat), (count, flat.shape[1]), generator=generator)
    return flat.cpu().gather(0, rows).view(count, *codes.shape[1:])


@dataclass(frozen=True)
class ImageSet:
    """Images to be judged, with the label of each.

    Attributes:
        images: PIL images.
        labels: shape (N,), int64; -1 where there is none.
        label_names: names of labels, as far as they are known.
    """

    images: Sequence[Image.Image]
    labels: npt.NDArray[np.int64]
    label_names: Mapping[int, str] = field(default_factory=dict)

    def first(self, count: int) -> "ImageSet":
        """The first images alone."""
        return ImageSet(self.images[:count], self.labels[:count], self.label_names)

    def unlabelled(self) -> "ImageSet":
        """The same images without labels."""
        return ImageSet(self.images, np.full(len(self.images), NO_LABEL, dtype=np.int64))


@dataclass(frozen=True)
class SetFeatures:
    """An image set as the classifier sees it.

    Attributes:
        features: shape (N, F), float32.
        label_agreement: share of the labelled images that the classifier gives their label; None without labels.
    """

    features: npt.NDArray[np.float32]
    label_agreement: float | None


@dataclass(frozen=True)
class FeatureNetwork:
    """An image classifier whose features tell sets of images apart.

    Attributes:
        model: image classification model of transformers, such as `VQForImageClassification`.
        processor: its image processor.
        name: what the report calls it.
        batch_size: images at once.
    """

    model: Any
    processor: Any
    name: str
    batch_size: int = 64

    @classmethod
    def from_pretrained(cls, path: str, device: torch.device | str = "cpu", batch_size: int = 64) -> "FeatureNetwork":
        """Load a classifier and the processor saved beside it.

        Args:
            path: folder or Hub id.
            device: where the model runs.
            batch_size: images at once.

        Raises:
            ValueError: it is none, or lacks weights: features of a network that learned nothing would pass for learned.
        """
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        try:
            model, info = AutoModelForImageClassification.from_pretrained(path, output_loading_info=True)
            processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        except OSError as error:
            raise ValueError(
                f"{path}: found no image classifier with its processor there; check the path ({error})"
            ) from error
        if info["missing_keys"] or info["mismatched_keys"]:
            raise ValueError(
                f"{path}: lacks weights of its model: {sorted(info['missing_keys'])[:3]} ...; train or copy it again"
            )
        return cls(model.to(device).eval(), processor, path, batch_size)

    @property
    def description(self) -> str:
        """Where the features come from."""
        has_own = hasattr(self.model, "extract_features")
        place = "in front of its classifier" if has_own else "last hidden state, averaged"
        return f"{type(self.model).__name__} `{self.name}`, {place}"

    def has_classes(self, names: Sequence[str]) -> bool:
        """Whether the classes are those of a data set, by number and, where both sides name them, by name.

        Args:
            names: of the data set's labels; names that are the labels' numbers are none.
        """
        config, numbers = self.model.config, [str(number) for number in range(len(names))]
        if config.num_labels != len(names):
            return False
        known = [str(config.id2label[number]) for number in range(len(names))]
        unnamed = (numbers, [f"LABEL_{number}" for number in numbers])
        return known in (list(names), *unnamed) or list(names) == numbers

    @torch.no_grad()
    def __call__(self, image_set: ImageSet) -> SetFeatures:
        """Features of all images, and how many of them the classifier gives their label."""
        features, predictions = [], []
        for start in range(0, len(image_set.images), self.batch_size):
            mode = "L" if np.shape(self.processor.image_mean or ()) == (1,) else "RGB"
            images = [image.convert(mode) for image in image_set.images[start : start + self.batch_size]]
            pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
            pooled, logits = self._features_and_logits(pixel_values.to(self.model.device, self.model.dtype))
            features.append(pooled.float().cpu())
            predictions.append(logits.argmax(dim=-1).cpu())
        labelled = image_set.labels != NO_LABEL
        right = torch.cat(predictions).numpy() == image_set.labels
        agreement = float(right[labelled].mean()) if labelled.any() else None
        return SetFeatures(torch.cat(features).numpy(), agreement)

    def _features_and_logits(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, F) and (B, classes)."""
        if hasattr(self.model, "extract_features"):
            features = self.model.extract_features(pixel_values)
            return features, self.model.classifier(features)
        output = self.model(pixel_values, output_hidden_states=True)
        last = output.hidden_states[-1]  # (B, tokens, F) of a transformer, (B, F, H, W) of a convolutional network
        return last.mean(dim=1) if last.ndim == 3 else last.flatten(2).mean(dim=2), output.logits


@dataclass(frozen=True)
class GenerationSettings:
    """What the numbers of a report depend on.

    Attributes:
        data: data set of the real images.
        split: split of the real images that all rows are compared with.
        classifier: description of the network whose features are compared.
        classifier_accuracy: share of the real images that it classifies rightly.
        num_features: length of a feature vector.
        num_images: real images, and images of each row.
        seed: of the choice of images and of the independent codes.
        tokenizer: folder or name of the tokenizer that made the reconstructions.
        nearest_k: neighbour that sets the radius in density, coverage, precision and recall.
        generated: for each row of generated images how they were drawn, as `read_sampling` returns it.
        data_facts: what is known of the data set, as `describe_data` returns it.
    """

    data: str
    split: str
    classifier: str
    classifier_accuracy: float | None
    num_features: int
    num_images: int
    seed: int
    tokenizer: str
    nearest_k: int = DEFAULT_NEAREST_K
    generated: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    data_facts: dict[str, Any] | None = None


def generation_scores(
    real_features: npt.ArrayLike, generated: SetFeatures, nearest_k: int = DEFAULT_NEAREST_K
) -> dict[str, float | None]:
    """All scores of one set of images against the real ones.

    Args:
        real_features: shape (N, F).
        generated: features of the set, shape (M, F).
        nearest_k: neighbour that sets the radius of a neighbourhood.

    Returns:
        `frechet`, `density`, `coverage`, `precision`, `recall` and `label_agreement`.

    Raises:
        ValueError: as `frechet_distance` and `prdc`.
        ImportError: prdc isn't installed.
    """
    return {
        "frechet": frechet_distance(real_features, generated.features),
        **prdc(real_features, generated.features, nearest_k),
        "label_agreement": generated.label_agreement,
    }


def generation_report(
    settings: GenerationSettings, rows: Mapping[str, Mapping[str, float | None]], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """A report as a dictionary of JSON types: `settings`, `rows`, `notes`."""
    return {
        "settings": asdict(settings),
        "rows": {name: dict(scores) for name, scores in rows.items()},
        "notes": [*notes, *_warnings(settings)],
    }


def generation_markdown(report: Mapping[str, Any]) -> str:
    """Write a report as Markdown: settings, table of scores, notes.

    Args:
        report: as `generation_report` returns it.

    Returns:
        Markdown text that ends with a newline.
    """
    settings = report["settings"]
    accuracy = settings["classifier_accuracy"]
    learned = "" if accuracy is None else f", accuracy {accuracy:.1%} on the real images"
    introduction = (
        f"{settings['num_images']} real images of `{settings['data']}`, split `{settings['split']}`, against "
        f"{settings['num_images']} images of each row, seed {settings['seed']}. Features: {settings['classifier']}, "
        f"{settings['num_features']} numbers{learned}. Fréchet distance with unbiased covariances in float64; density, "
        f"coverage, precision and recall with nearest_k = {settings['nearest_k']}. Label agreement: share of the "
        f"images that the network gives their label. Tokenizer: `{settings['tokenizer']}`."
    )
    body = [
        [name, *(_cell(scores.get(score), decimals) for score, (_, decimals) in SCORES.items())]
        for name, scores in report["rows"].items()
    ]
    parts = [introduction, markdown_table(["", *(title for title, _ in SCORES.values())], body)]
    if report["notes"]:
        parts.append("\n".join(f"- {note}" for note in report["notes"]))
    return "\n\n".join(parts) + "\n"


def read_generated(folder: str | Path) -> ImageSet:
    """Images that `scripts/generate_images.py` wrote.

    Args:
        folder: holds `metadata.csv` with the columns file_name, label and perhaps label_name, and the files it lists.

    Raises:
        ValueError: no such folder, columns or files, or a label that is no whole number.
    """
    metadata = Path(folder) / "metadata.csv"
    if not metadata.is_file():
        raise ValueError(f"{folder}: found no metadata.csv, expected generated images; run generate_images.py first")
    images, labels, names = [], [], {}
    rows, columns = read_table(metadata)
    if not set(METADATA_COLUMNS) <= set(columns):
        raise ValueError(f"{metadata}: found the columns {columns}, expected {list(METADATA_COLUMNS)}; add them")
    for row in rows:
        images.append(open_image(listed_file(metadata, row["file_name"], "file_name")))
        labels.append(_read_label(metadata, row["label"]))
        names[labels[-1]] = row.get("label_name") or str(labels[-1])
    if not images:
        raise ValueError(f"{metadata}: found no rows, expected at least one image; generate them again")
    return ImageSet(images, np.array(labels, dtype=np.int64), names)


def _read_label(metadata: Path, text: str | None) -> int:
    try:
        return int(text or NO_LABEL)
    except ValueError as error:
        raise ValueError(f"{metadata}: found label {text!r}, expected a whole number, -1 for none") from error


def _symmetric_root(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Root of a symmetric matrix without negative eigenvalues but for rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def _warnings(settings: GenerationSettings) -> list[str]:
    """What makes the figures say less."""
    if settings.num_images > settings.num_features:
        return []
    return [
        f"{settings.num_images} images do not determine the covariance of {settings.num_features} features: the "
        "Fréchet distances are biased and serve for comparing the rows only."
    ]


def _cell(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"
