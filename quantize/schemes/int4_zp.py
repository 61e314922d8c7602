"""`int4` with a zero point in every block of 32."""

from dataclasses import replace

from . import int4

SCHEME = replace(int4.SCHEME, default="u4_32z")
