"""kunlun: the app-side package. `kunlun.v1` holds the generated stubs, `kunlun.client` the typed client."""

__version__ = "0.1.0"
