"""Raw DFDC videos to face crops on disk. Reads nothing from `training` or `inference`; both read from here."""
