"""Files that survive kills and full disks, and the locks that keep two runs from the same results."""
