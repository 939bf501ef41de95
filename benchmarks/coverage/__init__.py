"""The coverage sweep: public models pruned and checked; see README.md."""
