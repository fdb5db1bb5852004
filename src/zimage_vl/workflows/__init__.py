"""What is made of the pipeline: rounds, image-to-image, low memory."""
