"""An OpenAI-compatible server over one Session: loopback by default, every queue and time bounded.

The wire format is that of https://platform.openai.com/docs/api-reference (chat, completions, models, errors), with
`reasoning_content` as vLLM and DeepSeek have it.
"""
