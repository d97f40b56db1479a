"""The store: its Zarr layout, reading and writing."""
