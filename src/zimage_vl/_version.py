"""The version of the package, in the one place that setup.cfg and the provenance of saved files read it from."""

__version__ = "0.2.0"
