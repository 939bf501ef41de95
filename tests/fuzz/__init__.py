"""Every file that is read, changed in hundreds of ways: an error of ours or the same result, nothing else."""
