"""Logistic regression: one weight per id, bucket and number. See `config.py` and `graphs.py`."""
