"""Deep & Cross Network, version 2. See `config.py` and `graphs.py`."""
