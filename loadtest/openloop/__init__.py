"""The open-loop load generator: arrivals drawn in advance, latency counted from the scheduled time."""
