"""The training of world 2, stage by stage; run it with `tools/train_world2.py`."""
