"""Drawn scenes: animals in their habitats, with exact masks (the sample set)."""
