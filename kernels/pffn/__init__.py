"""The PFFN block: LayerNorm → GDPA → + q̂ → RMSNorm → + q, both norms across all heads of a token."""
