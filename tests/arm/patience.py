"""Imported on the emulated processor: what has a limit of time here may take longer there, and it has one core.

Threads that spin until the others are there cost an emulator minutes.
"""

import os

from sampan.runtime import chat, doctor

CODE = "from sampan import jinja; jinja.serve.__defaults__ = (120.0,); jinja.main()"
chat.PATIENCE = doctor.SECONDS = 600.0
chat._renderer = chat.Renderer(CODE, 120.0)
core = min(os.sched_getaffinity(0))
os.cpu_count = lambda: 1
os.sched_getaffinity = lambda pid: {core}
