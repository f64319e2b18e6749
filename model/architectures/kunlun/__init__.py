"""Kunlun (arXiv:2602.10016): sequence towers with generated weights and Wukong interaction, wired for serving."""
