"""Arithmetic on torch alone: from text embeddings and references to the embeddings that condition a picture."""
