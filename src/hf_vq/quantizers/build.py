"""From a config, or its plain dict, to the quantizer it describes."""

from typing import Any

from .configuration import VectorQuantizerConfig
from .fields import QuantizerConfig, require
from .finite_scalar import FiniteScalarQuantizer, FiniteScalarQuantizerConfig
from .lookup_free import LookupFreeQuantizer, LookupFreeQuantizerConfig
from .vector_quantizer import VectorQuantizer

_QUANTIZERS: dict[type[QuantizerConfig], Any] = {
    VectorQuantizerConfig: VectorQuantizer,
    FiniteScalarQuantizerConfig: FiniteScalarQuantizer,
    LookupFreeQuantizerConfig: LookupFreeQuantizer,
}


def quantizer_config(values: dict[str, Any]) -> QuantizerConfig:
    """The config that a plain dict describes.

    Args:
        values: fields of the config, and `"quantizer_type"`: `"vector"` (the default), `"finite_scalar"` or
            `"lookup_free"`.

    Raises:
        ValueError: if the type or a field is unknown, or a value is out of range.
    """
    classes = {config_class.quantizer_type: config_class for config_class in _QUANTIZERS}
    quantizer_type = values.get("quantizer_type", VectorQuantizerConfig.quantizer_type)
    require(quantizer_type in classes, "quantizer_type", quantizer_type, f"one of {tuple(classes)}")
    return classes[quantizer_type].from_dict(values)


def build_quantizer(config: QuantizerConfig | dict[str, Any]) -> Any:
    """The quantizer layer of a config or of its plain dict (see `quantizer_config`).

    Raises:
        ValueError: if the dict describes no valid config.
    """
    config = quantizer_config(config) if isinstance(config, dict) else config
    return _QUANTIZERS[type(config)](config)
