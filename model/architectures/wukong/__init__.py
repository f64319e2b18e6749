"""Wukong without sequences. See `config.py` and `graphs.py`."""
