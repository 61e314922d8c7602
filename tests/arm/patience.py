"""Imported on the emulated processor: what has a limit of time here may take longer there."""

from sampan.runtime import chat, doctor

CODE = "from sampan import jinja; jinja.serve.__defaults__ = (120.0,); jinja.main()"
chat.PATIENCE = doctor.SECONDS = 600.0
chat._renderer = chat.Renderer(CODE, 120.0)
