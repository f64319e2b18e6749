"""Model families: every one is two graphs, `encode_user` and `score_candidates`, and trains, exports and serves the same way.

`base.py` says what an architecture has to declare, `graphs.py` what its two torch modules inherit, `registry.py` finds it by
name. One folder each: `config.py` (torch-free: hyper-parameters, state layout, FLOPs) and `graphs.py` (torch).
"""
