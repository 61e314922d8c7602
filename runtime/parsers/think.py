"""Reasoning between <think> and </think>: Qwen3, QwQ, Kimi-K2-Thinking, DeepSeek-R1 and many others."""

from __future__ import annotations

from ..reply import Parser

PARSER = Parser(claims=lambda template: "</think>" in template, marks={"<think>": "</think>"})
