"""The official nuScenes evaluation of students and cached teachers."""
