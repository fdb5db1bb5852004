"""Joining the modules of the package into one file."""
