"""InterFormer, Kunlun's direct predecessor. See `config.py` and `graphs.py`."""
