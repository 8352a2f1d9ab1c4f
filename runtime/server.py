"""Imported by the server that forks worker processes: it ends with its parent.

Its own sign of that, a pipe, stays open as long as a process that it forked lives.
"""

from runtime.process import die_with_parent

die_with_parent()
