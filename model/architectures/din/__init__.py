"""Deep Interest Network. See `config.py` and `graphs.py`."""
