"""What the pipelines of diffusers call the dtype: newer ones deprecate `torch_dtype`, older ones ignore `dtype`."""

from __future__ import annotations

from diffusers.utils import deprecation_utils


DTYPE = "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"
