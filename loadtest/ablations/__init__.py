"""What each part of the architecture is worth: variants on equal data, seeds and steps, beside the paper's figures."""
