"""Tests that diffusers keeps for machines with an accelerator, and that ask nothing of it that a CPU cannot do."""

import types
from collections.abc import Callable
from typing import Any


def on_any_device(test: Callable[..., Any]) -> Callable[..., Any]:
    """The test itself, unchanged, without the condition under which diffusers skips it."""
    copy = types.FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__)
    copy.__kwdefaults__ = test.__kwdefaults__
    copy.__dict__.update(test.__dict__)
    copy.pytestmark = [mark for mark in test.pytestmark if mark.name != "skipif"]
    return copy
