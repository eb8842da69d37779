from .onnx_export import (
    export_onnx as export_onnx,
    export_step_onnx as export_step_onnx,
    export_torch as export_torch,
    quantize_onnx as quantize_onnx,
)
from .onnx_runtime import load_onnx as load_onnx
