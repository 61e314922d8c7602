"""Counters, as Prometheus reads them (its text format 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..stream import Usage

TYPE = "text/plain; version=0.0.4; charset=utf-8"
HELP = {
    "sampan_responses_total": ("counter", "Responses by path and status."),
    "sampan_clients_gone_total": ("counter", "Requests whose client left before the end of its answer."),
    "sampan_prompt_tokens_total": ("counter", "Tokens of prompts, of answers that were computed to their end."),
    "sampan_cached_tokens_total": ("counter", "Of these, tokens that the cache held already."),
    "sampan_completion_tokens_total": ("counter", "Tokens of answers."),
    "sampan_prefill_seconds_total": ("counter", "Seconds to the first token's logits."),
    "sampan_decode_seconds_total": ("counter", "Seconds behind the first token."),
    "sampan_requests_running": ("gauge", "Requests that are being answered."),
    "sampan_requests_waiting": ("gauge", "Requests that wait for their turn."),
    "sampan_context_tokens": ("gauge", "Most tokens of a prompt and its answer."),
}


class Metrics:
    """Counted in the event loop alone, so no lock is needed."""

    def __init__(self) -> None:
        self._values: Counter[str] = Counter()  # by name with labels

    def response(self, path: str, status: int) -> None:
        """A response was begun; `path` is one of the server's own, so that strangers make no new labels."""
        self._values[f'sampan_responses_total{{path="{path}",status="{status}"}}'] += 1

    def gone(self) -> None:
        """A client left before the end of its answer."""
        self._values["sampan_clients_gone_total"] += 1

    def answered(self, usage: Usage) -> None:
        """An answer was computed to its end."""
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "prefill_seconds", "decode_seconds"):
            self._values[f"sampan_{name}_total"] += getattr(usage, name)

    def text(self, gauges: Mapping[str, int]) -> str:
        """The page; `gauges` by name."""
        values = {name: 0 for name in HELP if name != "sampan_responses_total"} | self._values | dict(gauges)
        lines = []
        for name, (kind, words) in HELP.items():
            lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
            lines += [f"{k} {v}" for k, v in sorted(values.items()) if k.split("{")[0] == name]
        return "\n".join(lines) + "\n"
