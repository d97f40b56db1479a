"""BEV grids, views of the BEV space, and points in cameras."""
