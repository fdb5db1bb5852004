"""What `benchmarks/bench.py` and `benchmarks/gpu.py` are made of: clocks, random models, arithmetic, the page."""
