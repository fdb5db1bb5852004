"""From a picture and a text to `ReferenceEmbeds`. Knows Qwen3-VL and nothing of Z-Image."""
