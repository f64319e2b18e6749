"""Real servers behind a real Envoy or HAProxy with the files of `deploy/`: restarts, crashes, stalls, new replicas."""
