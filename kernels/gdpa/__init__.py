"""GDPA: generalized dot-product attention, ``Act(s_in · Q Kᵀ) V · s_out`` without row normalisation."""
