"""`int4` with blocks of 128."""

from dataclasses import replace

from . import int4

SCHEME = replace(int4.SCHEME, default="u4_128")
