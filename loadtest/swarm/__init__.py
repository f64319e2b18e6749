"""What `loadtest/locustfile.py` is made of. Not called `locust`: its folder is on the path when Locust reads that file."""
