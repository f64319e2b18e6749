"""Measurements that a server's choices rest on, kept beside the compiled engine: slots × threads, the degradation frontier."""
