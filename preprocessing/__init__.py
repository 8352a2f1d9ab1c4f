"""Preprocessing: from raw DFDC videos to face crops on disk.

Imports nothing from `training` or `inference`; both import from here.
"""
