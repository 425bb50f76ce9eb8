"""What each receipt holds, and the tables that are computed from it."""
