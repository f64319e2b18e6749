"""HSTU-style pointwise attention with the candidate as the last token. See `config.py` and `graphs.py`."""
