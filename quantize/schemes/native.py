"""The numbers as they are stored, wherever GGUF has a type for them; else the nearest."""

from ..scheme import Rule, Scheme
from ._llama import KEEP

# f16 has three bits more than bf16, and the scales of these are float16 in the first place, or of a small range
F16 = ("f16", "nvfp4", "int4 with zeros by 32", "int4 with zeros by 128", "other int4")

SCHEME = Scheme(
    "bf16",
    None,
    (
        *KEEP,
        Rule("", "f32", when="stored as f32"),
        Rule("", "f32", when="stored as mixed"),
        Rule("", "q4_0", when="stored as int4"),
        Rule("", "mxfp4", when="stored as mxfp4"),
        *(Rule("", "f16", when=f"stored as {kind}") for kind in F16),
    ),
    native=True,
)
