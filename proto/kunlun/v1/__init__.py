"""Messages and service stubs of the kunlun API, generated from the .proto files beside this one (`make proto`)."""
