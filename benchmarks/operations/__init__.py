"""The two operations: what they are compared with, how they are checked, timed and bounded."""
