"""Sliding-window self-attention: bidirectional softmax over |i − j| ≤ w, never across samples (Kunlun, arXiv:2602.10016)."""
