"""Crops on disk to checkpoints. Reads from `preprocessing`, never from `inference`."""
