"""What the user's code reads while it runs: sizes, numbers in attributes, other ways through a module."""
