"""Checks of config fields, shared by the configs of all quantizers."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args

Config = TypeVar("Config", bound="QuantizerConfig")


class QuantizerConfig:
    """Base of the quantizers' config dataclasses: plain values in and out, and which quantizer they belong to."""

    quantizer_type: ClassVar[str]

    if TYPE_CHECKING:  # fields of some quantizers' configs, derived from other fields in others

        @property
        def codebook_size(self) -> int: ...

        @property
        def codebook_dim(self) -> int: ...

        @property
        def channel_last(self) -> bool: ...

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with `quantizer_type`."""
        return {"quantizer_type": self.quantizer_type, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """Inverse of `to_dict`; `quantizer_type` may be left out.

        Raises:
            ValueError: if a key is no field of this config, naming it and the fields there are, or if `quantizer_type`
                is another quantizer's.
        """
        values = dict(values)
        quantizer_type = values.pop("quantizer_type", cls.quantizer_type)
        require(quantizer_type == cls.quantizer_type, "quantizer_type", quantizer_type, f"{cls.quantizer_type!r} here")
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown quantizer field(s) {unknown}; the fields are {sorted(known)}")
        return cls(**values)

    def require_types(self) -> None:
        """Checks every field's value against its annotation: a plain type or a union of plain types.

        Raises:
            ValueError: naming the field, its value and the types it may have.
        """
        for field in fields(self):  # type: ignore[arg-type]
            require_type(field.name, getattr(self, field.name), field.type)


def config_or_fields(
    config_class: type[Config], config: Config | dict[str, Any] | None, fields: dict[str, Any]
) -> Config:
    """The config that a quantizer was given: as such, as its plain dict, or as its fields.

    Raises:
        ValueError: if both were given, a field is wrong, or `config` is something else.
    """
    if config is not None and fields:
        raise ValueError(f"give either config or fields, not both; got config and {sorted(fields)}")
    if config is None or isinstance(config, dict):
        return config_class.from_dict(fields if config is None else config)
    if not isinstance(config, config_class):
        raise ValueError(
            f"config={config!r} is no {config_class.__name__}; give one, its dict, or its fields as keywords"
        )
    return config


def shown_fields(config: QuantizerConfig, names: Sequence[str]) -> str:
    """Some fields and derived values of a config, as `repr` of a module shows them."""
    return ", ".join(f"{name}={getattr(config, name)!r}" for name in names)


def require_type(name: str, value: object, annotation: Any) -> None:
    """Raises a `ValueError` unless `value` has the annotated type; an int may stand for a float, a bool for neither."""
    kinds = get_args(annotation) or (annotation,)
    accepted = (*kinds, int) if float in kinds else kinds
    right = isinstance(value, accepted) and (bool in kinds or not isinstance(value, bool))
    expected = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
    require(right, name, value, f"of type {expected}")


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raises a `ValueError` that names the field, its value and what was expected, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}={value!r} is out of range; it must be {expected}")
