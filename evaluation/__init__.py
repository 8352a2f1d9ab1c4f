"""What judges networks: scores, robustness, studies. The leftmost room: it may import all others, none imports it."""
