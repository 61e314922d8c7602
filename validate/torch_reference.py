"""transformers in float32 as the reference, for `--reference torch`; needs the `reference` extra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, brief
from sampan.runtime.machine import look
from sampan.runtime.processor import processor

SLICE = 64  # positions whose logits are computed together


class TorchModel:
    """A checkpoint folder in transformers, with logits as a Session gives them."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        try:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
        except ImportError as e:
            raise InputError(f"--reference torch: {e}; pip install 'sampan[reference]'") from None
        torch.set_num_threads(threads or processor(look()).threads)
        local = {"trust_remote_code": False, "local_files_only": True}
        try:
            config: Any = AutoConfig.from_pretrained(folder, **local)
            auto = AutoModelForCausalLM if config.get_text_config() is config else AutoModelForImageTextToText
            self._model: Any = auto.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **local).eval()
        except (ValueError, OSError, RuntimeError) as e:
            raise InputError(f"{folder}: transformers cannot load it: {brief(str(e))}") from None
        self.vocab: int = config.get_text_config().vocab_size

    def logit_slices(self, tokens: Sequence[int], *, first: int = 0) -> Iterator[NDArray[np.float32]]:
        """Logits of the positions from `first`, float32 [at most 64, vocab] each."""
        import torch

        with torch.inference_mode():
            hidden = self._model.base_model(torch.tensor([list(tokens)])).last_hidden_state[0, first:]
            head = self._model.get_output_embeddings()
            for part in hidden.split(SLICE):
                yield head(part).numpy()

    def take_experts(self) -> dict[int, NDArray[np.int32]]:
        """Not recorded here."""
        return {}

    def close(self) -> None:
        """Nothing to release before the process ends."""
