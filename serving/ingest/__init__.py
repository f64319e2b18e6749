"""Events from a log besides the RPC: what a log must do (`source`), and the loop that stores what it brings (`ingestion`)."""
