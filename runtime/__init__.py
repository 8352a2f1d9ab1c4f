"""Infrastructure that knows no video and no face: command lines, atomic files, workers,
Ray, devices. Imports no other room.
"""
