"""`python -m kernels.bench`: is every kernel right, race-free and fast on this GPU? One Markdown report and one JSON line."""
