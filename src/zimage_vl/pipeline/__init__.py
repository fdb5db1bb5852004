"""The diffusers side: `ZImageVLPipeline`."""
