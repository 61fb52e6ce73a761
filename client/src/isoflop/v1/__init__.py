"""Generated from `protos/isoflop/v1`: see `protos/generate.py`."""
