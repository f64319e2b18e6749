"""Schedulers to compare with: what servers without ranking-specific scheduling do."""
