"""Evaluation of networks: scores and robustness.

The top package: it may import all others, and none of them imports it.
"""
