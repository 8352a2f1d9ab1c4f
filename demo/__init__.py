"""A small synthetic data set that exercises the whole pipeline on any machine.

Besides the demo, only the tests import it.
"""
