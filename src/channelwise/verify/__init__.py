"""Does the user's code adapt to fewer channels? Tried out; numbers and equal widths corrected; else channels stay."""
