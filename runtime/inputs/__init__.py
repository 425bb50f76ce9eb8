"""What is to be scored, found while the scoring goes on: folders, lists, archives, tables."""
