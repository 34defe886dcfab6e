"""Models for other runtimes: programs of torch.export and ONNX files, and how far these give what the models give."""

from .onnx_files import OPSET, export_onnx
from .parity import OutputParity, check_onnx, run_onnx
from .programs import export_programs

__all__ = ["OPSET", "OutputParity", "check_onnx", "export_onnx", "export_programs", "run_onnx"]
