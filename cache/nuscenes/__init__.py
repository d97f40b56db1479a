"""The nuScenes data set: frames, LiDAR points and the loader."""
