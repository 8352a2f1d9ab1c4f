"""From crops on disk to checkpoints. Imports `preprocessing`, never `inference`."""
