"""The numbers as they are stored, wherever ONNX has a type for them; else the nearest. `native` for ONNX."""

from ..scheme import Rule, Scheme
from ._llama import KEEP

SCHEME = Scheme(
    "f32",  # of bf16, which ONNX Runtime does not compute with
    None,
    (
        *KEEP,
        Rule("", "u4_32", when="stored as int4"),
        Rule("", "u4_32z", when="stored as int4 with zeros by 32"),
        Rule("", "u4_128z", when="stored as int4 with zeros by 128"),
        *(Rule("", "f16", when=f"stored as {kind}") for kind in ("f16", "fp8", "mxfp4", "nvfp4", "other int4")),
    ),
    native=True,
)
