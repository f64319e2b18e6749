"""Offline yardsticks by public libraries: what other models and trainers reach on the same log."""
