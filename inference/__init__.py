"""Videos and checkpoints to a submission. Reads from `training` and `preprocessing`; nothing reads from here."""
