"""Checks behind `make …-check`: each prints figures with targets, and one JSON line with `ok` at the end."""
