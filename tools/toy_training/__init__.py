"""The training of the toy world, stage by stage; run it with `tools/train_toy.py`."""
