"""Training: request-grouped batches, optimizers, the loop, calibration. Needs torch."""
