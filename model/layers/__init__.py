"""Building blocks of the Kunlun model, one idea a file, named as in the paper (arXiv:2602.10016)."""
