"""What operations do to memory: views, copies, work in place."""
