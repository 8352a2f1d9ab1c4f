"""From videos and checkpoints to a submission.

Imports `training` and `preprocessing`; neither imports this package.
"""
